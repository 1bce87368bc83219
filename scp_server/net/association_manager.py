"""Every connection of the process: who is let in, how many, and how all of them end."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from scp_server.interfaces import AcceptedContext, AssociationListener, Service
from scp_server.net.access import AccessRules
from scp_server.net.admission import Admission
from scp_server.net.association_transport import TransportConfig
from scp_server.net.budget import ByteBudget
from scp_server.net.connection import Connection
from scp_server.net.places import Grants, Places
from scp_server.net.receive_buffers import ReceiveBuffers
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import Measures
from scp_server.protocol.framing import PDU_HEADER
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import Request
from scp_server.protocol.negotiation import NegotiationPolicy, negotiate, rejection
from scp_server.protocol.pdu import AssociateRQ, RejectReason

log = get_logger(__name__)

_CLOSE_SECONDS = 1.0
"""When the server stops: how long peers may take to see the end, and cancelled operations to take theirs."""


class Services(Protocol):
    """Finds who performs a request; what nobody performs gets a service that refuses."""

    def find(self, request: Request, context: AcceptedContext) -> Service: ...


@dataclass(frozen=True, slots=True)
class AcceptorConfig:
    """What the acceptor allows. Sizes in bytes; the caps count associations, `max_connections` sockets."""

    policy: NegotiationPolicy
    access: AccessRules = field(default_factory=AccessRules)
    limits: Limits = field(default_factory=Limits)
    transport: TransportConfig = field(default_factory=TransportConfig)
    max_associations: int = 2_000
    max_associations_per_peer: int = 1_000
    max_associations_per_address: int = 1_000
    max_connections: int = 4_096
    half_open_buffer_bytes: int = 16 * 1024 * 1024
    max_pending_operations: int = 16
    association_buffer_bytes: int = 2 * 1024 * 1024
    process_buffer_bytes: int = 256 * 1024 * 1024
    store_response_seconds: float = 60.0
    """How long a peer may take to answer a C-STORE sub-operation, once its data set is sent."""


class AssociationManager:
    """Owns the connections of one process. `grants` where another one lets in for all (see `places`)."""

    def __init__(
        self,
        config: AcceptorConfig,
        services: Services,
        measures: Measures | None = None,
        grants: Grants | None = None,
        listener: AssociationListener | None = None,
    ) -> None:
        self.config = config
        self.places = Places()
        self._grants = grants
        self.services = services
        self.listener = listener
        """Who is told of connections and associations, where somebody wants to know."""
        self.measures = measures or Measures()
        self.measures.peers.configure(config.access.names)
        self.budget = ByteBudget(config.process_buffer_bytes)
        self.receive_buffers = ReceiveBuffers()
        self._max_request_bytes = _max_request_bytes(config)
        self._connections: dict[Connection, None] = {}
        self._associations: dict[Connection, None] = {}
        self._requests: dict[Connection, int] = {}
        self._request_bytes = 0
        self.refused_contexts = 0
        """Presentation contexts that were refused because their service is not allowed to the peer."""
        self._ids = itertools.count(1)
        self.id_prefix = secrets.token_hex(3)
        """What the ids of its associations begin with."""
        self._draining = False
        self._changed: asyncio.Future[None] | None = None

    def new_connection(self) -> Connection:
        """The protocol of a socket that was just accepted."""
        return Connection(self)

    def reconfigure(self, config: AcceptorConfig, services: Services) -> None:
        """Let `config` and `services` hold for the associations that are asked for from now on.

        Others keep what they began with; what counts all together (the caps, the process's budget) holds at
        once, and ends none that is over it already. The length of PDUs must stay: a socket that has not
        asked yet enforces what it was made with. Raises ValueError for another one.
        """
        if config.policy.maximum_length != self.config.policy.maximum_length:
            raise ValueError("the announced maximum length cannot change while sockets are open")
        self.config = config
        self.services = services
        self.measures.peers.configure(config.access.names)
        self.budget.set_limit(config.process_buffer_bytes)
        self._max_request_bytes = _max_request_bytes(config)

    @property
    def connection_count(self) -> int:
        """All sockets, half-open and draining ones too."""
        return len(self._connections)

    @property
    def association_count(self) -> int:
        """Accepted associations that have not ended."""
        return len(self._associations)

    @property
    def request_bytes(self) -> int:
        """What is held of A-ASSOCIATE-RQs that have not been answered."""
        return self._request_bytes

    def associations_by_peer(self) -> Counter[str]:
        """`association_count` for each peer that the settings name and that has any, and for all others."""
        return Counter(self.measures.peers.label(each.peer_name) for each in self._associations)

    @property
    def operation_count(self) -> int:
        """Requests that are performed or wait for their turn."""
        return sum(connection.operation_count for connection in self._connections)

    @property
    def rejections(self) -> Counter[RejectReason]:
        """Rejected associations by reason."""
        return Counter({RejectReason(r): n for r, n in self.measures.associations.rejected.items() if n})

    def associations(self) -> list[Connection]:
        """Those connections whose association was accepted and has not ended, in order of their start."""
        return list(self._associations)

    def next_association_id(self) -> str:
        """A name for an association, unique over restarts, for logs."""
        return f"{self.id_prefix}-{next(self._ids)}"

    # -- who is let in ------------------------------------------------------------------------------------

    def admit(self, request: AssociateRQ, host: str) -> Admission | RejectReason:
        """Accept or reject a request from `host` (PS3.8 7.1), and count what is refused."""
        access = self.config.access
        peer = access.find(request.calling_ae_title, host)
        policy = self.config.policy if peer is None else peer.policy(self.config.policy)
        reason = rejection(request, policy)
        if reason is None and peer is None and access.known_peers_only:
            reason = RejectReason.CALLING_AE_TITLE_NOT_RECOGNIZED
        if reason is None and self.is_full_for(request.calling_ae_title, host):
            reason = RejectReason.LOCAL_LIMIT_EXCEEDED
        if reason is not None:
            return self.rejected(reason)
        admission = Admission(negotiate(request, policy).answer, peer)
        self.refused_contexts += admission.refused_contexts
        return admission

    def rejected(self, reason: RejectReason) -> RejectReason:
        """Count an association that is rejected."""
        self.measures.associations.rejected[reason] += 1
        return reason

    def is_full_for(self, calling_ae_title: str, host: str) -> bool:
        """Whether a cap has no room for one more."""
        return self._draining or self.places.is_full_for(calling_ae_title, host, self.config)

    def ask_for_place(self, request: AssociateRQ, host: str) -> asyncio.Future[bool] | None:
        """Ask whoever lets in for all processes; None where this one does. A place that is granted is given
        back by the association's end, or by `give_place_back` where none begins."""
        return None if self._grants is None else self._grants.ask(request.calling_ae_title, host)

    def give_place_back(self, request: AssociateRQ, host: str) -> None:
        """A place was granted, and nobody takes it any more."""
        if self._grants is not None:
            self._grants.give_back(request.calling_ae_title, host)

    def no_place(self) -> RejectReason:
        """None was granted; counts the rejection."""
        return self.rejected(RejectReason.LOCAL_LIMIT_EXCEEDED)

    def take_place_for_another(self, calling_ae_title: str, host: str) -> bool:
        """Another process asks whether it may let one in; if so, it has taken the place."""
        if self.is_full_for(calling_ae_title, host):
            return False
        self.places.take(calling_ae_title, host)
        return True

    def connection_opened(self, connection: Connection) -> None:
        """Count a socket; above the cap the oldest draining one goes, else the oldest half-open one."""
        self._connections[connection] = None
        self.measures.associations.connections += 1
        if self.listener is not None:
            self.listener.connected(*connection.peer)
        if len(self._connections) <= self.config.max_connections:
            return
        others = [other for other in self._connections if other is not connection and not other.ended]
        victim = next((other for other in others if other.is_draining), None) or next(
            (other for other in others if other.is_half_open), connection
        )
        log.warning("connection.displaced", peer_host=victim.host, connections=len(self._connections))
        self.measures.associations.displaced += 1
        del self._connections[victim]
        victim.reset()

    def request_bytes_held(self, connection: Connection, size_bytes: int) -> None:
        """Count what has arrived of an A-ASSOCIATE-RQ; above the bound the oldest of such connections go."""
        self._request_bytes += size_bytes - self._requests.get(connection, 0)
        if size_bytes:
            self._requests[connection] = size_bytes
        else:
            self._requests.pop(connection, None)
        while self._request_bytes > self._max_request_bytes:
            victim = next(iter(self._requests))
            log.warning("connection.displaced", peer_host=victim.host, request_bytes=self._request_bytes)
            self.measures.associations.displaced += 1
            self._request_bytes -= self._requests.pop(victim)
            victim.reset()

    def connection_closed(self, connection: Connection) -> None:
        """The socket is gone."""
        self._connections.pop(connection, None)
        self.request_bytes_held(connection, 0)
        if self.listener is not None:
            self.listener.disconnected(*connection.peer)
        self._notify()

    def association_began(self, connection: Connection) -> None:
        """Take a place."""
        if connection.info is not None:
            self._associations[connection] = None
            self.measures.associations.accepted += 1
            self.measures.peers.of(connection.peer_name).associations += 1
            self.places.take(connection.info.calling_ae_title, connection.host)

    def association_ended(self, connection: Connection) -> None:
        """Free the place; the socket may stay until the peer has seen the end."""
        if connection.info is None or connection not in self._associations:
            return
        del self._associations[connection]
        self.places.give_back(connection.info.calling_ae_title, connection.host)
        if self._grants is not None:
            self._grants.give_back(connection.info.calling_ae_title, connection.host)
        self._notify()

    def operations_ended(self, connection: Connection) -> None:
        """No operation runs on `connection` any more."""
        if self._draining:
            connection.release_when_idle()

    # -- the end ------------------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> bool:
        """Let every running operation end, then release; abort what is left after `seconds`.

        Returns whether everything ended by itself. New associations are rejected from here on.
        """
        self._draining = True
        for connection in tuple(self._connections):
            if connection.is_half_open:
                connection.reset()
            else:
                connection.release_when_idle()
        try:
            async with asyncio.timeout(seconds):
                while self._associations:
                    await self._change()
        except TimeoutError:
            pass
        clean = not self._associations
        await self._end_now()
        return clean

    async def _end_now(self) -> None:
        """Abort what is left, cancel operations that outlive their association, close every socket."""
        tasks = set()
        for connection in tuple(self._connections):
            tasks |= {operation.task for operation in connection.operations if operation.task is not None}
            connection.abort_association("the server stops")
        # A task that is cancelled before its first step runs no `finally`.
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel("the server stops")
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)
            if stuck:
                log.error("operation.stuck", operations=len(stuck))
        if not await self._all_closed(_CLOSE_SECONDS):
            for connection in tuple(self._connections):
                connection.reset()
            await self._all_closed(_CLOSE_SECONDS)

    async def _all_closed(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while self._connections:
                    await self._change()
        except TimeoutError:
            return False
        return True

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None


def _max_request_bytes(config: AcceptorConfig) -> int:
    """What all unfinished A-ASSOCIATE-RQs together may hold: always enough for one of the longest."""
    return max(config.half_open_buffer_bytes, config.limits.max_associate_pdu_bytes + PDU_HEADER.size)
