"""The command `findings list`, with its options."""

from __future__ import annotations

from typing import Annotated

import typer

from scp_server.cli.ending import end
from scp_server.cli.options import AsJSON, DataDir

findings_app = typer.Typer(
    help="See what validations have found in stored objects.\n\n"
    "Example: scp-server findings list --severity error --data-dir /data",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@findings_app.command("list")
def findings_list(
    severity: Annotated[
        str, typer.Option("--severity", metavar="error|warning|info", help="Of this severity.")
    ] = "",
    code: Annotated[str, typer.Option("--code", metavar="CODE", help="Of this kind, such as uid.")] = "",
    study: Annotated[str, typer.Option("--study", metavar="UID", help="In this study.")] = "",
    data_dir: DataDir = None,
    as_json: AsJSON = False,
) -> None:
    """List what was found in the objects that are stored, those that came first first.

    Example: scp-server findings list --severity error --data-dir /data
    """
    from scp_server.cli.findings import run_list

    end(lambda: run_list(data_dir, severity=severity, code=code, study=study, as_json=as_json))
