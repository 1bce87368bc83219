from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_server.storage.base import ObjectKey
from scp_server.storage.layout import (
    DIRECTORY_CHARACTERS,
    directory_of,
    is_directory,
    is_file_name,
    is_location,
    ledger_generation,
    location_of,
)

_ANY_TEXT = st.text(alphabet=st.characters(codec=None), max_size=80)


@settings(max_examples=100)
@given(_ANY_TEXT, _ANY_TEXT, _ANY_TEXT, st.from_regex(r"[0-9a-f]{1,64}", fullmatch=True))
def test_any_uids_give_a_location_of_ours(study: str, series: str, instance: str, arrival: str) -> None:
    location = location_of(ObjectKey(study, series, instance, arrival))
    assert is_location(location)
    assert location.endswith(f"-{arrival}.dcm")
    directory = directory_of(location)
    assert is_directory(directory)
    assert len(directory) == DIRECTORY_CHARACTERS


def test_locations_never_change_between_releases() -> None:
    key = ObjectKey("1.2.3", "1.2.3.4", "1.2.3.4.5", "0f")
    assert location_of(key) == (
        "objects/df/dfc30f22e3b0014935bb/9db081a4ff58f76d458b/ef661994ceb53deef9f9-0f.dcm"
    )


def test_each_uid_has_its_own_part_of_the_path() -> None:
    base = ObjectKey("1", "2", "3", "aa")
    parts = location_of(base).split("/")
    for number, key in enumerate(
        [ObjectKey("9", "2", "3", "aa"), ObjectKey("1", "9", "3", "aa"), ObjectKey("1", "2", "9", "aa")]
    ):
        other = location_of(key).split("/")
        changed = [index for index in (2, 3, 4) if other[index] != parts[index]]
        assert changed == [number + 2]


_GOOD = location_of(ObjectKey("1", "2", "3", "aa"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/" + _GOOD,
        _GOOD + "/",
        _GOOD + "\n",
        _GOOD.upper(),
        _GOOD.replace("/", "//"),
        _GOOD.replace("objects", "incoming"),
        _GOOD.replace("objects/", "objects/../objects/"),
        _GOOD.replace(".dcm", ".part"),
        _GOOD.replace(".dcm", "\0.dcm"),
        _GOOD.replace("-aa", "-"),
        _GOOD.replace("-aa", "-" + "a" * 65),
        "objects/00/" + _GOOD.split("/", 2)[2] if not _GOOD.startswith("objects/00") else "objects",
        "../" + _GOOD,
    ],
)
def test_anything_else_is_no_location(text: str) -> None:
    assert is_location(_GOOD)
    assert not is_location(text)


def test_names_with_a_line_end_are_not_ours() -> None:
    assert not is_file_name(_GOOD.rpartition("/")[2] + "\n")
    assert not is_directory(directory_of(_GOOD) + "\n")


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("directories.1", 1),
        ("directories.0042", 42),
        ("directories.", None),
        ("directories.x", None),
        ("directories.-1", None),
        ("directories.\u0661", None),
        ("x.part", None),
        ("1", None),
    ],
)
def test_a_ledgers_name_carries_its_generation(name: str, generation: int | None) -> None:
    assert ledger_generation(name) == generation
