"""What `move` and `get` share: asking, watching the peer's counters, and reporting how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scp_server.cli.output import ExitCode, complain, status_meaning, status_text
from scp_server.cli.peer import Peer
from scp_server.errors import AssociationError, LocalProtocolError, RetrieveFailed
from scp_server.observability.text import peer_text
from scp_server.protocol.status import Status

if TYPE_CHECKING:
    from scp_server.net.requestor import Requestor
    from scp_server.net.retrieving import Retrieval, RetrieveProgress, RetrieveResult
    from scp_server.objects.query import Query

_LINE_SECONDS: Final = 1.0
"""Between two lines of progress where there is no terminal."""
_MEANINGS: Final[dict[int, str]] = {
    Status.UNABLE_TO_CALCULATE_NUMBER_OF_MATCHES: "unable to calculate number of matches",
    Status.UNABLE_TO_PERFORM_SUBOPERATIONS: "unable to perform sub-operations",
    Status.MOVE_DESTINATION_UNKNOWN: "move destination unknown",
    Status.IDENTIFIER_DOES_NOT_MATCH_SOP_CLASS: "identifier does not match SOP class",
    Status.SUBOPERATIONS_COMPLETE_WITH_FAILURES: "complete, but not all succeeded",
    Status.CANCEL: "cancelled",
}


@dataclass(slots=True)
class Outcome:
    """How a retrieval went: its trouble in words (empty when all went well), and the exit code for that."""

    trouble: str = ""
    code: ExitCode = ExitCode.OK
    result: RetrieveResult | None = None
    seconds: float = 0.0

    def fail(self, trouble: str, code: ExitCode = ExitCode.FAILED) -> None:
        """Something went wrong; the first trouble is the one that is told."""
        if self.code is ExitCode.OK:
            self.trouble, self.code = trouble, code


def check_query(query: Query) -> None:
    """Find out before anybody is called what cannot be said at all. Raises QueryError."""
    from scp_server.objects.query_encoding import encode_identifier
    from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN, transfer_syntax

    encode_identifier(query, transfer_syntax(EXPLICIT_VR_LITTLE_ENDIAN))


def run_retrieval(
    peer: Peer,
    association: Callable[[], Requestor],
    ask: Callable[[Requestor], Retrieval],
    watch: Callable[[RetrieveProgress], None],
) -> Outcome:
    """Retrieve over an association of its own. Ctrl-C ends it with C-CANCEL and release."""
    outcome = Outcome()
    begun = time.monotonic()
    try:
        asyncio.run(_retrieve(peer, association, ask, watch, outcome))
    except KeyboardInterrupt:
        outcome.fail("interrupted")
    outcome.seconds = time.monotonic() - begun
    return outcome


async def _retrieve(
    peer: Peer,
    association: Callable[[], Requestor],
    ask: Callable[[Requestor], Retrieval],
    watch: Callable[[RetrieveProgress], None],
    outcome: Outcome,
) -> None:
    retrieval = None
    associated = False
    try:
        async with association() as opened:
            associated = True
            retrieval = ask(opened)
            try:
                async for progress in retrieval:
                    watch(progress)
            except RetrieveFailed as error:
                outcome.fail(f"{peer}: {_failure_text(error)}")
            except asyncio.CancelledError:
                # Ctrl-C: it has been cancelled, and the association can be released.
                outcome.fail("interrupted")
    except AssociationError as error:
        code = ExitCode.FAILED if associated else ExitCode.NO_ASSOCIATION
        outcome.fail(f"no answer from {peer}: {error}", code)
    except LocalProtocolError as error:
        outcome.fail(f"no retrieval from {peer}: {error}")
    outcome.result = retrieval.result if retrieval is not None else None
    if outcome.result is not None:
        _judge(peer, outcome, outcome.result)


def _judge(peer: Peer, outcome: Outcome, result: RetrieveResult) -> None:
    """Whatever the status says: sub-operations that failed or warned are no success."""
    counters = result.counters
    if result.status is not None and result.status != Status.SUCCESS:
        comment = f": {peer_text(result.error_comment)}" if result.error_comment else ""
        outcome.fail(f"{peer}: status {status_words(result.status)}{comment}")
    elif counters.failed or counters.warning:
        outcome.fail(f"{peer}: {counters.failed or 0} failed, {counters.warning or 0} with a warning")


def _failure_text(error: RetrieveFailed) -> str:
    comment = f": {peer_text(error.comment)}" if error.comment else ""
    return f"status {status_words(error.status)}{comment}"


def status_words(status: int) -> str:
    """A status of C-MOVE or C-GET as a number and in words (PS3.4 C.4.2.1.5, C.4.3.1.4)."""
    return f"{status_text(status)} ({_MEANINGS.get(status) or status_meaning(status)})"


def plain_result(outcome: Outcome) -> dict[str, Any]:
    """How it ended, for machines."""
    result = outcome.result
    counters = result.counters if result is not None else None
    return {
        "status": status_text(result.status) if result is not None and result.status is not None else None,
        "error_comment": peer_text(result.error_comment) if result is not None else "",
        "counters": {
            name: getattr(counters, name, None) for name in ("remaining", "completed", "failed", "warning")
        },
        "failed_sop_instance_uids": list(
            map(peer_text, result.failed_sop_instance_uids if result is not None else ())
        ),
        "cancelled": result is not None and result.cancelled,
        "error": outcome.trouble,
        "exit_code": int(outcome.code),
    }


def counter_text(progress: RetrieveProgress) -> str:
    """The peer's counters, those that it gave and that are not 0."""
    names = ("completed", "failed", "warning", "remaining")
    parts = [f"{value} {name}" for name in names if (value := getattr(progress, name))]
    return ", ".join(parts) or "none"


def complain_at_end(outcome: Outcome, summary: str) -> None:
    """The trouble, if there was any, then the summary."""
    if outcome.trouble:
        complain(outcome.trouble)
    complain(summary)


class Display:
    """Shows progress: a bar on standard error at a terminal, otherwise lines on standard output."""

    def __init__(self, bar: Any, line: Callable[[str], None] | None) -> None:
        self._bar = bar
        self._line = line
        self._next_line = 0.0
        self._task = None if bar is None else bar.add_task("", total=None, objects="", speed="")
        self._begun = time.monotonic()
        self._objects = 0
        self._bytes = 0
        self._total: int | None = None

    @property
    def has_lines(self) -> bool:
        """Neither a bar nor a document for machines: lines are to come at once."""
        return self._line is not None

    def counters(self, progress: RetrieveProgress, *, count: bool) -> None:
        """The peer's counters; with `count` they are also what has been done."""
        self._total = progress.total if progress.total is not None else self._total
        if count:
            self._objects = sum((progress.completed or 0, progress.failed or 0, progress.warning or 0))
            if self._line is not None and time.monotonic() >= self._next_line:
                self._line(counter_text(progress))
                self._next_line = time.monotonic() + _LINE_SECONDS
        self._show()

    def object_done(self) -> None:
        """One more object has come."""
        self._objects += 1
        self._show()

    def bytes_came(self, size_bytes: int) -> None:
        """So many further bytes have come."""
        self._bytes += size_bytes
        self._show()

    def _show(self) -> None:
        if self._bar is None:
            return
        seconds = max(time.monotonic() - self._begun, 1e-3)
        speed = f"{self._objects / seconds:.1f}/s"
        if self._bytes:
            speed = f"{self._bytes / 1e6:.1f} MB, {self._bytes / seconds / 1e6:.1f} MB/s, {speed}"
        total = "?" if self._total is None else str(self._total)
        self._bar.update(
            self._task,
            completed=self._objects,
            total=self._total,
            objects=f"{self._objects}/{total} objects",
            speed=speed,
        )


@contextlib.contextmanager
def display(*, as_json: bool, line: Callable[[str], None] | None = None) -> Iterator[Display]:
    """A bar where standard error is a terminal; where it is none, `line` gets lines; neither for machines."""
    if as_json or not sys.stderr.isatty():
        yield Display(None, None if as_json else line)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns: Sequence[Any] = (
        TextColumn("{task.fields[objects]}"),
        BarColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Display(bar, None)
