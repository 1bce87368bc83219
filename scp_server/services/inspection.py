"""Where rules and callbacks look at objects, before anything of them is stored, and change them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
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
class WantedChanges:
    """What rules and callbacks want changed of an object, and what is to be said of it."""

    changes: Changes
    source_of_previous_values: str
    rules: tuple[str, ...]
    warning: bool
    log_fields: Mapping[str, object]


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

    async def inspect(self, reception: Reception) -> WantedChanges | None:
        """Have rules, then callbacks look at an object that has been received whole; returns what they want
        changed. Raises Reject or StorageError."""
        instance = reception.received_instance()
        verdict = self.rules.judge(instance)
        instance.changes = verdict.changes
        if self.callbacks is not None and self.callbacks.inspects:
            async with LetGoInTime(reception):
                await self.callbacks.inspect(instance)
        if not instance.changes:
            return None
        return WantedChanges(
            changes=instance.changes,
            source_of_previous_values=verdict.source_of_previous_values
            or instance.association.calling_ae_title,
            rules=verdict.coerced_by,
            warning=verdict.warning,
            log_fields=instance.log_fields,
        )

    async def coerce(self, reception: Reception, wanted: WantedChanges, arrival_id: str) -> Coercion:
        """Have the object changed, under another arrival id. Raises OperationRefused or StorageError."""
        modification = Modification(
            date_time=f"{datetime.now(UTC):%Y%m%d%H%M%S.%f}+0000",
            modifying_system=self.modifying_system,
            source_of_previous_values=wanted.source_of_previous_values,
        )
        tags = await reception.change(wanted.changes, modification, arrival_id)
        if tags:
            log.info(
                "object.coerced",
                rules=list(wanted.rules),
                elements=[tag_text(tag) for tag in tags[:_MAX_LOGGED_TAGS]],
                **wanted.log_fields,
            )
        return Coercion(tags, wanted.warning)


class LetGoInTime:
    """Has what was received written out where the block takes longer than _HELD_SECONDS."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._writing: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_HELD_SECONDS, self._begin)

    def _begin(self) -> None:
        self._writing = asyncio.create_task(self._reception.let_go(), name="object out of memory")

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._writing is not None:
            await self._writing
