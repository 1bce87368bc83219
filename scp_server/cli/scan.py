"""`scp-server scan show`, of a running server."""

from __future__ import annotations

from pathlib import Path

from scp_server.cli.control_client import ControlClient
from scp_server.cli.data_dir import data_folder
from scp_server.cli.output import ExitCode, say_json


def run_show(wanted: str, data_dir: Path | None, *, as_json: bool) -> ExitCode:
    """Print a scan, or those that have the id."""
    with ControlClient(data_folder(data_dir)) as server:
        found = server.ask("scan.show", id=wanted)
    if as_json:
        say_json(found)
        return ExitCode.OK
    from rich.console import Console

    from scp_server.cli.scan_page import matches_page, scan_page

    page = scan_page(found["scan"]) if "scan" in found else matches_page(found["matches"], found["more"])
    Console().print(page)
    return ExitCode.OK
