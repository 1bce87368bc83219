"""How the server is, in one answer: who is connected, what comes in, what is kept, what went wrong."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from scp_server.errors import IndexFailure
from scp_server.index.base import Index
from scp_server.net.association_manager import AssociationManager
from scp_server.net.connection import Connection
from scp_server.observability.logs import peer_text
from scp_server.observability.rates import Rates
from scp_server.observability.recent import recent_problems
from scp_server.settings import Settings
from scp_server.storage.quarantine import Quarantine

MAX_LISTED_ASSOCIATIONS = 500
"""Associations that one answer describes, the oldest first; `left_out` counts the others."""
RATE_SECONDS = (10, 60)


class StatusReporter:
    """Answers the command `status`. Reads what others count; takes nothing from them."""

    def __init__(
        self,
        settings: Settings,
        manager: AssociationManager,
        rates: Rates,
        index: Index,
        quarantine: Quarantine,
    ) -> None:
        self._settings = settings
        self._manager = manager
        self._rates = rates
        self._started_at = time.monotonic()
        self._index = index
        self._quarantine = quarantine

    async def report(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Everything, as plain values. Times in seconds, peers' texts escaped."""
        del arguments
        from scp_server import __version__

        counted, operations = self._manager.measures.associations, self._manager.measures.operations
        associations = self._manager.associations()
        now = time.monotonic()
        return {
            "server": {
                "version": __version__,
                "pid": os.getpid(),
                "ae_title": self._settings.listen.ae_title,
                "data_dir": str(self._settings.data_dir.absolute()),
                "uptime_seconds": round(now - self._started_at, 3),
            },
            "associations": {
                "now": len(associations),
                "max": self._manager.config.max_associations,
                "connections": self._manager.connection_count,
                "left_out": max(0, len(associations) - MAX_LISTED_ASSOCIATIONS),
                "list": [_described(each, now) for each in associations[:MAX_LISTED_ASSOCIATIONS]],
            },
            "totals": {
                "associations_accepted": counted.accepted,
                "associations_rejected": sum(counted.rejected.values()),
                "operations": operations.answered,
                "operations_failed": operations.failed,
                "dataset_bytes": operations.dataset_bytes,
            },
            "rates": {str(seconds): asdict(self._rates.over(seconds)) for seconds in RATE_SECONDS},
            "index": await self._index_totals(),
            "quarantine": asdict(self._quarantine.totals),
            "space": await asyncio.to_thread(self._space),
            "problems": recent_problems(),
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
