"""Where rules and callbacks look at objects, before anything of them is stored, and change them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from scp_server.objects.changes import Changes
from scp_server.objects.coercion import Modification
from scp_server.objects.vr import tag_text
from scp_server.observability.logs import get_logger
from scp_server.pipeline.callbacks import ActiveCallbacks
from scp_server.pipeline.rules import ObjectRules
from scp_server.services.reception import Reception

log = get_logger(__name__)

_HELD_SECONDS: Final = 0.1
"""How long a received object may stay in memory while callbacks look at it. Most need less, and the object is
written in one visit to a thread; what waits for longer must not use up what other associations need."""


_MAX_LOGGED_TAGS: Final = 32


@dataclass(frozen=True, slots=True)
class Coercion:
    """What was changed of an object: the tags, and whether its sender is to be warned."""

    tags: tuple[int, ...] = ()
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Inspection:
    """Who looks at objects. `modifying_system` is who we are, as Original Attributes Sequences say it."""

    rules: ObjectRules
    callbacks: ActiveCallbacks | None = None
    modifying_system: str = ""

    @property
    def is_needed(self) -> bool:
        """Whether anybody wants to look."""
        return bool(self.rules) or (self.callbacks is not None and self.callbacks.inspects)

    async def inspect(self, reception: Reception, arrival_id: str) -> Coercion:
        """Have rules, then callbacks look at an object that has been received whole, and have it changed as
        they say, under another arrival id. Raises Reject, OperationRefused or StorageError."""
        instance = reception.received_instance()
        verdict = self.rules.judge(instance)
        instance.changes = verdict.changes
        if self.callbacks is not None and self.callbacks.inspects:
            async with _let_go_in_time(reception):
                await self.callbacks.inspect(instance)
        if not instance.changes:
            return Coercion()
        source = verdict.source_of_previous_values or instance.association.calling_ae_title
        tags = await self._change(reception, instance.changes, source, arrival_id)
        if tags:
            log.info(
                "object.coerced",
                rules=list(verdict.coerced_by),
                elements=[tag_text(tag) for tag in tags[:_MAX_LOGGED_TAGS]],
                **instance.log_fields,
            )
        return Coercion(tags, verdict.warning)

    async def _change(
        self, reception: Reception, changes: Changes, source: str, arrival_id: str
    ) -> tuple[int, ...]:
        now = datetime.now(UTC)
        modification = Modification(
            date_time=f"{now:%Y%m%d%H%M%S.%f}+0000",
            modifying_system=self.modifying_system,
            source_of_previous_values=source,
        )
        return await reception.change(changes, modification, arrival_id)


@asynccontextmanager
async def _let_go_in_time(reception: Reception) -> AsyncIterator[None]:
    writing: asyncio.Task[None] | None = None

    def begin() -> None:
        nonlocal writing
        writing = asyncio.get_running_loop().create_task(reception.let_go(), name="object out of memory")

    timer = asyncio.get_running_loop().call_later(_HELD_SECONDS, begin)
    try:
        yield
    finally:
        timer.cancel()
        if writing is not None:
            await writing
