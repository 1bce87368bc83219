"""How the server is, in one answer: who is connected, what comes in, what is kept, what went wrong."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from scp_server.errors import IndexFailure
from scp_server.index.base import Index
from scp_server.net.association_manager import AssociationManager
from scp_server.net.connection import Connection
from scp_server.observability.logs import peer_text
from scp_server.observability.rates import Rates
from scp_server.observability.recent import RECENT_PROBLEMS, recent_problems
from scp_server.settings import Settings
from scp_server.storage.quarantine import Quarantine

MAX_LISTED_ASSOCIATIONS = 500
"""Associations that one answer describes, the oldest first; `left_out` counts the others."""
RATE_SECONDS = (10, 60)


class StatusReporter:
    """Answers the command `status`. Reads what others count; takes nothing from them.

    `others` gives `process_status` of each other process, and the totals of those that have ended.
    """

    def __init__(
        self,
        settings: Settings,
        manager: AssociationManager,
        rates: Rates,
        index: Index,
        quarantine: Quarantine,
        others: Callable[[], Awaitable[tuple[list[dict[str, Any]], dict[str, int]]]],
    ) -> None:
        self._settings = settings
        self._manager = manager
        self._rates = rates
        self._started_at = time.monotonic()
        self._index = index
        self._quarantine = quarantine
        self._others = others

    async def report(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Everything, as plain values. Times in seconds, peers' texts escaped."""
        del arguments
        from scp_server import __version__

        others, departed = await self._others()
        processes = [process_status(self._manager, self._rates), *others]
        now = sum(each["now"] for each in processes)
        listed = sorted((one for each in processes for one in each["list"]), key=_by_age, reverse=True)
        listed = listed[:MAX_LISTED_ASSOCIATIONS]
        totals = departed
        for each in processes:
            totals = add_totals(totals, each["totals"])
        problems = sorted((one for each in processes for one in each["problems"]), key=_by_time)
        return {
            "server": {
                "version": __version__,
                "pid": os.getpid(),
                "worker_pids": [each["pid"] for each in processes],
                "ae_title": self._settings.listen.ae_title,
                "data_dir": str(self._settings.data_dir.absolute()),
                "uptime_seconds": round(time.monotonic() - self._started_at, 3),
            },
            "associations": {
                "now": now,
                "max": self._manager.config.max_associations,
                "connections": sum(each["connections"] for each in processes),
                "left_out": now - len(listed),
                "list": listed,
            },
            "totals": totals,
            "rates": {str(seconds): _all_rates(processes, seconds) for seconds in RATE_SECONDS},
            "index": await self._index_totals(),
            "quarantine": asdict(self._quarantine.totals),
            "space": await asyncio.to_thread(self._space),
            "problems": problems[-RECENT_PROBLEMS:],
        }

    async def _index_totals(self) -> dict[str, int] | None:
        """The index's totals; None while it cannot be asked."""
        try:
            return asdict(await self._index.totals())
        except IndexFailure:
            return None

    def _space(self) -> dict[str, int] | None:
        try:
            reading = os.statvfs(self._settings.data_dir)
        except OSError:
            return None
        return {
            "free_bytes": reading.f_bavail * reading.f_frsize,
            "total_bytes": reading.f_blocks * reading.f_frsize,
        }


def process_status(manager: AssociationManager, rates: Rates) -> dict[str, Any]:
    """What one process tells, as plain values; of its associations the oldest MAX_LISTED_ASSOCIATIONS."""
    counted, operations = manager.measures.associations, manager.measures.operations
    associations, now = manager.associations(), time.monotonic()
    return {
        "pid": os.getpid(),
        "now": len(associations),
        "connections": manager.connection_count,
        "list": [_described(each, now) for each in associations[:MAX_LISTED_ASSOCIATIONS]],
        "totals": {
            "associations_accepted": counted.accepted,
            "associations_rejected": sum(counted.rejected.values()),
            "operations": operations.answered,
            "operations_failed": operations.failed,
            "dataset_bytes": operations.dataset_bytes,
        },
        "rates": {seconds: asdict(rates.over(seconds)) for seconds in RATE_SECONDS},
        "problems": recent_problems(),
    }


def add_totals(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """The sums of what each has."""
    return {key: first.get(key, 0) + second.get(key, 0) for key in (*second, *first)}


def _all_rates(processes: Sequence[Mapping[str, Any]], seconds: int) -> dict[str, float]:
    """What all processes together do; the first one's span stands for all."""
    each = [process["rates"][seconds] for process in processes]
    return {
        "seconds": each[0]["seconds"],
        "operations_per_second": sum(rate["operations_per_second"] for rate in each),
        "bytes_per_second": sum(rate["bytes_per_second"] for rate in each),
    }


def _by_age(described: Mapping[str, Any]) -> float:
    return float(described.get("seconds", 0.0))


def _by_time(problem: Mapping[str, Any]) -> str:
    return str(problem.get("timestamp", ""))


def _described(connection: Connection, now: float) -> dict[str, Any]:
    info = connection.info
    if info is None:
        return {}
    return {
        "id": info.association_id,
        "calling_ae_title": peer_text(info.calling_ae_title),
        "called_ae_title": peer_text(info.called_ae_title),
        "peer_host": info.peer_host,
        "peer_port": info.peer_port,
        "dicos": info.is_dicos,
        "seconds": round(now - connection.opened_at, 3),
        "operations": connection.requests_received,
        "running": len(connection.operations),
        "dataset_bytes": connection.dataset_bytes,
    }
