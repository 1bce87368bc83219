"""The lock files: an installation years from now takes the very files that were tested."""

import re
from importlib.metadata import distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-test.lock")


def pinned(lock: str) -> dict[str, set[str]]:
    """The names in a lock, as installers compare them, with the extras that they are pinned with."""
    text = (REPOSITORY / lock).read_text(encoding="utf-8")
    pins = re.findall(r"^([A-Za-z0-9._-]+)(?:\[([^]]*)\])?==", text, re.MULTILINE)
    return {canonical(name): set(filter(None, extras.split(","))) for name, extras in pins}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required_extras(names: set[str]) -> list[tuple[str, str, str]]:
    """What the installed distributions among `names` require with an extra: who, what, which extra."""
    found = []
    for distribution in distributions():
        who = canonical(distribution.metadata["Name"])
        for requirement in distribution.requires or () if who in names else ():
            match = re.match(r"([A-Za-z0-9._-]+)\[([^]]*)\]", requirement)
            if match and "extra ==" not in requirement:
                found += [(who, canonical(match[1]), extra.strip()) for extra in match[2].split(",")]
    return found


def test_a_requirement_with_an_extra_is_pinned_with_it() -> None:
    # Without, pip takes the newest release for it, and then refuses that in --require-hashes mode.
    lock = pinned("requirements-test.lock")
    required = required_extras(set(lock))
    assert ("pytest-cov", "coverage", "toml") in required
    assert [each for each in required if each[2] not in lock.get(each[1], set())] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_name_no_index(lock: str) -> None:
    text = (REPOSITORY / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^--(?!hash)", text, re.MULTILINE)


def test_the_test_lock_pins_what_the_product_gets() -> None:
    def versions(lock: str) -> set[tuple[str, str]]:
        text = (REPOSITORY / lock).read_text(encoding="utf-8")
        return set(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE))

    assert versions("requirements.lock") <= versions("requirements-test.lock")
