"""`scp-server store`: sends the plan group by group, and reports on every file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from scp_server.cli.output import ExitCode, complain, status_meaning
from scp_server.cli.peer import Peer
from scp_server.cli.store_plan import Candidate, Group, Plan, make_groups, make_plan
from scp_server.errors import AssociationError, LocalProtocolError
from scp_server.protocol.status import StatusClass, status_class

if TYPE_CHECKING:
    from scp_server.net.requestor import Requestor

CHUNK_BYTES = 1 << 18
ATTEMPTS_PER_GROUP = 2
"""Associations tried for one group: when one dies, the files after the one in hand get another."""


class Outcome(StrEnum):
    """What became of a file."""

    STORED = "stored"
    WARNING = "warning"
    FAILED = "failed"
    REFUSED = "refused"
    """The peer accepted no presentation context for it."""
    NOT_SENT = "not sent"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one file, in full. `status` is None where there was no answer."""

    path: Path
    outcome: Outcome
    reason: str = ""
    status: int | None = None
    comment: str = ""
    candidate: Candidate | None = None


@dataclass(slots=True)
class Progress:
    """Counts for the summary and the progress bar; `advance` hears of bytes and finished files."""

    advance: Callable[[int, int], None]
    sent_bytes: int = 0

    def sent(self, size_bytes: int) -> None:
        """So many bytes of a data set were handed to the association."""
        self.sent_bytes += size_bytes
        self.advance(size_bytes, 0)

    def file_done(self) -> None:
        """One more file has its result."""
        self.advance(0, 1)


class Sender:
    """Sends groups of files to a peer, and keeps the result of each file that was tried."""

    def __init__(self, peer: Peer, progress: Progress) -> None:
        self._peer = peer
        self._progress = progress
        self.results: list[FileResult] = []
        self.associated = False
        """Whether there ever was an association."""

    async def send(self, groups: Sequence[Group]) -> None:
        """Send all groups. Never raises for what a peer or a file does; the results say it."""
        for group in groups:
            remaining = list(group.candidates)
            trouble = ""
            for _attempt in range(ATTEMPTS_PER_GROUP):
                associated_before = len(remaining)
                trouble = await self._send_group(group, remaining)
                if not remaining or associated_before == len(remaining):
                    # Either all is done, or the association died before it carried anything.
                    break
            for candidate in remaining:
                self._note(FileResult(candidate.path, Outcome.NOT_SENT, trouble, candidate=candidate))

    async def _send_group(self, group: Group, remaining: list[Candidate]) -> str:
        """Send over one association, taking from `remaining` what has a result. Returns what ended it."""
        contexts = [(sop_class, (transfer_syntax,)) for sop_class, transfer_syntax in group.contexts]
        try:
            async with self._peer.requestor(contexts) as association:
                self.associated = True
                while remaining:
                    await self._send_file(association, remaining)
        except (AssociationError, LocalProtocolError) as error:
            return str(error)
        except OSError as error:
            return f"a file could not be read to its end: {error.strerror or error}"
        return ""

    async def _send_file(self, association: Requestor, remaining: list[Candidate]) -> None:
        candidate = remaining[0]
        if association.accepted_context(*candidate.context) is None:
            sop_class, transfer_syntax = candidate.context
            reason = f"presentation context {sop_class} with {transfer_syntax} was not accepted"
            remaining.pop(0)
            self._note(FileResult(candidate.path, Outcome.REFUSED, reason, candidate=candidate))
            return
        try:
            file = candidate.path.open("rb")
        except OSError as error:
            remaining.pop(0)
            reason = f"cannot be read: {error.strerror}"
            self._note(FileResult(candidate.path, Outcome.FAILED, reason, candidate=candidate))
            return
        with file:
            try:
                answer = await association.store(
                    candidate.sop_class_uid,
                    candidate.sop_instance_uid,
                    candidate.transfer_syntax_uid,
                    _chunks(file, candidate),
                    progress=self._progress.sent,
                )
            except (AssociationError, LocalProtocolError, OSError) as error:
                remaining.pop(0)
                self._note(FileResult(candidate.path, Outcome.FAILED, str(error), candidate=candidate))
                raise
        remaining.pop(0)
        self._note(
            FileResult(
                candidate.path,
                _OUTCOMES.get(status_class(answer.status), Outcome.FAILED),
                status_meaning(answer.status),
                answer.status,
                answer.error_comment,
                candidate,
            )
        )

    def _note(self, result: FileResult) -> None:
        self.results.append(result)
        self._progress.file_done()


_OUTCOMES = {StatusClass.SUCCESS: Outcome.STORED, StatusClass.WARNING: Outcome.WARNING}


async def _chunks(file: BinaryIO, candidate: Candidate) -> AsyncIterator[bytes]:
    """The data set of a file, as it lies there. Raises OSError when the file has become shorter."""
    file.seek(candidate.dataset_offset_bytes)
    left = candidate.dataset_bytes
    while left:
        chunk = file.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise OSError(f"{candidate.path} became shorter while it was sent")
        left -= len(chunk)
        yield chunk


def run_store(inputs: Sequence[Path], peer: Peer, *, as_json: bool) -> ExitCode:
    """Find, send and report. The exit code is 3 only when there was no association at all."""
    from scp_server.cli.store_report import Report, progress_bar

    plan = make_plan(inputs)
    groups = make_groups(plan.candidates)
    total_bytes = sum(candidate.dataset_bytes for candidate in plan.candidates)
    begun = time.monotonic()
    interrupted = False
    with progress_bar(total_bytes, len(plan.candidates), at_terminal=not as_json) as advance:
        progress = Progress(advance)
        sender = Sender(peer, progress)
        try:
            asyncio.run(sender.send(groups))
        except KeyboardInterrupt:
            interrupted = True
    results = [*_unsendable(plan), *sender.results, *_untouched(plan, sender.results)]
    report = Report(results, progress.sent_bytes, time.monotonic() - begun)
    report.write(as_json=as_json)
    if not plan.candidates and not interrupted:
        complain("nothing to send")
    return exit_code(results, attempted=bool(groups), associated=sender.associated, interrupted=interrupted)


def exit_code(
    results: Sequence[FileResult], *, attempted: bool, associated: bool, interrupted: bool
) -> ExitCode:
    """0 when every file that is a DICOM file was stored, and there was one."""
    if interrupted:
        return ExitCode.FAILED
    if attempted and not associated:
        return ExitCode.NO_ASSOCIATION
    stored = sum(result.outcome is Outcome.STORED for result in results)
    skipped = sum(result.outcome is Outcome.SKIPPED for result in results)
    return ExitCode.OK if stored and stored + skipped == len(results) else ExitCode.FAILED


def _unsendable(plan: Plan) -> list[FileResult]:
    return [
        FileResult(found.path, Outcome.FAILED if found.is_failure else Outcome.SKIPPED, found.reason)
        for found in plan.unsendable
    ]


def _untouched(plan: Plan, results: Sequence[FileResult]) -> list[FileResult]:
    """What an interruption left without a result."""
    done = {result.path for result in results}
    return [
        FileResult(candidate.path, Outcome.NOT_SENT, "interrupted", candidate=candidate)
        for candidate in plan.candidates
        if candidate.path not in done
    ]
