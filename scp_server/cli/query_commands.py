"""The commands that ask a peer: their options, for `main` to register."""

from __future__ import annotations

from typing import Annotated

import typer

from scp_server.cli.ending import end
from scp_server.cli.options import (
    AsJSON,
    CalledAETitle,
    CallingAETitle,
    Fuzzy,
    Host,
    Limit,
    Port,
    Query,
    Timeout,
)


def find(
    query: Query,
    host: Host = "127.0.0.1",
    port: Port = 11_112,
    ae_title: CalledAETitle = "ANY-SCP",
    calling_ae_title: CallingAETitle = "SCP_SERVER_SCU",
    level: Annotated[
        str | None,
        typer.Option(
            "--level", metavar="PATIENT|STUDY|SERIES|IMAGE", help="Default: STUDY.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="study|patient|worklist", help="Information model.")
    ] = "study",
    limit: Limit = None,
    relational: Annotated[bool, typer.Option("--relational", help="Ask for relational queries.")] = False,
    date_time: Annotated[
        bool, typer.Option("--date-time", help="Ask that a date and a time range mean one span.")
    ] = False,
    fuzzy: Fuzzy = False,
    empty_value: Annotated[
        bool, typer.Option("--empty-value", help='Ask that a value of "" (two quotes) finds no value.')
    ] = False,
    multiple_value: Annotated[
        bool, typer.Option("--multiple-value", help="Ask that all of several values must match.")
    ] = False,
    timeout: Timeout = 60.0,
    as_json: AsJSON = False,
) -> None:
    """Ask a peer for patients, studies, series or images (C-FIND).

    A key is a keyword or a tag; null or "" asks for a column. Without any such key the usual ones of the
    level are asked for. A table at a terminal, otherwise lines with tabs. Ctrl-C cancels the search.

    Example: scp-server find --query '{"PatientName": "DOE*", "StudyDate": "20240101-"}' --port 11112
    """
    from scp_server.cli.find import run_find
    from scp_server.cli.peer import Peer
    from scp_server.objects.query_model import QueryOptions

    peer = Peer(host, port, ae_title, calling_ae_title, timeout)
    options = QueryOptions(relational, date_time, fuzzy, empty_value, multiple_value)
    end(
        lambda: run_find(peer, query, level=level, model=model, limit=limit, options=options, as_json=as_json)
    )


def worklist(
    query: Query = "{}",
    host: Host = "127.0.0.1",
    port: Port = 11_112,
    ae_title: CalledAETitle = "ANY-SCP",
    calling_ae_title: CallingAETitle = "SCP_SERVER_SCU",
    limit: Limit = None,
    fuzzy: Fuzzy = False,
    timeout: Timeout = 60.0,
    as_json: AsJSON = False,
) -> None:
    """Ask a peer what is scheduled (Modality Worklist C-FIND).

    Example: scp-server worklist --query '{"ScheduledProcedureStepSequence": {"Modality": "CT"}}'
    """
    from scp_server.cli.peer import Peer
    from scp_server.cli.worklist import run_worklist
    from scp_server.objects.query_model import QueryOptions

    peer = Peer(host, port, ae_title, calling_ae_title, timeout)
    options = QueryOptions(fuzzy_person_names=fuzzy)
    end(lambda: run_worklist(peer, query, limit=limit, options=options, as_json=as_json))
