"""The command that judges files: its options, for `main` to register."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scp_server.cli.ending import end
from scp_server.cli.options import AsJSON


def validate(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE_OR_DIR",
            exists=True,
            help="DICOM or DICOS file, or folder with all below it.",
            show_default=False,
        ),
    ],
    as_json: AsJSON = False,
) -> None:
    """Judge files: whether each object has what its class demands, and whether that agrees.

    The exit code is 1 where an error was found or a file could not be read. Files in a folder that are no
    DICOM files are passed over; a file that is named must be one.

    Example: scp-server validate ./study bag.dcs
    """
    from scp_server.cli.validate import run_validate

    end(lambda: run_validate(paths, as_json=as_json))
