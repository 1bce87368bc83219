"""The commands that have a peer send what it has: their options, for `main` to register."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scp_server.cli.ending import end
from scp_server.cli.options import (
    AsJSON,
    CalledAETitle,
    CallingAETitle,
    Host,
    Port,
    Query,
    Timeout,
    check_ae_title,
)

Level = Annotated[
    str | None,
    typer.Option(
        "--level",
        metavar="PATIENT|STUDY|SERIES|IMAGE",
        help="Default: that of the lowest key.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="study|patient",
        help="Information model; default patient with a PatientID, else study.",
        show_default=False,
    ),
]


def move(
    query: Query,
    destination: Annotated[
        str,
        typer.Option(
            "--dest",
            metavar="AET",
            callback=check_ae_title,
            help="AE title of the destination; the peer must know its address.",
            show_default=False,
        ),
    ],
    host: Host = "127.0.0.1",
    port: Port = 11_112,
    ae_title: CalledAETitle = "ANY-SCP",
    calling_ae_title: CallingAETitle = "SCP_SERVER_SCU",
    level: Level = None,
    model: Model = None,
    timeout: Timeout = 60.0,
    as_json: AsJSON = False,
) -> None:
    """Have a peer send objects to another AE (C-MOVE).

    The query has unique keys only: PatientID, StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID; several
    UIDs as a list at the lowest level. Ctrl-C cancels.

    Example: scp-server move --query '{"StudyInstanceUID": "1.2.840.99.1"}' --dest VIEWER --port 11112
    """
    from scp_server.cli.move import run_move
    from scp_server.cli.peer import Peer

    peer = Peer(host, port, ae_title, calling_ae_title, timeout)
    end(lambda: run_move(peer, query, destination=destination, level=level, model=model, as_json=as_json))


def get(
    query: Query,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            metavar="DIR",
            file_okay=False,
            help="Where objects go, a file each; made where needed.",
            show_default=False,
        ),
    ],
    host: Host = "127.0.0.1",
    port: Port = 11_112,
    ae_title: CalledAETitle = "ANY-SCP",
    calling_ae_title: CallingAETitle = "SCP_SERVER_SCU",
    level: Level = None,
    model: Model = None,
    sop_classes: Annotated[
        list[str] | None,
        typer.Option(
            "--sop-class",
            metavar="UID",
            help="SOP class to receive, in any transfer syntax; several times. Default: the usual ones.",
            show_default=False,
        ),
    ] = None,
    transfer_syntaxes: Annotated[
        list[str] | None,
        typer.Option(
            "--transfer-syntax",
            metavar="UID",
            help="Receive in this one only; several times.",
            show_default=False,
        ),
    ] = None,
    max_objects: Annotated[
        int,
        typer.Option("--max-objects", metavar="N", min=1, max=65_535, help="Cancel above so many objects."),
    ] = 65_535,
    max_bytes: Annotated[
        int, typer.Option("--max-bytes", metavar="N", min=1, help="Cancel above so many bytes.")
    ] = 1 << 40,
    timeout: Timeout = 60.0,
    as_json: AsJSON = False,
) -> None:
    """Get objects from a peer into a folder (C-GET), data sets exactly as they are received.

    The query is as for move. What is in the folder is never written over. Ctrl-C cancels.

    Example: scp-server get --query '{"StudyInstanceUID": "1.2.840.99.1"}' --output ./study --port 11112
    """
    from scp_server.cli.get import run_get
    from scp_server.cli.peer import Peer

    peer = Peer(host, port, ae_title, calling_ae_title, timeout)
    end(
        lambda: run_get(
            peer,
            query,
            output=output,
            level=level,
            model=model,
            sop_classes=sop_classes or (),
            transfer_syntaxes=transfer_syntaxes or (),
            max_objects=max_objects,
            max_bytes=max_bytes,
            as_json=as_json,
        )
    )
