"""Looks after the event log: says when a study has settled or a report is overdue, and drops what is old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from scp_server.errors import IndexFailure
from scp_server.index.events import EventLog
from scp_server.index.trimming import trim
from scp_server.observability.logs import get_logger
from scp_server.pipeline.backoff import NANOSECONDS

log = get_logger(__name__)

TRIM_SECONDS: Final = 10.0
PIECE: Final = 1_000
"""Events looked at in one transaction, which holds up those that store objects for some milliseconds."""
_PASSES: Final = 60
"""After so many the log is looked at from its beginning, for what was still needed before."""
_OUTAGE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class LogKeeperConfig:
    """How much of the log is kept, when a study has settled, and when what waits is told of."""

    keep_events: int = 100_000
    keep_seconds: float = 604_800.0
    study_settle_seconds: float = 60.0
    missing_after_seconds: float = 120.0
    orphan_after_seconds: float = 300.0


class LogKeeper:
    """`position` tells up to where all subscriptions have got."""

    def __init__(
        self,
        log: EventLog,
        config: LogKeeperConfig,
        position: Callable[[], int],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._log = log
        self._config = config
        self._position = position
        self._now_ns = now_ns
        self._settle_ns = int(config.study_settle_seconds * NANOSECONDS)
        self._missing_ns = int(config.missing_after_seconds * NANOSECONDS)
        self._orphan_ns = int(config.orphan_after_seconds * NANOSECONDS)
        self._trimmed_at_ns = now_ns()
        self._trimmed_to = 0
        self._passes = 0
        self._news = asyncio.Event()
        self._end_news: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in a task of its own."""
        self._end_news = self._log.on_news(self._news.set)
        self._task = asyncio.create_task(self._run(), name="event log")

    async def stop(self) -> None:
        """End."""
        self._end_news()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
                seconds = self._seconds_to_sleep()
            except IndexFailure as error:
                log.error("events.not_kept", error=str(error))
                seconds = _OUTAGE_SECONDS
            if seconds is None:
                self._news.clear()
                await self._news.wait()
            else:
                await asyncio.sleep(seconds)

    async def look(self) -> None:
        """Do what is due. Raises IndexUnavailable."""
        oldest = self._log.oldest_unsettled_ns
        settled_until = self._now_ns() - self._settle_ns
        if oldest and oldest <= settled_until:
            await self._log.settle_studies(settled_until)
        if (overdue := self._overdue_at_ns()) and overdue <= self._now_ns():
            now = self._now_ns()
            await self._log.tell_overdue(now - self._missing_ns, now - self._orphan_ns)
        if self._now_ns() - self._trimmed_at_ns >= TRIM_SECONDS * NANOSECONDS:
            await self.trim()
            self._trimmed_at_ns = self._now_ns()

    def _seconds_to_sleep(self) -> float | None:
        """None where there is nothing to do before something happens."""
        now, oldest, overdue = self._now_ns(), self._log.oldest_unsettled_ns, self._overdue_at_ns()
        if not oldest and not overdue:
            return TRIM_SECONDS if self._news.is_set() else None
        due_ns = self._trimmed_at_ns + int(TRIM_SECONDS * NANOSECONDS)
        if oldest:
            due_ns = min(due_ns, oldest + self._settle_ns)
        if overdue:
            due_ns = min(due_ns, overdue)
        # A study whose objects still come is due later each time it is looked at.
        return min(max((due_ns - now) / NANOSECONDS, 0.1), TRIM_SECONDS)

    def _overdue_at_ns(self) -> int:
        """When what has waited for longest is to be told of, at the earliest; 0 where nothing waits."""
        scan, report = self._log.oldest_awaiting_ns
        due = (scan and scan + self._missing_ns, report and report + self._orphan_ns)
        return min(filter(None, due), default=0)

    async def trim(self) -> None:
        """Drop what is old and needed by nobody. Raises IndexUnavailable."""
        self._passes += 1
        if self._passes % _PASSES == 0:
            self._trimmed_to = 0
        has_more = True
        while has_more:
            piece = partial(
                trim,
                after=self._trimmed_to,
                up_to=self._position(),
                too_many=self._log.newest_id - self._config.keep_events,
                before_ns=self._now_ns() - int(self._config.keep_seconds * NANOSECONDS),
                limit=PIECE,
            )
            self._trimmed_to, has_more = await self._log.perform(piece)
