"""`scp-server get`: what a peer has comes into a folder, a file for each object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scp_server.cli.output import ExitCode, fail, say, say_json, status_meaning, status_text
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
from scp_server.objects.storage_contexts import storage_contexts
from scp_server.observability.text import peer_text, printable
from scp_server.protocol.status import Status

if TYPE_CHECKING:
    from scp_server.net.receiving import ReceivedObject
    from scp_server.storage.received_folder import ReceivedFile


class ObjectOutcome(StrEnum):
    """What became of an object."""

    STORED = "stored"
    ALREADY_THERE = "already there"
    REFUSED = "refused"
    """By us: its status says why."""
    BROKEN_OFF = "broken off"
    """The association ended first."""


@dataclass(frozen=True, slots=True)
class ObjectResult:
    """One object that the peer sent, and the file that holds it."""

    received: ReceivedObject
    outcome: ObjectOutcome
    path: Path | None

    @property
    def is_kept(self) -> bool:
        """Whether its bytes lie in the folder."""
        return self.outcome in (ObjectOutcome.STORED, ObjectOutcome.ALREADY_THERE)

    def plain(self) -> dict[str, Any]:
        """For machines."""
        received = self.received
        return {
            "sop_class_uid": peer_text(received.sop_class_uid),
            "sop_instance_uid": peer_text(received.sop_instance_uid),
            "transfer_syntax_uid": received.transfer_syntax_uid,
            "dataset_bytes": received.dataset_bytes,
            "status": None if received.status is None else status_text(received.status),
            "outcome": self.outcome.value.replace(" ", "_"),
            "file": None if self.path is None else str(self.path),
            "reason": peer_text(received.error_comment),
        }

    def line(self) -> str:
        """For people."""
        what = peer_text(self.received.sop_instance_uid) if self.path is None else printable(str(self.path))
        status = self.received.status
        reason = f": {peer_text(self.received.error_comment)}" if self.received.error_comment else ""
        if status in (None, Status.SUCCESS):
            return f"{self.outcome.value}: {what}{reason}"
        return f"{self.outcome.value}: {status_text(status)} {what}: {status_meaning(status)}{reason}"


class Results:
    """What has come. A file is announced right before its object's answer (`ReceivedFolder`)."""

    def __init__(self, tell: Callable[[ObjectResult], None]) -> None:
        self._tell = tell
        self._file: ReceivedFile | None = None
        self.results: list[ObjectResult] = []

    def file_kept(self, file: ReceivedFile) -> None:
        """The object in hand has its file."""
        self._file = file

    def object_received(self, received: ReceivedObject) -> None:
        """The object in hand has been answered, or never will be."""
        file, self._file = self._file, None
        outcome = ObjectOutcome.REFUSED
        if file is not None:
            outcome = ObjectOutcome.STORED if file.is_new else ObjectOutcome.ALREADY_THERE
        elif received.status is None:
            outcome = ObjectOutcome.BROKEN_OFF
        result = ObjectResult(received, outcome, None if file is None else file.path)
        self.results.append(result)
        self._tell(result)


def run_get(
    peer: Peer,
    query: str,
    *,
    output: Path,
    level: str | None,
    model: str | None,
    sop_classes: Sequence[str],
    transfer_syntaxes: Sequence[str],
    max_objects: int,
    max_bytes: int,
    as_json: bool,
) -> ExitCode:
    """Bring objects into a folder. Raises ConfigurationError, and StorageError for the folder."""
    from scp_server.net.cancellable import IDENTIFIER_TRANSFER_SYNTAXES
    from scp_server.storage.received_folder import ReceivedFolder

    asked = make_retrieve(read_query(query), level=level, model=model)
    check_query(asked)
    receives = storage_contexts(sop_classes, transfer_syntaxes)
    contexts = [(asked.model.get_sop_class_uid, IDENTIFIER_TRANSFER_SYNTAXES)]
    with display(as_json=as_json, line=say) as shown:
        lines_at_once = shown.has_lines

        def tell(result: ObjectResult) -> None:
            shown.object_done()
            if lines_at_once:
                say(result.line())

        came = Results(tell)
        with ReceivedFolder(
            output,
            source_ae_title=peer.called_ae_title,
            receiving_ae_title=peer.calling_ae_title,
            on_bytes=shown.bytes_came,
            on_file=came.file_kept,
        ) as folder:
            outcome = run_retrieval(
                peer,
                lambda: peer.requestor(
                    contexts, receives=receives, max_objects=max_objects, max_bytes=max_bytes
                ),
                lambda association: association.get(asked, receive=folder, on_object=came.object_received),
                lambda progress: shown.counters(progress, count=False),
            )
    if outcome.result is None and as_json:
        return fail(outcome.trouble, outcome.code, as_json=True)
    _judge(outcome, came.results)
    if as_json:
        objects = [result.plain() for result in came.results]
        say_json({"objects": objects, **plain_result(outcome), "summary": _counts(outcome, came.results)})
    elif not lines_at_once:
        for result in came.results:
            say(result.line())
    complain_at_end(outcome, _summary(outcome, came.results))
    return outcome.code


def _judge(outcome: Outcome, results: Sequence[ObjectResult]) -> None:
    """What the peer calls a success is one only when its objects are here."""
    kept = sum(result.is_kept for result in results)
    if kept != len(results):
        outcome.fail(f"{len(results) - kept} of {len(results)} objects were not kept")
    completed = outcome.result.counters.completed if outcome.result is not None else None
    if completed is not None and completed != kept:
        outcome.fail(f"the peer counts {completed} objects as sent, {kept} came")


def _counts(outcome: Outcome, results: Sequence[ObjectResult]) -> dict[str, Any]:
    counts = Counter(result.outcome for result in results)
    size_bytes = sum(result.received.dataset_bytes for result in results)
    return {
        "objects": len(results),
        **{one.value.replace(" ", "_"): counts[one] for one in ObjectOutcome},
        "bytes": size_bytes,
        "seconds": round(outcome.seconds, 3),
        "bytes_per_second": round(size_bytes / outcome.seconds) if outcome.seconds > 0 else 0,
    }


def _summary(outcome: Outcome, results: Sequence[ObjectResult]) -> str:
    counts = Counter(result.outcome for result in results)
    parts = [f"{counts[one]} {one.value}" for one in ObjectOutcome if counts[one]]
    size = sum(result.received.dataset_bytes for result in results) / 1e6
    rate = size / outcome.seconds if outcome.seconds > 0 else 0.0
    peer = "" if outcome.result is None else f"; the peer counts: {counter_text(outcome.result.counters)}"
    return (
        f"{len(results)} objects: {', '.join(parts) or 'none'}; "
        f"{size:.1f} MB in {outcome.seconds:.2f} s ({rate:.1f} MB/s){peer}"
    )
