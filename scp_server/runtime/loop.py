"""The event loop of a process that serves, and how the garbage collector treats it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

COLLECTOR_THRESHOLDS = (2_000, 20, 20)
"""Of Python's garbage collector, in place of 700, 10, 10: an object that is received costs hundreds of
allocations and leaves no cycle."""


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loop of the process: uvloop's where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


@contextmanager
def collector_at_ease() -> Iterator[None]:
    """Within, what has been made until now (all modules, the settings' models, the SQL) is no garbage.

    The collector looked at all of it again and again: a tenth of all CPU, and pauses of a tenth of a second.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
