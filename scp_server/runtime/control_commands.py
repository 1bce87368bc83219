"""What can be asked of callbacks, of the outbox and of the quarantine over the control socket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from scp_server.errors import StorageError
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import QuarantineEvent
from scp_server.pipeline.outbox_desk import OutboxDesk
from scp_server.pipeline.registry import CallbackRegistry
from scp_server.runtime.control import Command, WrongArguments, only, text
from scp_server.services.release import QuarantineRelease
from scp_server.storage.layout import checked_arrival_id
from scp_server.storage.quarantine import OBJECT_SUFFIX, QUARANTINE, Quarantine

log = get_logger(__name__)

LIST_PAGE = 200
"""Objects in one answer to `quarantine.list`; `next` says how to go on."""


def callback_commands(registry: CallbackRegistry) -> dict[str, Command]:
    """`callbacks`: the names of those that the server has."""

    async def names(arguments: Mapping[str, Any]) -> list[str]:
        only(arguments)
        return [each.name for each in registry.callbacks]

    return {"callbacks": names}


def outbox_commands(desk: OutboxDesk) -> dict[str, Command]:
    """`outbox.list`, `.retry` and `.drop`, and `.drop_dead` and `.drop_subscription`."""

    async def list_subscriptions(arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        only(arguments)
        return [asdict(state) for state in await desk.states()]

    async def retry(arguments: Mapping[str, Any]) -> dict[str, Any]:
        only(arguments, "name", "event_id")
        event_id = _event_id(arguments) if "event_id" in arguments else None
        return {"events": await desk.retry(text(arguments, "name"), event_id)}

    async def drop(arguments: Mapping[str, Any]) -> dict[str, Any]:
        only(arguments, "name", "event_id")
        await desk.drop(text(arguments, "name"), _event_id(arguments))
        return {"events": 1}

    async def drop_dead(arguments: Mapping[str, Any]) -> dict[str, Any]:
        only(arguments, "name")
        return {"events": await desk.drop_dead(text(arguments, "name"))}

    async def drop_subscription(arguments: Mapping[str, Any]) -> dict[str, Any]:
        only(arguments, "name")
        return {"events": await desk.drop_subscription(text(arguments, "name"))}

    return {
        "outbox.list": list_subscriptions,
        "outbox.retry": retry,
        "outbox.drop": drop,
        "outbox.drop_dead": drop_dead,
        "outbox.drop_subscription": drop_subscription,
    }


def _event_id(arguments: Mapping[str, Any]) -> int:
    value = arguments.get("event_id")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**63:
        raise WrongArguments("event_id is no id of an event")
    return value


def quarantine_commands(quarantine: Quarantine, release: QuarantineRelease) -> dict[str, Command]:
    """`quarantine.list`, `.show`, `.release` and `.drop`."""

    async def list_objects(arguments: Mapping[str, Any]) -> dict[str, Any]:
        only(arguments, "after")
        return await list_page(quarantine, text(arguments, "after"))

    async def show(arguments: Mapping[str, Any]) -> dict[str, Any]:
        return await show_object(quarantine, _id(arguments))

    async def release_object(arguments: Mapping[str, Any]) -> dict[str, Any]:
        return asdict(await release.release(_id(arguments)))

    async def drop(arguments: Mapping[str, Any]) -> dict[str, Any]:
        return await drop_object(quarantine, _id(arguments))

    return {
        "quarantine.list": list_objects,
        "quarantine.show": show,
        "quarantine.release": release_object,
        "quarantine.drop": drop,
    }


async def list_page(quarantine: Quarantine, after: str) -> dict[str, Any]:
    """Objects behind the id `after`, at most LIST_PAGE; `next` is empty when there are no more."""
    ids = quarantine.ids(after, LIST_PAGE + 1)
    objects = []
    for object_id in ids[:LIST_PAGE]:
        try:
            objects.append(await show_object(quarantine, object_id))
        except StorageError as failure:
            # Dropped meanwhile, or damaged: the others are listed all the same.
            objects.append({"id": object_id, "error": str(failure)})
    return {
        "objects": objects,
        "next": ids[LIST_PAGE - 1] if len(ids) > LIST_PAGE else "",
        "totals": asdict(quarantine.totals),
    }


async def show_object(quarantine: Quarantine, object_id: str) -> dict[str, Any]:
    """All that is known of one object. Raises StorageError."""
    record = await quarantine.record(object_id)
    return {
        **record.to_mapping(),
        "file": f"{QUARANTINE}/{object_id}{OBJECT_SUFFIX}",
        "file_bytes": quarantine.size_bytes(object_id),
    }


async def drop_object(quarantine: Quarantine, object_id: str) -> dict[str, Any]:
    """Delete one object for ever. Raises StorageError."""
    quarantine.hold(object_id)
    try:
        await quarantine.drop(object_id)
    finally:
        quarantine.let_go(object_id)
    quarantine.note(QuarantineEvent.DROPPED)
    log.info("quarantine.dropped", id=object_id)
    return {"id": object_id, "dropped": True}


def _id(arguments: Mapping[str, Any]) -> str:
    only(arguments, "id")
    try:
        return checked_arrival_id(text(arguments, "id"))
    except ValueError as error:
        raise WrongArguments(f"id: {error}") from error
