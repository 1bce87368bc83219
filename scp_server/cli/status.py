"""`scp-server status`: how the running server is, once or as a page that follows it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from scp_server.cli.control_client import CommandFailed, ControlClient
from scp_server.cli.data_dir import data_folder
from scp_server.cli.output import ExitCode, complain, say_json

REFRESH_SECONDS = 1.0
_ANSWER_SECONDS = 30.0


def run_status(data_dir: Path | None, *, watch: bool, as_json: bool) -> ExitCode:
    """Print the state of the server on `data_dir`; with `watch` again every second, until Ctrl-C."""
    with ControlClient(data_folder(data_dir), _ANSWER_SECONDS) as server:
        report = server.ask("status")
        if not watch:
            _show(report, as_json=as_json)
            return ExitCode.OK
        try:
            if as_json or not sys.stdout.isatty():
                _follow_in_lines(server, report, as_json=as_json)
            else:
                _follow_on_page(server, report)
        except CommandFailed as error:
            complain(str(error))
            return ExitCode.FAILED
        except KeyboardInterrupt:
            # The way to end it.
            return ExitCode.OK


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        say_json(report)
        return
    from rich.console import Console

    from scp_server.cli.status_page import page

    console = Console()
    # Where nobody looks at a screen there is no reason to leave anything out.
    console.print(page(report, console.width, None))


def _follow_in_lines(server: ControlClient, report: dict[str, Any], *, as_json: bool) -> NoReturn:
    while True:
        _show(report, as_json=as_json)
        sys.stdout.flush()
        time.sleep(REFRESH_SECONDS)
        report = server.ask("status")


def _follow_on_page(server: ControlClient, report: dict[str, Any]) -> NoReturn:
    from rich.console import Console
    from rich.live import Live

    from scp_server.cli.status_page import page

    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            # Asked each time, since a terminal changes its size.
            live.update(page(report, console.width, console.height), refresh=True)
            time.sleep(REFRESH_SECONDS)
            report = server.ask("status")
