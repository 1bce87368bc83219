"""The C-STORE sub-operations of a retrieve: each streams from the storage to a `Sender`, and is counted."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast

from scp_server.errors import (
    AssociationError,
    AssociationLost,
    CannotTranscode,
    OperationRefused,
    StorageError,
)
from scp_server.index.base import RetrievablePart
from scp_server.interfaces import FinalResponse, Operation, Sender
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import RetrieveMeasures
from scp_server.pipeline.sending import (
    CANNOT_READ,
    CANNOT_TRANSCODE,
    NO_CONTEXT,
    NOT_ANSWERED,
    Source,
    context_for,
    send_part,
)
from scp_server.protocol.message import CGetRQ, CMoveRQ, Message, Priority, is_sendable_text
from scp_server.services.query_retrieve.tally import Tally

log = get_logger(__name__)

_PRIORITIES: Final = frozenset(Priority)
_MAX_AE_TITLE_CHARACTERS: Final = 16


@dataclass(frozen=True, slots=True)
class SubOperationsConfig:
    """How sub-operations are performed and told of."""

    associations: int = 4
    """Of one C-MOVE, at most; C-GET has its own only."""
    pending_seconds: float = 2.0
    """Longest time without a pending response."""
    least_pending_seconds: float = 0.1
    """Shortest time between two."""


class SubOperations:
    """The sub-operations of one C-MOVE or C-GET, those that wait and what became of the others.

    Once C-CANCEL has come, or the association has ended, none is begun; what runs then goes on to its end.
    """

    def __init__(
        self,
        operation: Operation,
        parts: Sequence[RetrievablePart],
        source: Source,
        config: SubOperationsConfig,
        measures: RetrieveMeasures,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._operation = operation
        self._request = cast(CMoveRQ | CGetRQ, operation.request)
        self._source = source
        self._config = config
        self._measures = measures
        self._clock = clock
        self._told_at = clock()
        self._is_over = False
        self._lost_once: set[str] = set()
        self.waiting = deque(parts)
        """Parts that are to be sent, in their order."""
        self.tally = Tally(self._request, len(parts), measures, operation.association.association_id)

    @property
    def is_stopped(self) -> bool:
        """No further sub-operation is to be begun."""
        return self._is_over or self._operation.cancel_requested

    def final(self) -> Message | FinalResponse:
        """The final response, once nothing runs any more."""
        return self.tally.final(self._operation.context)

    # -- sending ------------------------------------------------------------------------------------------

    async def send_all(self, sender: Sender, ended: Callable[[], None] = lambda: None) -> None:
        """Send what waits, one part after another, until none is left or none is to be begun.

        Several senders may do so at once. `ended` is called for each sub-operation that ended. Raises
        AssociationError when the sender's association ends; the part that this befell waits again, unless it
        befell it before: then it failed.
        """
        while self.waiting and not self.is_stopped:
            part = self.waiting.popleft()
            try:
                is_usable = await self._send(sender, part)
            except AssociationError as error:
                await self._lost(part, error)
                raise
            ended()
            await self._tell()
            if not is_usable:
                raise AssociationLost("aborted: an object could not be read to its end")

    async def _lost(self, part: RetrievablePart, error: AssociationError) -> None:
        if part.location in self._lost_once:
            self.tally.failed(part, NOT_ANSWERED, str(error))
            await self._tell()
        else:
            self._lost_once.add(part.location)
            self.waiting.appendleft(part)

    def fail_all(self, problem: str, detail: str) -> None:
        """What waits fails, for there is nobody to send it to."""
        while self.waiting and not self.is_stopped:
            self.tally.failed(self.waiting.popleft(), problem, detail)

    async def _send(self, sender: Sender, part: RetrievablePart) -> bool:
        """One sub-operation, counted; False when the association was given up for it. Raises AssociationError
        when it ended by itself, and then nothing is counted."""
        context = context_for(sender, self._source, part)
        if context is None:
            self.tally.failed(part, NO_CONTEXT, part.transfer_syntax_uid)
            return True
        sent_bytes = 0

        def count(size_bytes: int) -> None:
            nonlocal sent_bytes
            sent_bytes += size_bytes

        try:
            outcome = await send_part(
                sender,
                context,
                self._source,
                part,
                priority=self._priority(),
                move_originator=self._move_originator(),
                count=count,
            )
        except AssociationError:
            raise
        except (StorageError, CannotTranscode, OperationRefused) as failure:
            problem = CANNOT_TRANSCODE if isinstance(failure, CannotTranscode) else CANNOT_READ
            self.tally.failed(part, problem, str(failure))
            return not sent_bytes
        except Exception as failure:
            # One object must not cost the others: a codec's mistake is this sub-operation's.
            log.exception(
                "suboperation.crashed",
                association_id=self._operation.association.association_id,
                sop_instance_uid=part.sop_instance_uid,
            )
            self.tally.failed(part, CANNOT_READ, type(failure).__name__)
            return not sent_bytes
        finally:
            self._measures.sent_bytes += sent_bytes
        self.tally.answered(part, outcome)
        return True

    def _priority(self) -> int:
        """The request's, for all of its sub-operations (PS3.4 C.4.2.1.2)."""
        priority = self._request.priority
        return priority if priority in _PRIORITIES else Priority.MEDIUM

    def _move_originator(self) -> tuple[str, int] | None:
        """C-MOVE only (PS3.7 9.1.1.1)."""
        if not isinstance(self._request, CMoveRQ):
            return None
        ae_title = self._operation.association.calling_ae_title
        if not is_sendable_text(ae_title, _MAX_AE_TITLE_CHARACTERS):
            return None  # A peer's own text, which no conformant command set can carry on.
        return ae_title, self._request.message_id

    # -- telling ------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        """Send a pending response, unless there was one just now or the final one comes."""
        now = self._clock()
        if self._is_over or now - self._told_at < self._config.least_pending_seconds:
            return
        if not self.tally.remaining:
            return
        self._told_at = now
        try:
            await self._operation.send(self.tally.pending())
        except AssociationError:
            # Nobody is left to answer; in a C-MOVE the destination's association has not ended.
            self._is_over = True

    @asynccontextmanager
    async def telling(self) -> AsyncIterator[None]:
        """Within, there is a pending response as often as promised, however long a sub-operation takes."""
        task = asyncio.create_task(self._keep_telling(), name="retrieve-pending")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _keep_telling(self) -> None:
        while not self._is_over:
            silence = self._clock() - self._told_at
            await asyncio.sleep(max(self._config.pending_seconds - silence, 0))
            if self._clock() - self._told_at >= self._config.pending_seconds:
                await self._tell()
