"""An acceptor on a stage, and the rule that nothing a peer does leaves a traceback or a task behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from scp_server.observability.logs import captured_logs
from scp_server.testing.acceptor_scene import AcceptorScene, settle


@pytest.fixture
def logs() -> Iterator[list[dict[str, Any]]]:
    """What is logged, as dictionaries."""
    with captured_logs() as events:
        yield events


@pytest.fixture
async def scene(logs: list[dict[str, Any]]) -> AsyncIterator[AcceptorScene]:
    """An acceptor with room for two waiting operations. At its end everything must have been given back."""
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
    scene = AcceptorScene()
    yield scene
    await settle()
    assert unhandled == []
    assert [event for event in logs if "exc_info" in event or "exception" in event] == []
    for connection in tuple(scene.manager._connections):
        connection.reset()
    await settle()
    assert scene.manager.connection_count == 0
    assert scene.manager.association_count == 0
    assert scene.manager.budget.held_bytes == 0
    assert scene.manager.operation_count == 0
    counts = scene.manager.measures.associations
    assert counts.accepted == sum(counts.ended.values())
    assert {why: stop.count for why, stop in counts.stops.items() if stop.count} == {}
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
