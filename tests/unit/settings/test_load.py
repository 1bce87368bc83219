from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import ConfigurationError
from scp_server.settings import Settings, SettingsError, check_file, load_settings, to_mapping, to_toml


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(text: str | bytes) -> Path:
        path = tmp_path / "c.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


def errors(config: Path | None, overrides: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(config, overrides)
    assert isinstance(caught.value, ConfigurationError)
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return str(caught.value).splitlines()


def test_later_source_wins(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write('[listen]\nport = 1\nhost = "::1"\nae_title = "FILE"\n')
    monkeypatch.setenv("SCP_SERVER_LISTEN__PORT", "2")
    monkeypatch.setenv("SCP_SERVER_LISTEN__AE_TITLE", "ENV")
    settings = load_settings(config, {"listen": {"port": 3}})
    assert (settings.listen.port, settings.listen.ae_title, settings.listen.host) == (3, "ENV", "::1")
    assert type(settings) is Settings


def test_every_problem_is_named_with_file_line_and_key(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(
        'data_dir = 5\n\n[listen]\nprot = 104\nport = 70000\nae_title = "A\\\\B"\n[limts]\nx = 1\n'
        '[negotiation]\ntransfer_syntaxes = ["Nonsense"]\n[limits]\nmax_pdu_bytes = 5\n'
    )
    monkeypatch.setenv("SCP_SERVER_LOG__LEVEL", "loud")
    monkeypatch.setenv("SCP_SERVER_NONSENSE", "x")
    found = errors(config, {"http": {"port": -1}})
    assert found == [
        f"{config}:1: data_dir: must be a path, not 5",
        f"{config}:4: listen.prot: is no setting; did you mean listen.port?",
        f"{config}:5: listen.port: must be at most 65535, not 70000",
        f"{config}:6: listen.ae_title: must be printable ASCII without a backslash",
        f"{config}:7: limts: is no setting; did you mean limits?",
        f"{config}:10: negotiation.transfer_syntaxes: 'Nonsense' is no UID and no keyword of a "
        "Transfer Syntax such as ExplicitVRLittleEndian",
        f"{config}:12: limits.max_pdu_bytes: must be 0 (unlimited) or at least 4096",
        "SCP_SERVER_NONSENSE: is no setting",
        "command line: http.port: must be at least 0, not -1",
        "environment SCP_SERVER_LOG__LEVEL: log.level: must be 'debug', 'info', 'warning', 'error' or "
        "'critical', not 'loud'",
    ]


def test_a_bad_layout_is_named_by_what_is_wrong_with_it(write: Any) -> None:
    for template, problem in (
        ("{study}/{serie}/{instance}", "'serie' is no field; there are study, series, "),
        ("{study}/../{series}/{instance}", "'..' is not safe in a path"),
        ("{study}/{instance}", "a folder's name must contain {series} or {series_uid}"),
    ):
        config = write(f'[storage]\nlayout = "{template}"\n')
        [found] = errors(config)
        assert found.startswith(f"{config}:2: storage.layout: {problem}")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a = 1\n[listen\nport = 1\n", 2, "is not TOML"),
        ("a = 1\na = 2\n", 2, "is not TOML"),
        ("[listen]\nport = \n", 2, "is not TOML"),
        ('x = """never closed\n', 1, "is not TOML"),
        (b"a = 1\nb = '\xff'\n", 2, "not UTF-8"),
        ("x = " + "[" * 5_000, None, "TOML|nested"),
    ],
)
def test_what_is_not_toml_is_named_with_its_line(
    write: Any, text: str | bytes, line: int | None, words: str
) -> None:
    [problem] = check_file(write(text))
    import re

    assert re.search(words, problem.text)
    assert line is None or problem.line == line


def test_missing_or_endless_file_is_a_problem(tmp_path: Path, write: Any) -> None:
    [missing] = errors(tmp_path / "none.toml")
    assert "cannot be read: No such file" in missing
    [long] = check_file(write("#" * ((1 << 20) + 1)))
    assert "longer than" in long.text


def test_types_are_not_guessed_in_a_file(write: Any) -> None:
    for text in (
        'listen.port = "104"',
        "listen.port = true",
        "listen.port = 1.0",
        "listen = 5",
        "log.level = 3",
    ):
        assert len(check_file(write(text))) == 1, text


def test_problem_of_a_whole_section_names_key_and_line(write: Any) -> None:
    [problem] = check_file(write("[limits]\nmax_associations = 5\nmax_associations_per_peer = 6\n"))
    assert (problem.line, problem.key) == (3, "limits.max_associations_per_peer")
    assert "must not exceed max_associations (5)" in problem.text


def test_problems_of_the_environment_do_not_concern_the_check_of_a_file(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCP_SERVER_NONSENSE", "x")
    assert check_file(write("listen.port = 1\n")) == []


def test_no_library_speaks_in_the_messages(write: Any) -> None:
    text = "\n".join(errors(write("listen = 5\nhttp.port = 1.5\ntimeouts.idle_seconds = 'x'\nlog = [1]\n")))
    for word in ("pydantic", "http://", "https://", "Input", "type="):
        assert word not in text


def test_control_characters_of_a_key_do_not_reach_the_terminal(write: Any) -> None:
    [problem] = check_file(write('"a\\u001b[2J" = 1\n'))
    assert str(problem).isprintable()


def test_shown_settings_load_again_as_the_same(tmp_path: Path) -> None:
    settings = Settings(
        listen={"ae_title": 'A "B"', "port": 0},  # type: ignore[arg-type]
        data_dir="/tmp/a\x7fb",  # type: ignore[arg-type]
        storage={"reserve_bytes": 7},  # type: ignore[arg-type]
        timeouts={"idle_seconds": 0.25},  # type: ignore[arg-type]
    )
    path = tmp_path / "shown.toml"
    path.write_text(to_toml(settings))
    assert load_settings(path) == settings
    assert tomllib.loads(path.read_text())["listen"] == to_mapping(settings)["listen"]
