"""Associations to the remotes that are configured: opened when they are needed, kept for a while, bounded.

A remote is only ever dialled at the address that the settings give for its AE title; what a peer sends can
at most choose among them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from scp_server.errors import AssociationError, ConnectFailed
from scp_server.net.outbound import OutboundAssociation, Pair, Remote, pairs_of
from scp_server.net.requestor_connection import RequestorConfig
from scp_server.observability.logs import get_logger, peer_text
from scp_server.observability.measures import OutboundMeasures

log = get_logger(__name__)

_CLOSE_SECONDS = 2.0
"""When the server stops: how long remotes may take to answer our releases, before they are aborted."""
_ANSWER_SECONDS = 1.0
"""A remote that has not answered for so long may be waiting for an idle association of ours to end."""


@dataclass(frozen=True, slots=True)
class DestinationsConfig:
    """Who the remotes are, and what associations to them may cost. Times in seconds."""

    calling_ae_title: str
    remotes: Mapping[str, Remote] = field(default_factory=dict)
    """By AE title."""
    requestor: RequestorConfig = field(default_factory=RequestorConfig)
    max_associations: int = 64
    """To all remotes together."""
    idle_seconds: float = 10.0
    """How long an association that nobody uses is kept; 0 is not at all."""
    retry_seconds: float = 5.0
    """For how long a remote that could not be reached is not tried again."""


class _RemotePool:
    """The associations to one remote. `open` counts all of its sockets: used, idle, opening and closing."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.open = 0
        self.idle: dict[OutboundAssociation, asyncio.TimerHandle] = {}
        """The one that has been idle longest first."""
        self.used: set[OutboundAssociation] = set()
        self.retired = False
        """The settings do not have it any more, or not so."""
        self._down_until = 0.0
        self._problem = ""
        self._full_until = 0.0
        self._most = remote.max_associations

    def found_full(self, until: float) -> None:
        """It takes no more than it has of ours now."""
        self._most = len(self.used) + len(self.idle)
        self._full_until = until

    def has_room(self, now: float) -> bool:
        """One more may be asked for."""
        return self.open < (self._most if now < self._full_until else self.remote.max_associations)

    def found_down(self, problem: str, until: float) -> None:
        """It could not be reached."""
        self._problem = problem
        self._down_until = until

    def refuse_while_down(self, now: float) -> None:
        """Raises ConnectFailed while it is not to be tried again."""
        if now < self._down_until:
            raise ConnectFailed(f"not tried again so soon after: {self._problem}")

    def reusable(self, pairs: frozenset[Pair]) -> OutboundAssociation | None:
        """An idle association on which all of these were proposed: the one used last."""
        for association in reversed(self.idle):
            if association.pairs >= pairs and association.is_usable:
                return association
        return None


class DestinationPool:
    """`Destinations`, with associations that are used again. Belongs to one event loop; `close` ends it.

    Whoever asks is given an idle association on which everything that is wanted was proposed, else a new one.
    Where there are as many as there may be, an idle one is released to make room, else it waits its turn. So
    it does where a remote takes no more beside those of ours that it serves, whether it says so or does not
    answer: that is found out, no setting needs to tell.
    """

    def __init__(
        self,
        config: DestinationsConfig,
        measures: OutboundMeasures | None = None,
        clock: Callable[[], float] = time.monotonic,
        associate: type[OutboundAssociation] = OutboundAssociation,
    ) -> None:
        self._config = config
        self._associate = associate
        self._measures = measures or OutboundMeasures()
        self._clock = clock
        self._pools = {title: _RemotePool(remote) for title, remote in config.remotes.items()}
        self._open = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._given_up: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._changed: asyncio.Future[None] | None = None
        self._stopped = False

    def is_known(self, ae_title: str) -> bool:
        """See `Destinations.is_known`."""
        return ae_title in self._pools

    def transfer_syntaxes_for(self, ae_title: str, stored: str, targets: Sequence[str]) -> tuple[str, ...]:
        """See `Destinations.transfer_syntaxes_for`."""
        pool = self._pools.get(ae_title)
        return (stored, *targets) if pool is None else pool.remote.transfer_syntaxes_for(stored, targets)

    @asynccontextmanager
    async def send_to(
        self, ae_title: str, contexts: Sequence[tuple[str, Sequence[str]]]
    ) -> AsyncIterator[OutboundAssociation]:
        """See `Destinations.send_to`. It never waits for an association to end."""
        pool, association = await self._take(ae_title, pairs_of(contexts))
        try:
            yield association
        except BaseException:
            self._give_back(pool, association, abort=True)
            raise
        self._give_back(pool, association)

    def reconfigure(self, config: DestinationsConfig) -> None:
        """Let `config` hold from now on. Associations that are in use go on to their end; those to a remote
        that has changed or is gone are not used again."""
        former, self._config = self._pools, config
        self._pools = {}
        for title, remote in config.remotes.items():
            pool = former.get(title)
            if pool is not None and pool.remote == remote:
                self._pools[title] = former.pop(title)
            else:
                self._pools[title] = _RemotePool(remote)
        for pool in former.values():
            pool.retired = True
            self._release_idle(pool)
        self._notify()

    async def close(self) -> None:
        """Release what is idle, abort what is in use, refuse who waits; returns when all sockets are gone."""
        self._stopped = True
        self._notify()
        for pool in self._pools.values():
            self._release_idle(pool)
            for association in tuple(pool.used):
                association.connection.abort_association("the server stops")
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._open:
                    await self._change()
        except TimeoutError:
            log.warning("remote.stuck", associations=self._open)
        tasks = (*self._closing, *self._given_up)
        for task in tasks:
            task.cancel()  # Which resets its connection.
        if tasks:
            await asyncio.wait(tasks)

    # -- one is wanted ------------------------------------------------------------------------------------

    async def _take(self, ae_title: str, pairs: frozenset[Pair]) -> tuple[_RemotePool, OutboundAssociation]:
        while True:
            if self._stopped:
                raise ConnectFailed("the server stops")
            pool = self._pools.get(ae_title)
            if pool is None:
                raise ConnectFailed("no such remote is configured")
            association = self._reused(pool, pairs)
            if association is None:
                pool.refuse_while_down(self._clock())
                if pool.has_room(self._clock()) and self._open < self._config.max_associations:
                    association = await self._open_to(pool, pairs)
                else:
                    await self._room(pool)
            if association is not None:
                return pool, association

    def _reused(self, pool: _RemotePool, pairs: frozenset[Pair]) -> OutboundAssociation | None:
        association = pool.reusable(pairs)
        if association is not None:
            self._measures.reused += 1
            self._forget_idle(pool, association)
            self._use(pool, association)
        return association

    async def _room(self, pool: _RemotePool) -> None:
        """Wait until something has changed; where something is idle, as many are released as are awaited."""
        self._waiting += 1
        self._measures.waiting += 1
        try:
            if len(self._closing) < self._waiting:
                full = not pool.has_room(self._clock())
                for candidate in (pool,) if full else tuple(self._pools.values()):
                    if candidate.idle:
                        self._release(candidate, next(iter(candidate.idle)))
                        break
            await self._change()
        finally:
            self._waiting -= 1
            self._measures.waiting -= 1

    async def _open_to(self, pool: _RemotePool, pairs: frozenset[Pair]) -> OutboundAssociation | None:
        """A new association, or one that was given back meanwhile; None when it is one's turn to wait."""
        remote, began = pool.remote, self._clock()
        association = self._associate(remote, pairs, self._config.calling_ae_title, self._config.requestor)
        self._count(pool, 1)
        opening = asyncio.create_task(self._opening(pool, association), name="remote.open")
        try:
            instead = await self._answer(pool, pairs, opening)
        except BaseException:
            self._give_up(pool, association, opening)
            raise
        if instead is not None:
            self._give_up(pool, association, opening)
            return instead
        try:
            opening.result()
        except AssociationError as error:
            self._failed(pool, error, began)
            return None
        if self._stopped:
            self._close(pool, association, abort=True)
            raise ConnectFailed("the server stops")
        self._measures.opened += 1
        self._use(pool, association)
        # Should it end while it is idle, it is none to be used again.
        association.connection.finished.add_done_callback(lambda _: self._release(pool, association))
        log.debug(
            "remote.associated",
            ae_title=remote.ae_title,
            contexts_proposed=len(pairs),
            contexts_accepted=len(association.connection.contexts),
            duration_seconds=round(self._clock() - began, 6),
        )
        return association

    async def _opening(self, pool: _RemotePool, association: OutboundAssociation) -> None:
        try:
            await association.open()
        except BaseException:
            self._count(pool, -1)
            self._notify()
            raise

    async def _answer(
        self, pool: _RemotePool, pairs: frozenset[Pair], opening: asyncio.Task[None]
    ) -> OutboundAssociation | None:
        """Wait for the remote to answer. One that serves a single association at a time does not while it
        has another of ours: that one is returned once it is given back, or released where it does not do.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _ANSWER_SECONDS
        while True:
            left = deadline - loop.time()
            if left <= 0:
                self._release_idle(pool)
            await asyncio.wait(
                {opening, self._next_change()},
                timeout=left if left > 0 else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if opening.done():
                return None
            if self._stopped:
                raise ConnectFailed("the server stops")
            if (association := self._reused(pool, pairs)) is not None:
                return association

    def _give_up(
        self, pool: _RemotePool, association: OutboundAssociation, opening: asyncio.Task[None]
    ) -> None:
        """Wait no longer for an answer. Its place is free once its socket is gone."""

        def ended(task: asyncio.Task[None]) -> None:
            self._given_up.discard(task)
            if not task.cancelled() and task.exception() is None:
                self._close(pool, association, abort=True)

        self._given_up.add(opening)
        opening.add_done_callback(ended)
        opening.cancel()

    def _failed(self, pool: _RemotePool, error: AssociationError, began: float) -> None:
        """Raises the error, unless the remote serves others of ours: then it takes no more at once."""
        until = self._clock() + self._config.retry_seconds
        problem = {
            "ae_title": pool.remote.ae_title,
            "error": peer_text(str(error)),
            "duration_seconds": round(self._clock() - began, 6),
        }
        if pool.used or pool.idle:
            pool.found_full(until)
            log.info("remote.full", associations=len(pool.used) + len(pool.idle), **problem)
            return
        self._measures.failed += 1
        pool.found_down(str(error), until)
        log.warning("remote.unreachable", **problem)
        raise error

    # -- one is not wanted any more -----------------------------------------------------------------------

    def _use(self, pool: _RemotePool, association: OutboundAssociation) -> None:
        pool.used.add(association)
        self._measures.used += 1

    def _give_back(self, pool: _RemotePool, association: OutboundAssociation, *, abort: bool = False) -> None:
        pool.used.discard(association)
        self._measures.used -= 1
        keep = not (abort or self._stopped or pool.retired) and self._config.idle_seconds > 0
        if keep and association.is_usable:
            self._keep(pool, association)
        else:
            self._close(pool, association, abort=abort or not association.is_usable)
        self._notify()

    def _keep(self, pool: _RemotePool, association: OutboundAssociation) -> None:
        loop = asyncio.get_running_loop()
        pool.idle[association] = loop.call_later(self._config.idle_seconds, self._release, pool, association)
        self._measures.idle += 1

    def _release_idle(self, pool: _RemotePool) -> None:
        for association in tuple(pool.idle):
            self._release(pool, association)

    def _release(self, pool: _RemotePool, association: OutboundAssociation) -> None:
        """Release an idle association; nothing when it is not idle any more."""
        if association in pool.idle:
            self._forget_idle(pool, association)
            self._close(pool, association, abort=False)

    def _forget_idle(self, pool: _RemotePool, association: OutboundAssociation) -> None:
        pool.idle.pop(association).cancel()
        self._measures.idle -= 1

    def _close(self, pool: _RemotePool, association: OutboundAssociation, *, abort: bool) -> None:
        task = asyncio.create_task(self._close_it(pool, association, abort), name="remote.close")
        self._closing.add(task)

    async def _close_it(self, pool: _RemotePool, association: OutboundAssociation, abort: bool) -> None:
        """Its place is free once its socket is gone: until then the remote counts it too."""
        try:
            await association.close(abort=abort)
        finally:
            task = asyncio.current_task()
            if task is not None:
                self._closing.discard(task)
            self._count(pool, -1)
            self._notify()

    def _count(self, pool: _RemotePool, change: int) -> None:
        pool.open += change
        self._open += change

    async def _change(self) -> None:
        await asyncio.shield(self._next_change())

    def _next_change(self) -> asyncio.Future[None]:
        """Many wait for it: not to be cancelled."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
