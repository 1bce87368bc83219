"""What the server lets others see of it: the numbers its components count, and those only they can tell."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

from scp_server import __version__
from scp_server.errors import StorageError
from scp_server.net.association_manager import AssociationManager
from scp_server.observability.loop_lag import LoopLag
from scp_server.observability.measures import Levels, Measures
from scp_server.observability.metrics import Metrics
from scp_server.observability.rates import Rates
from scp_server.observability.samples import Samples
from scp_server.storage.filesystem import FilesystemStorage
from scp_server.storage.quarantine import Quarantine
from scp_server.web.health import HealthState

SPACE_SECONDS = 1.0
"""How long a reading waits for the filesystem to say what is free; after that it goes without."""


class OtherProcesses(Protocol):
    """Those that accept associations beside this one."""

    @property
    def running(self) -> int: ...

    async def look(self) -> None:
        """Have `samples` tell this moment's numbers."""
        ...

    def samples(self) -> Samples: ...


def levels_of(manager: AssociationManager) -> Levels:
    """The levels of one process's associations, without what is a limit for all of them."""
    return Levels(
        connections=manager.connection_count,
        connections_limit=manager.config.max_connections,
        associations=manager.association_count,
        associations_by_peer=manager.associations_by_peer(),
        operations=manager.operation_count,
        held_bytes=manager.budget.held_bytes,
        held_bytes_limit=manager.budget.limit_bytes,
    )


class Sight:
    """Reads the metrics of one server. A disk that hangs delays a reading by `SPACE_SECONDS` only."""

    def __init__(
        self,
        measures: Measures,
        health: HealthState,
        manager: AssociationManager,
        storage: FilesystemStorage,
        quarantine: Quarantine,
        rates: Rates,
        others: OtherProcesses,
        workers_limit: int,
    ) -> None:
        self._others = others
        self._workers_limit = workers_limit
        self._health = health
        self._manager = manager
        self._storage = storage
        self._quarantine = quarantine
        self._lag = LoopLag(measures.loop_lag, tick=rates.note)
        self._space = Levels()
        self._looking: asyncio.Task[None] | None = None
        self.metrics = Metrics(measures, self.levels, __version__, others.samples)

    def start(self) -> None:
        """Begin to watch the event loop."""
        self._lag.start()

    async def stop(self) -> None:
        """Watch no more."""
        self._lag.stop()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    def levels(self) -> Levels:
        """The state of this moment; the free space is that of the last `scrape`."""
        manager, quarantine = self._manager, self._quarantine.totals
        space = self._space
        return replace(
            levels_of(manager),
            storage_free_bytes=space.storage_free_bytes,
            storage_size_bytes=space.storage_size_bytes,
            storage_reserve_bytes=space.storage_reserve_bytes,
            ready=self._health.is_ready,
            workers=self._others.running + 1,
            workers_limit=self._workers_limit,
            associations_limit=manager.config.max_associations,
            quarantine_objects=quarantine.objects,
            quarantine_objects_limit=quarantine.max_objects,
            quarantine_bytes=quarantine.bytes,
            quarantine_bytes_limit=quarantine.max_bytes,
        )

    async def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """What `GET /metrics` answers: see `Metrics.render`."""
        if self._looking is None:
            # One at a time: threads that wait for a disk must not pile up.
            self._space = Levels()
            self._looking = asyncio.create_task(self._look_at_space(), name="metrics free space")
        looking = self._looking
        await asyncio.gather(asyncio.wait({looking}, timeout=SPACE_SECONDS), self._others.look())
        return self.metrics.render(accept)

    async def _look_at_space(self) -> None:
        try:
            space = await self._storage.space()
        except StorageError:
            return
        else:
            self._space = Levels(
                storage_free_bytes=space.free_bytes,
                storage_size_bytes=space.size_bytes,
                storage_reserve_bytes=space.reserve_bytes,
            )
        finally:
            self._looking = None
