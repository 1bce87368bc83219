"""The options that several commands have, each with one meaning and one help text."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


def check_ae_title(text: str) -> str:
    """An AE title that a request can carry (PS3.8 9.3.2), for the commands that do not load the settings."""
    title = text.strip(" ")
    if not (0 < len(title) <= 16 and title.isascii() and title.isprintable()) or "\\" in title:
        raise typer.BadParameter("must be 1 to 16 printable ASCII characters without a backslash")
    return title


Host = Annotated[str, typer.Option("--host", metavar="HOST", help="Name or address of the peer.")]
Port = Annotated[int, typer.Option("--port", metavar="N", min=1, max=65_535, help="TCP port of the peer.")]
CalledAETitle = Annotated[
    str, typer.Option("--ae-title", metavar="CALLED", callback=check_ae_title, help="AE title of the peer.")
]
CallingAETitle = Annotated[
    str, typer.Option("--calling-ae-title", metavar="T", callback=check_ae_title, help="Our own AE title.")
]
Timeout = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long the peer may take for each answer."),
]
AsJSON = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for machines.")]
Query = Annotated[
    str,
    typer.Option(
        "--query",
        metavar="JSON",
        help="Keys and values, as JSON or as @FILE with JSON in it.",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Cancel after so many matches.", show_default=False),
]
Fuzzy = Annotated[bool, typer.Option("--fuzzy", help="Ask for fuzzy matching of person names.")]


class StatementFormat(StrEnum):
    """How a conformance statement is written."""

    MD = "md"
    JSON = "json"


ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file (TOML).", show_default=False)
]

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Data folder of the server; default SCP_SERVER_DATA_DIR, else ./scp-data.",
        show_default=False,
    ),
]
QuarantineIds = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Ids that quarantine list shows.", show_default=False)
]
