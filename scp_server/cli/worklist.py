"""`scp-server worklist`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scp_server.cli.output import ExitCode
from scp_server.cli.peer import Peer
from scp_server.cli.query import read_query, run_query
from scp_server.objects.query import make_query
from scp_server.objects.query_model import QueryModel

if TYPE_CHECKING:
    from scp_server.objects.query_model import QueryOptions


def run_worklist(
    peer: Peer, query: str, *, limit: int | None, options: QueryOptions, as_json: bool
) -> ExitCode:
    """Ask for what is scheduled. Raises QueryError."""
    asked = make_query(read_query(query), model=QueryModel.WORKLIST)
    return run_query(peer, asked, limit=limit, options=options, as_json=as_json)
