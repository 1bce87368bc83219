"""`scp-server conformance`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scp_server.cli.ending import end
from scp_server.cli.options import AsJSON, ConfigFile


class Format(StrEnum):
    """How the statement is printed."""

    MD = "md"
    JSON = "json"


def conformance(
    config: ConfigFile = None,
    form: Annotated[
        Format, typer.Option("--format", help="Markdown for people, JSON for machines.")
    ] = Format.MD,
    as_json: AsJSON = False,
) -> None:
    """Print the conformance statement of the running configuration: file, then environment.

    Example: scp-server conformance --config scp-server.toml --format json
    """
    end(lambda: run_conformance(config, as_json=as_json or form is Format.JSON))


def run_conformance(config: Path | None, *, as_json: bool) -> int:
    """Print what follows from the settings. Raises ConfigurationError."""
    from scp_server.cli.output import ExitCode, say, say_json
    from scp_server.runtime.conformance import statement
    from scp_server.runtime.conformance_page import page
    from scp_server.settings import load_settings

    said = statement(load_settings(config))
    if as_json:
        say_json(said)
    else:
        say(page(said).rstrip("\n"))
    return ExitCode.OK
