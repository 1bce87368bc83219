"""The storage service between a storage in memory and a real index, every step of both watched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scp_server.errors import OperationRefused
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.interfaces import Operation
from scp_server.observability.measures import ReceptionMeasures
from scp_server.pipeline.callbacks import ActiveCallbacks
from scp_server.pipeline.registry import CallbackSources, load_callbacks
from scp_server.pipeline.rules import ObjectRules
from scp_server.protocol.message import CStoreRSP
from scp_server.services.storage import StorageService, StorageServiceConfig
from scp_server.services.unsettled import UnsettledObjects
from scp_server.services.validation import Validator
from scp_server.storage.base import Storage
from scp_server.storage.memory import MemoryPlace, MemoryStorage
from scp_server.storage.quarantine import Quarantine
from scp_server.testing.stored_objects import in_flight
from scp_server.testing.watched_backends import Steps, WatchedIndex, WatchedStorage


class StorageBench:
    """`async with StorageBench(folder, **config) as bench`: `config` is StorageServiceConfig's.

    `storage` replaces the one in memory; then `place` stays empty. `callbacks` are decorated functions. With
    `unsettled` small objects are left unsynced. A `validator` is closed with the bench.
    """

    def __init__(
        self,
        folder: Path,
        storage: Storage | None = None,
        callbacks: Sequence[object] = (),
        rules: ObjectRules | None = None,
        quarantine: Quarantine | None = None,
        unsettled: UnsettledObjects | None = None,
        validator: Validator | None = None,
        **config: Any,
    ) -> None:
        self.steps = Steps()
        self.place = MemoryPlace()
        self.config = StorageServiceConfig(**config)
        self.storage = WatchedStorage(storage or MemoryStorage(self.place), self.steps)
        self.index = WatchedIndex(
            SqlIndex(IndexConfig(folder / "index.sqlite", synchronous_full=False, busy_timeout_seconds=0.1)),
            self.steps,
        )
        registry = load_callbacks(CallbackSources(callbacks, entry_points=False))
        self.callbacks = ActiveCallbacks(registry)
        self.measures = ReceptionMeasures()
        self.validator = validator or Validator(measures=self.measures)
        # The quarantine takes files of the storage itself.
        where = self.storage if quarantine is None or storage is None else storage
        self.service = StorageService(
            where,
            self.index,
            self.config,
            self.measures,
            quarantine,
            callbacks=self.callbacks,
            rules=rules,
            unsettled=unsettled,
            validator=self.validator,
        )

    async def __aenter__(self) -> Self:
        await self.storage.open()
        await self.index.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.validator.close()
        await self.callbacks.close()
        await self.index.close()
        await self.storage.close()

    async def status(self, operation: Operation) -> int:
        """Store, and return the status of the answer, a refusal's too."""
        try:
            answer = await self.service.store(operation)
        except OperationRefused as refusal:
            return refusal.status
        if not isinstance(answer, CStoreRSP):
            raise AssertionError(f"no C-STORE-RSP: {answer}")
        return answer.status

    async def refusal(self, operation: Operation) -> OperationRefused:
        """Store, and return the refusal. Raises AssertionError when there is none."""
        try:
            answer = await self.service.store(operation)
        except OperationRefused as refusal:
            return refusal
        raise AssertionError(f"not refused: {answer}")

    async def left_in_flight(self) -> set[str]:
        """What the next process would find in flight in memory."""
        successor = MemoryStorage(self.place)
        await successor.open()
        try:
            return await in_flight(successor)
        finally:
            await successor.close()

    async def nothing_is_left(self) -> None:
        """No object, no row, nothing in flight and no open writer. Raises AssertionError."""
        totals = await self.index.totals()
        found = (sorted(self.place.objects), await self.left_in_flight(), totals.parts)
        if found != ([], set(), 0) or self.storage.writing:
            raise AssertionError(f"left over: {found}, {len(self.storage.writing)} open writers")
