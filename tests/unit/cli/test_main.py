from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from scp_server import __version__
from scp_server.cli.main import app
from scp_server.errors import AssociationRejected, ConfigurationError, StorageError
from scp_server.settings import Settings

RUNNER = CliRunner()
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SCP_SERVER_"):
            monkeypatch.delenv(name)


def commands(command: Any = None, path: str = "scp-server") -> Iterator[tuple[str, Any]]:
    command = command or typer.main.get_command(app)
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")
    else:
        yield path, command


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_has_help_with_an_example_and_is_documented(path: str, command: Any) -> None:
    help_text = RUNNER.invoke(app, [*path.split()[1:], "--help"])
    assert help_text.exit_code == 0
    assert f"Example: {path} " in help_text.stdout
    document = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    section = document.partition(f"## `{path}`\n")[2].partition("\n## ")[0]
    assert section, f"{path} is not in docs/cli.md"
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    documented = set(re.findall(r"^\| `(--[a-z-]+)", section, re.MULTILINE))
    assert documented == options - {"--help"}


def test_commands_and_options_of_the_contract_are_all_there() -> None:
    found = {path.partition(" ")[2]: command for path, command in commands()}
    assert set(found) == {
        "serve",
        "demo",
        "echo",
        "store",
        "find",
        "worklist",
        "move",
        "get",
        "callbacks",
        "replay",
        "status",
        "config check",
        "config show",
        "conformance",
        "validate",
        "info",
        *("outbox list", "outbox retry", "outbox drop"),
        "scan show",
        "findings list",
        "quarantine list",
        "quarantine show",
        "quarantine release",
        "quarantine drop",
        *("index rebuild", "index verify", "delete", "backup", "restore"),
    }
    serve = {option for parameter in found["serve"].params for option in parameter.opts}
    assert serve >= {
        "--remote",
        "--config",
        "--host",
        "--port",
        "--ae-title",
        "--data-dir",
        "--http-host",
        "--http-port",
        "--log-format",
        "--log-level",
    }


def test_version_is_the_packages() -> None:
    result = RUNNER.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"scp-server {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["echo", "--nonsense"],
        ["echo", "--port", "0"],
        ["echo", "--port", "x"],
        ["echo", "--ae-title", "A" * 17],
        ["echo", "--ae-title", "A\\B"],
        ["echo", "--calling-ae-title", " "],
        ["echo", "--timeout", "0"],
        ["move", "--query", "{}"],
        ["move", "--query", "{}", "--dest", "A\\B"],
        ["move", "--query", '{"PatientName": "X"}', "--dest", "A"],
        ["get", "--query", '{"StudyInstanceUID": "1.2"}'],
        ["get", "--query", '{"StudyInstanceUID": "1.*"}', "--output", "x"],
        ["get", "--query", '{"StudyInstanceUID": "1.2"}', "--output", "x", "--sop-class", "CT"],
        ["get", "--query", '{"StudyInstanceUID": "1.2"}', "--output", __file__],
        ["store", "--input", __file__, "--application-context", "dicos-v04"],
        ["store", "--input", __file__, "--framing", "loose"],
        ["store", "--input", __file__, "--passcode-file", __file__],
        ["store", "--input", __file__, "--max-associations", "0"],
        ["store", "--input", __file__, "--resume", __file__],
        ["serve", "--workers", "0"],
        ["config", "check"],
    ],
)
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    assert RUNNER.invoke(app, arguments).exit_code == 2


def test_serve_runs_with_options_over_environment_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Settings] = []

    def run_server(settings: Settings, _load: object) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr("scp_server.runtime.daemon.run", run_server)
    config = tmp_path / "c.toml"
    config.write_text('[listen]\nport = 1\nhost = "::1"\nae_title = "FILE"\n')
    monkeypatch.setenv("SCP_SERVER_LISTEN__AE_TITLE", "ENV")
    arguments = ["--config", str(config), "--port", "0", "--http-port", "0", "--data-dir", str(tmp_path)]
    result = RUNNER.invoke(app, ["serve", *arguments, "--log-format", "json", "--log-level", "debug"])
    assert result.exit_code == 0, result.output
    [settings] = seen
    assert (settings.listen.port, settings.listen.ae_title, settings.listen.host) == (0, "ENV", "::1")
    assert (settings.http.port, settings.data_dir, settings.log.level) == (0, tmp_path, "debug")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (AssociationRejected(1, 1, 7), 3),
        (StorageError("x"), 1),
        (KeyboardInterrupt(), 1),
    ],
)
def test_what_a_command_raises_becomes_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def run(_settings: Settings, _load: object) -> int:
        raise error

    monkeypatch.setattr("scp_server.runtime.daemon.run", run)
    result = RUNNER.invoke(app, ["serve"])
    assert result.exit_code == code
    assert result.stderr.startswith("scp-server: ")


def test_each_remote_option_is_one_in_place_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Settings] = []

    def run_server(settings: Settings, load: Callable[[], Settings]) -> int:
        seen.extend((settings, load()))
        return 0

    monkeypatch.setattr("scp_server.runtime.daemon.run", run_server)
    config = tmp_path / "c.toml"
    config.write_text("[[remotes]]\nae_title = 'FILE'\nhost = 'h'\nport = 1\n")
    arguments = ["--remote", "PACS=pacs.example:104", "--remote", "A=B=[fd00::1]:65535"]
    result = RUNNER.invoke(app, ["serve", "--config", str(config), *arguments])
    assert result.exit_code == 0, result.output
    for settings in seen:
        assert [(remote.ae_title, remote.host, remote.port) for remote in settings.remotes] == [
            ("PACS", "pacs.example", 104),
            ("A=B", "fd00::1", 65_535),
        ]
    assert RUNNER.invoke(app, ["serve", "--config", str(config)]).exit_code == 0
    assert [remote.ae_title for remote in seen[-1].remotes] == ["FILE"]


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("PACS", "must be AET=HOST:PORT"),
        ("PACS=host", "must be AET=HOST:PORT"),
        ("PACS=host:x", "must be AET=HOST:PORT"),
        ("PACS=fd00::1:104", "must be AET=HOST:PORT"),
        ("=host:104", "remotes.0.ae_title: must not be blank"),
        ("PACS=:104", "remotes.0.host: must be a host name"),
        ("PACS=host:0", "remotes.0.port: must be at least 1"),
        ("PACS=host:99999999999999999999", "remotes.0.port: must be at most 65535"),
    ],
)
def test_a_remote_of_another_form_is_wrong_usage(option: str, complaint: str) -> None:
    result = RUNNER.invoke(app, ["serve", "--remote", option])
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_exit_code_of_the_server_is_that_of_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scp_server.runtime.daemon.run", lambda _settings, _load: 2)
    assert RUNNER.invoke(app, ["serve"]).exit_code == 2


def test_serve_with_wrong_settings_names_them_and_is_exit_2() -> None:
    result = RUNNER.invoke(app, ["serve", "--port", "70000", "--log-level", "loud", "--ae-title", "A" * 17])
    assert result.exit_code == 2
    for key in ("listen.port", "log.level", "listen.ae_title"):
        assert f"command line: {key}: " in result.stderr


def test_config_check_says_ok_or_file_line_and_key(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[listen]\nport = 104\n")
    result = RUNNER.invoke(app, ["config", "check", str(config)])
    assert (result.exit_code, result.stdout) == (0, f"{config}: OK\n")
    config.write_text("[listen]\nprot = 104\n")
    result = RUNNER.invoke(app, ["config", "check", str(config)])
    assert result.exit_code == 2
    assert f"{config}:2: listen.prot: " in result.stdout
    result = RUNNER.invoke(app, ["config", "check", str(config), "--json"])
    assert result.exit_code == 2
    [problem] = json.loads(result.stdout)["problems"]
    assert (problem["line"], problem["key"]) == (2, "listen.prot")
    assert RUNNER.invoke(app, ["config", "check", str(tmp_path / "none")]).exit_code == 2


def test_config_show_shows_what_would_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCP_SERVER_LISTEN__PORT", "104")
    text = RUNNER.invoke(app, ["config", "show"])
    assert text.exit_code == 0
    path = tmp_path / "shown.toml"
    path.write_text(text.stdout)
    again = RUNNER.invoke(app, ["config", "show", "--config", str(path), "--json"])
    assert json.loads(again.stdout)["listen"]["port"] == 104
    monkeypatch.setenv("SCP_SERVER_LISTEN__PROT", "104")
    wrong = RUNNER.invoke(app, ["config", "show", "--json"])
    assert wrong.exit_code == 2
    assert json.loads(wrong.stdout)["ok"] is False


def run(*arguments: str, **keywords: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scp_server.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
        **keywords,
    )


def test_echo_without_a_peer_is_exit_3_and_says_so_to_machines_too(unused_tcp_port: int) -> None:
    done = run("echo", "--port", str(unused_tcp_port), "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["exit_code"] == 3
    assert str(unused_tcp_port) in done.stderr


def test_echo_imports_nothing_heavy_of_ours(unused_tcp_port: int) -> None:
    program = (
        "import sys\nfrom scp_server.cli.main import main\n"
        f"try:\n    main(['echo', '--port', '{unused_tcp_port}'])\nexcept SystemExit: pass\n"
        "heavy = {'pydicom', 'pynetdicom', 'sqlalchemy', 'rich', 'structlog', 'starlette', 'uvicorn',"
        " 'pydantic_settings', 'prometheus_client'}\nprint(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_reader_that_goes_away_is_exit_1_without_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "scp_server.cli.main", "config", "show"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
