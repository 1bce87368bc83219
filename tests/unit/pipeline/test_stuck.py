"""A callback that keeps the event loop for ever is named while it does."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from scp_server import callback
from scp_server.observability.logs import captured_logs
from scp_server.observability.measures import CallbackCounts
from scp_server.pipeline.callback import callbacks_of
from scp_server.pipeline.running import CallbackLimits, CallbackRunner
from scp_server.pipeline.stuck import LoopOccupant, StuckWatch
from scp_server.pipeline.subjects import ConnectionFacts

SUBJECT = ConnectionFacts("192.0.2.7", 104, 1)


async def test_the_occupant_of_the_loop_is_named_once_while_it_is_there() -> None:
    occupant, now = LoopOccupant(), [0.0]
    watch = StuckWatch(occupant, stuck_seconds=5.0, clock=lambda: now[0])
    looks: list[list[str]] = []

    @callback("connected")
    async def blocking(connection: Any) -> None:
        await asyncio.sleep(0)
        for seconds in (4.0, 6.0, 9.0):
            now[0] = occupant.since + seconds
            with captured_logs() as lines:
                watch.look()
            looks.append([f"{line['event']} {line['callback']} {line['seconds']}" for line in lines])

    runner = CallbackRunner(callbacks_of(blocking)[0], CallbackLimits(), CallbackCounts(), occupant)
    await runner.run(SUBJECT)
    assert looks == [[], ["callback.blocks_loop blocking 6.0"], []]
    now[0] += 100
    with captured_logs() as lines:
        watch.look()
    assert lines == []


async def test_the_watch_looks_by_itself_while_the_loop_cannot() -> None:
    occupant, named = LoopOccupant(), threading.Event()
    watch = StuckWatch(occupant, look_seconds=0.001, stuck_seconds=0.01)

    @callback("connected")
    async def blocking(connection: Any) -> None:
        assert named.wait(10)

    limits = CallbackLimits(blocking_seconds=0.005)
    runner = CallbackRunner(callbacks_of(blocking)[0], limits, CallbackCounts(), occupant)
    with captured_logs() as lines:
        look = watch.look

        def looking() -> None:
            look()
            if any(line["event"] == "callback.blocks_loop" for line in lines):
                named.set()

        watch.look = looking  # type: ignore[method-assign]
        watch.start()
        await runner.run(SUBJECT)
        watch.stop()
    assert [line["event"] for line in lines] == ["callback.blocks_loop", "callback.blocked_loop"]
