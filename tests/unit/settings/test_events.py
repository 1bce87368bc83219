"""The token of who follows the event stream: what it may be, where it stands, and where it is not shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from scp_server.errors import ConfigurationError
from scp_server.settings import Settings, check_file, load_settings, to_toml

TOKEN = "0123456789abcdef"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "c.toml"


def test_without_a_token_anybody_may_follow() -> None:
    assert Settings().events.bearer_token is None
    assert Settings().events.admits_anybody


def test_a_token_stands_in_the_settings_or_in_a_file_and_is_not_shown(config: Path) -> None:
    config.write_text(f"[events]\ntoken = '{TOKEN}'\n")
    settings = load_settings(config)
    assert settings.events.bearer_token == TOKEN
    assert not settings.events.admits_anybody
    assert TOKEN not in to_toml(settings) + repr(settings)
    file = config.with_name("token")
    file.write_text(f"{TOKEN}\n")
    config.write_text(f"[events]\ntoken_file = '{file}'\n")
    assert load_settings(config).events.bearer_token == TOKEN
    assert not load_settings(config).events.admits_anybody


@pytest.mark.parametrize("token", ["", TOKEN[1:], f"{TOKEN} ", "a" * 257, f"{TOKEN}\u00e9"])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused_unnamed(config: Path, token: str) -> None:
    config.write_text(f"[events]\ntoken = '{token}'\n")
    (problem,) = check_file(config)
    assert "2: events.token: must be 16 to 256 letters" in str(problem)
    assert not token or token not in str(problem)
    file = config.with_name("token")
    file.write_text(token)
    config.write_text(f"[events]\ntoken_file = '{file}'\n")
    with pytest.raises(ConfigurationError, match=r"events.token_file .* must be 16 to 256"):
        _ = load_settings(config).events.bearer_token


def test_there_is_one_place_for_the_token(config: Path) -> None:
    config.write_text(f"[events]\ntoken = '{TOKEN}'\ntoken_file = '/x'\n")
    (problem,) = check_file(config)
    assert "events.token_file: must not be given beside token" in str(problem)


def test_a_token_file_that_is_not_there_is_named(config: Path) -> None:
    config.write_text("[events]\ntoken_file = '/nowhere/token'\n")
    with pytest.raises(ConfigurationError, match=r"events.token_file /nowhere/token cannot be read: No such"):
        _ = load_settings(config).events.bearer_token
