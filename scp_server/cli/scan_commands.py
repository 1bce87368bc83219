"""The command `scan show`, with its options."""

from __future__ import annotations

from typing import Annotated

import typer

from scp_server.cli.ending import end
from scp_server.cli.options import AsJSON, DataDir

scan_app = typer.Typer(
    help="Look at DICOS scans and what was decided on them.\n\nExample: scp-server scan show BAG0042",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@scan_app.callback()
def _scan() -> None:
    pass


@scan_app.command("show")
def scan_show(
    scan_id: Annotated[
        str,
        typer.Argument(metavar="ID", help="OOI ID, Scan ID or Study Instance UID.", show_default=False),
    ],
    data_dir: DataDir = None,
    as_json: AsJSON = False,
) -> None:
    """Show what has come of a scan, the reports on it, which of them decides, and why.

    The running server is asked. Where several scans have the ID they are listed.

    Example: scp-server scan show BAG0042 --data-dir /data
    """
    from scp_server.cli.scan import run_show

    end(lambda: run_show(scan_id, data_dir, as_json=as_json))
