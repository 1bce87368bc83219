"""`scp-server config check` and `scp-server config show`."""

from __future__ import annotations

from pathlib import Path

from scp_server.cli.output import ExitCode, complain, say, say_json
from scp_server.observability.text import printable


def run_check(file: Path, *, as_json: bool) -> ExitCode:
    """Print `FILE: OK`, or every problem with file, line and key."""
    from scp_server.settings.load import check_file, plain_problems

    problems = check_file(file)
    if as_json:
        say_json({"file": str(file), "ok": not problems, "problems": plain_problems(problems)})
    elif not problems:
        say(f"{printable(str(file))}: OK")
    else:
        for problem in problems:
            say(str(problem))
    return ExitCode.USAGE if problems else ExitCode.OK


def run_show(config: Path | None, *, as_json: bool) -> ExitCode:
    """Print the effective settings of `config` and the environment, as TOML or JSON."""
    from scp_server.settings import SettingsError, load_settings, to_mapping, to_toml
    from scp_server.settings.load import plain_problems

    try:
        settings = load_settings(config)
    except SettingsError as error:
        if as_json:
            say_json({"ok": False, "problems": plain_problems(error.problems)})
        complain(str(error))
        return ExitCode.USAGE
    if as_json:
        say_json(to_mapping(settings))
    else:
        say(to_toml(settings).rstrip("\n"))
    return ExitCode.OK
