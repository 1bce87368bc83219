"""`scp-server store`: sends the plan group by group, and reports on every file."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from scp_server.cli.output import ExitCode, complain, status_meaning
from scp_server.cli.peer import Peer
from scp_server.cli.store_journal import StoreJournal
from scp_server.cli.store_plan import Candidate, Group, Plan, WorkList, make_groups, make_plan
from scp_server.errors import AssociationError, LocalProtocolError
from scp_server.protocol.status import Status, StatusClass, status_class

if TYPE_CHECKING:
    from scp_server.net.requestor import Requestor

CHUNK_BYTES = 1 << 18
ATTEMPTS_PER_GROUP = 2
"""Associations tried for one group, each of those in parallel: when one dies, the files after the one in hand
get another."""


class Outcome(StrEnum):
    """What became of a file."""

    STORED = "stored"
    WARNING = "warning"
    FAILED = "failed"
    REFUSED = "refused"
    """The peer accepted no presentation context for it."""
    NOT_SENT = "not sent"
    SKIPPED = "skipped"
    STORED_BEFORE = "stored before"
    """The journal of an earlier run says that the peer has acknowledged it."""


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


@dataclass(slots=True)
class _Carried:
    """How many files an association was given."""

    files: int = 0


class Sender:
    """Sends groups of files to a peer, and keeps the result of each file that was tried."""

    def __init__(
        self,
        peer: Peer,
        progress: Progress,
        max_associations: int = 1,
        journal: StoreJournal | None = None,
    ) -> None:
        self._peer = peer
        self._progress = progress
        self._max_associations = max_associations
        self._journal = journal
        self.results: list[FileResult] = []
        self.associated = False
        """Whether there ever was an association."""
        self.journal_failed = False

    async def send(self, groups: Sequence[Group]) -> None:
        """Send all groups. Never raises for what a peer or a file does; the results say it."""
        for group in groups:
            work = WorkList(group.candidates, self._max_associations)
            workers = min(self._max_associations, len(work))
            troubles: list[str] = []
            async with asyncio.TaskGroup() as tasks:
                for number in range(workers):
                    tasks.create_task(self._work(group, work, troubles), name=f"association {number + 1}")
            while (unit := work.take()) is not None:
                for candidate in unit:
                    self._note(
                        FileResult(candidate.path, Outcome.NOT_SENT, troubles[-1], candidate=candidate)
                    )

    async def _work(self, group: Group, work: WorkList, troubles: list[str]) -> None:
        """Send what is left to do over one association after another, at most ATTEMPTS_PER_GROUP."""
        for _attempt in range(ATTEMPTS_PER_GROUP):
            carried = _Carried()
            trouble = await self._send_over_one(group, work, carried)
            if trouble:
                troubles.append(trouble)
            if not trouble or not carried.files:
                # Either all is done, or the association died before it carried anything.
                return

    async def _send_over_one(self, group: Group, work: WorkList, carried: _Carried) -> str:
        """Send over one association what `work` has, until nothing is left. Returns what ended it."""
        contexts = [(sop_class, (transfer_syntax,)) for sop_class, transfer_syntax in group.contexts]
        try:
            async with self._peer.requestor(contexts) as association:
                self.associated = True
                while (unit := work.take()) is not None:
                    try:
                        while unit:
                            carried.files += 1
                            await self._send_file(association, unit)
                    finally:
                        work.give_back(unit)
        except (AssociationError, LocalProtocolError) as error:
            return str(error)
        except OSError as error:
            return f"a file could not be read to its end: {error.strerror or error}"
        return ""

    async def _send_file(self, association: Requestor, remaining: deque[Candidate]) -> None:
        candidate = remaining[0]
        if association.accepted_context(*candidate.context) is None:
            sop_class, transfer_syntax = candidate.context
            reason = f"presentation context {sop_class} with {transfer_syntax} was not accepted"
            remaining.popleft()
            self._note(FileResult(candidate.path, Outcome.REFUSED, reason, candidate=candidate))
            return
        try:
            file = candidate.path.open("rb")
        except OSError as error:
            remaining.popleft()
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
                remaining.popleft()
                self._note(FileResult(candidate.path, Outcome.FAILED, str(error), candidate=candidate))
                raise
        remaining.popleft()
        if self._journal is not None and answer.status == Status.SUCCESS:
            self._remember(self._journal, candidate)
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

    def _remember(self, journal: StoreJournal, candidate: Candidate) -> None:
        try:
            journal.acknowledged(candidate)
        except OSError as error:
            # What was sent is safe all the same; only another run would send it again.
            complain(f"the journal cannot be written: {error.strerror}; going on without it")
            self._journal, self.journal_failed = None, True

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


def run_store(
    inputs: Sequence[Path],
    peer: Peer,
    *,
    max_associations: int = 1,
    resume: Path | None = None,
    as_json: bool,
) -> ExitCode:
    """Find, send and report. The exit code is 3 only when there was no association at all.

    Raises ConfigurationError for a journal that cannot be used.
    """
    if resume is None:
        return _run(inputs, peer, max_associations, None, as_json=as_json)
    with StoreJournal(resume, peer) as journal:
        return _run(inputs, peer, max_associations, journal, as_json=as_json)


def _run(
    inputs: Sequence[Path],
    peer: Peer,
    max_associations: int,
    journal: StoreJournal | None,
    *,
    as_json: bool,
) -> ExitCode:
    from scp_server.cli.store_report import Report, progress_bar

    plan = make_plan(inputs)
    before = [one for one in plan.candidates if journal is not None and journal.has(one)]
    known = {id(one) for one in before}
    plan.candidates = [one for one in plan.candidates if id(one) not in known]
    groups = make_groups(plan.candidates)
    total_bytes = sum(candidate.dataset_bytes for candidate in plan.candidates)
    begun = time.monotonic()
    interrupted = False
    with progress_bar(total_bytes, len(plan.candidates), at_terminal=not as_json) as advance:
        progress = Progress(advance)
        sender = Sender(peer, progress, max_associations, journal)
        try:
            asyncio.run(sender.send(groups))
        except KeyboardInterrupt:
            interrupted = True
    results = [
        *_unsendable(plan),
        *(FileResult(one.path, Outcome.STORED_BEFORE, candidate=one) for one in before),
        *sender.results,
        *_untouched(plan, sender.results),
    ]
    report = Report(results, progress.sent_bytes, time.monotonic() - begun)
    report.write(as_json=as_json)
    if not plan.candidates and not before and not interrupted:
        complain("nothing to send")
    code = exit_code(results, attempted=bool(groups), associated=sender.associated, interrupted=interrupted)
    return ExitCode.FAILED if sender.journal_failed and code is ExitCode.OK else code


def exit_code(
    results: Sequence[FileResult], *, attempted: bool, associated: bool, interrupted: bool
) -> ExitCode:
    """0 when every file that is a DICOM file was stored, and there was one."""
    if interrupted:
        return ExitCode.FAILED
    if attempted and not associated:
        return ExitCode.NO_ASSOCIATION
    stored = sum(result.outcome in (Outcome.STORED, Outcome.STORED_BEFORE) for result in results)
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
