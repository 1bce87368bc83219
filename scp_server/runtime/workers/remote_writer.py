"""The index's writing side where another process writes: what is asked for goes there, batch by batch.

An index has one writer. The other processes have this in its place: their thread for writing takes what
waits, packs its headers, sends all of it as one message and waits for the answers, while the primary's writer
puts what came from all processes into its transactions. So under load batches form on both sides.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple, cast

from scp_server.errors import IndexFailure
from scp_server.index.base import DuplicatePolicy, IndexEntry
from scp_server.index.batching import OutcomeUnknown
from scp_server.index.deciding import DecisionWriter
from scp_server.index.event_writing import EventWriter
from scp_server.index.events import LogRequest, Work
from scp_server.index.removal import RemoveRequest
from scp_server.index.store import SqlIndex
from scp_server.index.transactions import IndexRequest
from scp_server.index.writer import AddRequest
from scp_server.objects.summary import InstanceSummary
from scp_server.observability.logs import get_logger
from scp_server.runtime.workers.framing import MAX_FRAME_BYTES, FrameReader, encoded, receive, send

log = get_logger(__name__)

_MOST_LONG_BYTES: Final = MAX_FRAME_BYTES // 8
"""Packed headers, and files that the index is to keep, of one message, beside what exceeds it."""
_LONGEST_BYTES: Final = MAX_FRAME_BYTES // 2
_READ_BYTES: Final = 1 << 18

_SUMMARY_FIELDS: Final = tuple(each.name for each in fields(InstanceSummary))
_ENTRY_FIELDS: Final = tuple(
    each.name for each in fields(IndexEntry) if each.name not in ("summary", "header")
)


@dataclass(frozen=True, slots=True)
class PackedHeader:
    """A header that was packed in another process."""

    data: bytes

    def pack(self) -> bytes:
        """See `PackableHeader.pack`."""
        return self.data


class _Addition(NamedTuple):
    """An entry as it is sent: values without names, and of the summary only what there is."""

    summary: dict[int, Any]
    values: tuple[Any, ...]
    header: bytes
    policy: str


_Sent = _Addition | RemoveRequest | LogRequest


class RemoteWriter:
    """A `Writer` at the other end of `connection`, which it closes at the end.

    Once that is broken nothing can be written any more, and `broken` is called, in the writing thread. Who
    waits is cancelled: what was asked for last may be in the index or not. Its object stays in flight, its
    association is aborted, and whoever recovers what this process leaves finds out.
    """

    def __init__(self, connection: socket.socket, broken: Callable[[], None] = lambda: None) -> None:
        self._connection = connection
        self._answers = connection.makefile("rb")
        self._broken = broken
        self.events = EventWriter()
        """Remembers nothing here."""
        self.decisions = DecisionWriter(self.events)
        """Decides nothing here."""
        self.gone: deque[str] = deque()
        """Discarded files that were deleted; other threads append to it."""

    def open(self) -> None:
        """Whoever started this process has opened the database."""
        self._connection.setblocking(True)

    def perform(self, batch: Sequence[IndexRequest]) -> Sequence[object]:
        """See `Writer.perform`. Blocks until the other process has committed."""
        outcomes: list[object] = []
        for part in _parts(batch):
            wanted = [each for each in part if not isinstance(each, Exception)]
            answered = iter(self._exchange(wanted))
            outcomes += (each if isinstance(each, Exception) else next(answered) for each in part)
        return outcomes

    def _exchange(self, wanted: Sequence[_Sent]) -> Sequence[object]:
        gone = [self.gone.popleft() for _ in range(len(self.gone))]
        try:
            send(self._connection, (wanted, gone))
            answers = cast("list[object]", receive(self._answers))
        except (OSError, EOFError) as error:
            self._broken()
            return [OutcomeUnknown(f"the process that writes the index is gone: {error}") for _ in wanted]
        return answers

    def finish(self) -> None:
        """Say what is still to be forgotten, and close."""
        if self.gone:
            self._exchange([])
        self._answers.close()
        self._connection.close()


def _parts(
    batch: Sequence[IndexRequest],
) -> Iterator[list[_Sent | Exception]]:
    """The batch in messages that are not too long; in the place of an entry that would be, its failure."""
    part: list[_Sent | Exception] = []
    long_bytes = 0
    for request in batch:
        if isinstance(request, AddRequest):
            addition = _addition(request)
            if not isinstance(addition, Exception):
                long_bytes += len(addition.header) + len(request.entry.unsynced or b"")
            part.append(addition)
        elif isinstance(request, Work):
            part.append(IndexFailure("only the process that writes the index does that"))
        else:
            part.append(request)
        if long_bytes > _MOST_LONG_BYTES:
            yield part
            part, long_bytes = [], 0
    if part:
        yield part


def _addition(request: AddRequest) -> _Addition | Exception:
    entry = request.entry
    try:
        header = entry.header.pack()
    except Exception as error:  # only its own entry may suffer from it
        return IndexFailure(f"the index cannot record this instance: {type(error).__name__}")
    if len(header) + len(entry.unsynced or b"") > _LONGEST_BYTES:
        return IndexFailure("the index cannot record this instance: its header is too long")
    summary = entry.summary
    said = {
        number: value
        for number, name in enumerate(_SUMMARY_FIELDS)
        if (value := getattr(summary, name)) is not None
    }
    values = tuple(getattr(entry, name) for name in _ENTRY_FIELDS)
    return _Addition(said, values, header, request.policy.value)


def _request(addition: _Addition) -> AddRequest:
    said = {_SUMMARY_FIELDS[number]: value for number, value in addition.summary.items()}
    values = dict(zip(_ENTRY_FIELDS, addition.values, strict=True))
    entry = IndexEntry(summary=InstanceSummary(**said), header=PackedHeader(addition.header), **values)
    return AddRequest(entry, DuplicatePolicy(addition.policy))


async def serve_writer(connection: socket.socket, index: SqlIndex) -> None:
    """Perform what the `RemoteWriter` at the other end asks for, until that is gone; closes `connection`.

    What was asked for before the end is performed, whether or not anybody hears of it.
    """
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    frames = FrameReader()
    try:
        while data := await loop.sock_recv(connection, _READ_BYTES):
            for message in frames.feed(data):
                wanted, gone = cast("tuple[list[_Sent], list[str]]", message)
                index.forget_discarded(gone)
                requests = [_request(each) if isinstance(each, _Addition) else each for each in wanted]
                await loop.sock_sendall(connection, encoded(await index.perform(requests)))
    except OSError:
        pass  # The other process is gone; its channel says so to who needs to know.
    except Exception:
        log.exception("worker.not_understood")
    finally:
        connection.close()
