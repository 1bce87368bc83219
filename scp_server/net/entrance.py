"""Whether a peer that asks for an association gets one: rules, a place among others, a callback's word.

Up to two of these are asked of somebody else, while the peer waits. A place that another process has granted
is held here until the association takes it, and given back where none begins, whatever the reason.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from scp_server.interfaces import AssociationInfo, AssociationListener, AssociationVerdict
from scp_server.net.admission import Admission, learn_is_dicos
from scp_server.observability.logs import get_logger
from scp_server.protocol.association import State
from scp_server.protocol.pdu import AbortSource, AssociateRQ, RejectReason

if TYPE_CHECKING:
    from scp_server.net.association_manager import AssociationManager
    from scp_server.net.connection import Connection

log = get_logger(__name__)

_REASONS = {
    AssociationVerdict.YES: None,
    AssociationVerdict.NO: RejectReason.NO_REASON,
    AssociationVerdict.CANNOT_SAY: RejectReason.TEMPORARY_CONGESTION,
}
"""What the peer is told (PS3.8 9.3.4)."""


class Entrance:
    """That of one connection, which it tells `accept` or `reject`. To be closed with it."""

    def __init__(self, connection: Connection, manager: AssociationManager) -> None:
        self._connection = connection
        self._manager = manager
        self._judging: asyncio.Task[None] | None = None
        """Somebody is asked whether the association may be; the peer waits."""
        self._place: AssociateRQ | None = None
        """For whom a place was granted, which nobody has taken yet."""

    def close(self) -> None:
        """There will be no association, or there was one."""
        if self._judging is not None:
            self._judging.cancel()
            self._judging = None
        if self._place is not None:
            self._manager.give_place_back(self._place, self._connection.host)
            self._place = None

    def requested(self, request: AssociateRQ) -> None:
        """The peer asks for an association."""
        if not self._is_awaited:
            return  # What came right behind the request has ended it; the events that say so follow.
        admission = self._manager.admit(request, self._connection.host)
        place = None
        if isinstance(admission, Admission):
            place = self._manager.ask_for_place(request, self._connection.host)
        if isinstance(admission, RejectReason) or place is None:
            self._decided(request, admission)
            return
        place.add_done_callback(partial(self._place_answered, request, admission))

    @property
    def _is_awaited(self) -> bool:
        """Whether the peer still waits for an answer."""
        return self._connection.association.state is State.STA3

    def _place_answered(
        self, request: AssociateRQ, admission: Admission, place: asyncio.Future[bool]
    ) -> None:
        """Whoever lets in for all processes has answered, or is gone, and this process with it."""
        granted = not place.cancelled() and place.exception() is None and place.result()
        if granted:
            self._place = request
        if not self._is_awaited:
            self.close()
            return
        try:
            self._decided(request, admission if granted else self._manager.no_place())
        except Exception:
            self._failed()
        self._connection.answered_request()

    def _decided(self, request: AssociateRQ, admission: Admission | RejectReason) -> None:
        if isinstance(admission, RejectReason):
            self._reject(request, admission)
            return
        connection = self._connection
        info = admission.association_info(request, self._manager.next_association_id(), connection.peer)
        learn_is_dicos(info, connection.association.is_dicos)
        listener = self._manager.listener
        if listener is not None and listener.judges(info):
            # Whatever the peer sends meanwhile ends it, as PS3.8 9.2 wants it in Sta3.
            judging = self._judge(listener, request, admission, info)
            self._judging = connection.loop.create_task(judging, name="associate")
        else:
            self._accept(request, admission, info)

    async def _judge(
        self, listener: AssociationListener, request: AssociateRQ, admission: Admission, info: AssociationInfo
    ) -> None:
        """Have somebody else say whether the association may be, then answer."""
        try:
            verdict = await listener.may_associate(info)
            self._judging = None
            if not self._is_awaited:
                self.close()
                return
            reason = _REASONS[verdict]
            # Others may have come meanwhile, who took no place before either.
            if reason is None and self._manager.is_full_for(info.calling_ae_title, self._connection.host):
                reason = RejectReason.LOCAL_LIMIT_EXCEEDED
            if reason is not None:
                self._reject(request, self._manager.rejected(reason))
            else:
                self._accept(request, admission, info)
        except Exception:
            self._failed()
        self._connection.answered_request()

    def _accept(self, request: AssociateRQ, admission: Admission, info: AssociationInfo) -> None:
        self._connection.take_place(admission, info)
        self._place = None  # The association's end gives it back.
        self._connection.accept(request, admission, info)

    def _reject(self, request: AssociateRQ, reason: RejectReason) -> None:
        self._connection.reject(request, reason)
        self.close()

    def _failed(self) -> None:
        """Nobody knows whether it may be: it may not."""
        self._judging = None
        log.exception("association.failed", event_type="AssociateRequested")
        self._connection.abort_association("internal error", source=AbortSource.SERVICE_PROVIDER)
        self.close()
