"""The command that sends files: its options, for `main` to register."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from scp_server.cli.ending import end
from scp_server.cli.options import AsJSON, CalledAETitle, CallingAETitle, Host, Port, Timeout
from scp_server.protocol.negotiation import (
    DICOM_APPLICATION_CONTEXT,
    DICOS_V02A_ALTERNATE_APPLICATION_CONTEXT,
    DICOS_V02A_APPLICATION_CONTEXT,
    DICOS_V03_APPLICATION_CONTEXT,
    is_uid,
)

if TYPE_CHECKING:
    from scp_server.protocol.items import UserIdentityRQ

_APPLICATION_CONTEXTS: Final = {
    "dicom": DICOM_APPLICATION_CONTEXT,
    "dicos-v03": DICOS_V03_APPLICATION_CONTEXT,
    "dicos-v02a": DICOS_V02A_APPLICATION_CONTEXT,
    "dicos-v02a-alternate": DICOS_V02A_ALTERNATE_APPLICATION_CONTEXT,
}
_MAX_PASSCODE_BYTES: Final = 65_535
"""Longest field of a user identity (PS3.7 D.3.3.7.1)."""


class Framing(StrEnum):
    """How command set and data set go out."""

    STANDARD = "standard"
    GLUED = "glued"
    """In one PDV stream, as DICOS scanners send."""


def _application_context(text: str) -> str:
    name = _APPLICATION_CONTEXTS.get(text, text)
    if not is_uid(name):
        raise typer.BadParameter(f"must be {', '.join(_APPLICATION_CONTEXTS)} or a UID")
    return name


def store(
    inputs: Annotated[
        list[Path],
        typer.Option(
            "--input",
            metavar="FILE_OR_DIR",
            exists=True,
            help="DICOM or DICOS file, or folder with all below it. May be given several times.",
        ),
    ],
    host: Host = "127.0.0.1",
    port: Port = 11_112,
    ae_title: CalledAETitle = "ANY-SCP",
    calling_ae_title: CallingAETitle = "SCP_SERVER_SCU",
    application_context: Annotated[
        str,
        typer.Option(
            "--application-context",
            metavar="dicom|dicos-v03|dicos-v02a|dicos-v02a-alternate|UID",
            callback=_application_context,
            help="Application context name.",
        ),
    ] = "dicom",
    framing: Annotated[
        Framing,
        typer.Option("--framing", help="Glued: command and data set in one stream, as DICOS scanners."),
    ] = Framing.STANDARD,
    user: Annotated[
        str | None, typer.Option("--user", metavar="NAME", help="User identity to send.", show_default=False)
    ] = None,
    passcode_file: Annotated[
        Path | None,
        typer.Option(
            "--passcode-file",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="The user's passcode is the first line of this file.",
            show_default=False,
        ),
    ] = None,
    max_associations: Annotated[
        int,
        typer.Option("--max-associations", metavar="N", min=1, max=64, help="Send over so many at once."),
    ] = 1,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FILE",
            dir_okay=False,
            help="Journal of what was stored: what is in it is not sent again.",
            show_default=False,
        ),
    ] = None,
    timeout: Timeout = 60.0,
    as_json: AsJSON = False,
) -> None:
    """Send files to a peer (C-STORE). Data sets go out exactly as they lie in their files.

    Files in a folder that are no DICOM files are skipped and listed; a file that is named must be one.

    Example: scp-server store --input ./study --input extra.dcm --host 127.0.0.1 --port 11112
    """
    from scp_server.cli.peer import Peer
    from scp_server.cli.store import run_store

    peer = Peer(
        host,
        port,
        ae_title,
        calling_ae_title,
        timeout,
        application_context,
        _user_identity(user, passcode_file),
        framing is Framing.GLUED,
    )
    end(lambda: run_store(inputs, peer, max_associations=max_associations, resume=resume, as_json=as_json))


def _user_identity(user: str | None, passcode_file: Path | None) -> UserIdentityRQ | None:
    """User name alone (type 1), or with a passcode (type 2) (PS3.7 D.3.3.7.1); no answer is asked for."""
    from scp_server.protocol.items import UserIdentityRQ

    if user is None:
        if passcode_file is not None:
            raise typer.BadParameter("--passcode-file needs --user")
        return None
    if passcode_file is None:
        return UserIdentityRQ(1, False, user.encode("utf-8", "surrogateescape"))
    try:
        passcode = passcode_file.read_bytes().split(b"\n")[0].removesuffix(b"\r")
    except OSError as error:
        raise typer.BadParameter(f"{passcode_file} cannot be read: {error.strerror}") from error
    if not 0 < len(passcode) <= _MAX_PASSCODE_BYTES:
        raise typer.BadParameter(f"{passcode_file} has no passcode in its first line, or too long a one")
    return UserIdentityRQ(2, False, user.encode("utf-8", "surrogateescape"), passcode)
