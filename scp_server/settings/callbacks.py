"""The settings of callbacks: the user's own functions, and what they may cost."""

from __future__ import annotations

from pydantic import Field

from scp_server.settings.limits import GIB, MIB, Count, Seconds
from scp_server.settings.section import Section


class CallbacksSettings(Section):
    """What holds for callbacks that do not say it themselves."""

    entry_points: bool = Field(
        default=True,
        description="Whether callbacks of installed packages take part: those with an entry point in the "
        "group scp_server.callbacks.",
    )
    timeout_seconds: Seconds = Field(
        default=30.0,
        description="Longest call. After it an async one is cancelled, a thread abandoned, a process killed. "
        "Where a peer waits, waiting for a turn counts too.",
    )
    concurrency: Count = Field(default=8, description="Calls of one callback at once.")
    processes: Count = Field(
        default=1, description="The same for callbacks that run in processes of their own."
    )
    process_memory_bytes: int = Field(
        default=GIB, ge=128 * MIB, description="Address space of such a process; beyond it there is none."
    )
    blocking_seconds: Seconds = Field(
        default=0.1,
        description="An async callback that keeps the event loop for longer at a stretch is named in the log "
        "and counted: everybody waits for it.",
    )
    max_abandoned_threads: Count = Field(
        default=8,
        description="Threads of one callback that may be left behind at their deadline; with so many that "
        "have not come back it is not called any more, which counts as failed.",
    )
    max_waiting: Count = Field(
        default=1_000,
        description="Notices (connected, disconnected, accepted, ended, echo, invalid) that wait for a "
        "callback; further ones are dropped and counted.",
    )
