"""`scp-server find`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scp_server.cli.output import ExitCode
from scp_server.cli.peer import Peer
from scp_server.cli.query import read_query, run_query
from scp_server.objects.query import make_query

if TYPE_CHECKING:
    from scp_server.objects.query_model import QueryOptions


def run_find(
    peer: Peer,
    query: str,
    *,
    level: str | None,
    model: str,
    limit: int | None,
    options: QueryOptions,
    as_json: bool,
) -> ExitCode:
    """Ask for patients, studies, series or images. Raises QueryError."""
    asked = make_query(read_query(query), level=level, model=model)
    return run_query(peer, asked, limit=limit, options=options, as_json=as_json)
