"""`scp-server move`."""

from __future__ import annotations

from scp_server.cli.output import ExitCode, fail, say, say_json
from scp_server.cli.peer import Peer
from scp_server.cli.query import read_query
from scp_server.cli.retrieve import (
    Outcome,
    check_query,
    complain_at_end,
    counter_text,
    display,
    plain_result,
    run_retrieval,
)
from scp_server.objects.retrieve import make_retrieve
from scp_server.observability.text import peer_text


def run_move(
    peer: Peer, query: str, *, destination: str, level: str | None, model: str | None, as_json: bool
) -> ExitCode:
    """Have a peer send objects to another AE. Raises QueryError."""
    from scp_server.net.cancellable import IDENTIFIER_TRANSFER_SYNTAXES

    asked = make_retrieve(read_query(query), level=level, model=model)
    check_query(asked)
    contexts = [(asked.model.move_sop_class_uid, IDENTIFIER_TRANSFER_SYNTAXES)]
    with display(as_json=as_json, line=say) as shown:
        outcome = run_retrieval(
            peer,
            lambda: peer.requestor(contexts),
            lambda association: association.move(asked, destination=destination),
            lambda progress: shown.counters(progress, count=True),
        )
    if as_json and outcome.result is None:
        return fail(outcome.trouble, outcome.code, as_json=True)
    if as_json:
        say_json(_report(outcome, destination))
    elif outcome.result is not None:
        for uid in outcome.result.failed_sop_instance_uids:
            say(f"failed: {peer_text(uid)}")
    complain_at_end(outcome, _summary(outcome, destination))
    return outcome.code


def _report(outcome: Outcome, destination: str) -> dict[str, object]:
    """What the peer tells of single instances is which of them failed."""
    result = plain_result(outcome)
    instances = [{"sop_instance_uid": uid, "outcome": "failed"} for uid in result["failed_sop_instance_uids"]]
    return {
        "destination": destination,
        "instances": instances,
        **result,
        "seconds": round(outcome.seconds, 3),
    }


def _summary(outcome: Outcome, destination: str) -> str:
    counters = "nothing known" if outcome.result is None else counter_text(outcome.result.counters)
    return f"to {destination}: {counters}; in {outcome.seconds:.2f} s"
