"""The event log at work in one server: whom it is delivered to, and how long it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from scp_server.errors import IndexFailure
from scp_server.index.event_writing import RECENT
from scp_server.index.events import EventLog
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import OutboxMeasures
from scp_server.pipeline.deliveries import Subscriber
from scp_server.pipeline.log_keeper import LogKeeper, LogKeeperConfig
from scp_server.pipeline.log_reader import PAGE
from scp_server.pipeline.outbox import Outbox, OutboxConfig
from scp_server.pipeline.outbox_desk import OutboxDesk
from scp_server.pipeline.parking import LENT
from scp_server.pipeline.window import WINDOW
from scp_server.settings import Settings
from scp_server.web.events import PAGE as FOLLOWERS_PAGE
from scp_server.web.events import FollowerLimits, Followers

log = get_logger(__name__)


EVENT_ROW_BYTES: Final = 3_072
"""Memory of an event as it is read from the index, at worst: UIDs of 64 characters, texts of which JSON makes
six or twelve bytes of each character."""
EVENT_BYTES: Final = 5_120
"""Of an event that is to be delivered, decoded, with what callbacks are given."""
PARKED_BYTES: Final = 1_280
"""Of one that waits for another try, or behind one that does."""
DEAD_BYTES: Final = 128
"""Of a dead letter: its number."""
HELD_EVENTS: Final = PAGE + WINDOW + LENT
"""Events of one subscription: those that wait, those read beyond that, and those that were parked."""
FOLLOWER_ROW_BYTES: Final = 4 * EVENT_ROW_BYTES
"""Of each event of a follower's page: the row, its text, and that on its way."""


def deliveries_ceiling_bytes(settings: Settings, subscriptions: int) -> int:
    """The most memory that events hold which peers bring about, whoever they are for."""
    outbox = settings.outbox
    per_subscription = (
        HELD_EVENTS * EVENT_BYTES
        + (outbox.max_parked + PAGE + WINDOW) * PARKED_BYTES
        + outbox.max_dead_letters * DEAD_BYTES
    )
    return (
        RECENT * EVENT_ROW_BYTES
        + settings.events.max_followers * FOLLOWERS_PAGE * FOLLOWER_ROW_BYTES
        + subscriptions * per_subscription
    )


class Deliveries:
    """Belongs to the one process that writes the index. Making it raises ConfigurationError where followers'
    token cannot be read."""

    def __init__(self, settings: Settings, event_log: EventLog, measures: OutboxMeasures) -> None:
        events, outbox = settings.events, settings.outbox
        self._settings = settings
        self._log = event_log
        self._keeps_always = events.enabled
        self._seconds = outbox.drain_seconds
        self.outbox = Outbox(
            event_log,
            OutboxConfig(
                first_retry_seconds=outbox.first_retry_seconds,
                max_retry_seconds=outbox.max_retry_seconds,
                max_attempts=outbox.max_attempts,
                max_parked=outbox.max_parked,
                max_dead=outbox.max_dead_letters,
            ),
            measures,
        )
        self.desk = OutboxDesk(self.outbox, event_log)
        self._keeper = LogKeeper(
            event_log,
            LogKeeperConfig(
                keep_events=events.keep_events,
                keep_seconds=events.keep_seconds,
                study_settle_seconds=outbox.study_settle_seconds,
                missing_after_seconds=settings.decisions.missing_after_seconds,
                orphan_after_seconds=settings.decisions.orphan_after_seconds,
            ),
            lambda: self.outbox.position,
        )
        self.followers = Followers(
            event_log,
            FollowerLimits(
                max_followers=events.max_followers,
                heartbeat_seconds=events.heartbeat_seconds,
                follower_seconds=events.follower_seconds,
            ),
            measures,
            events.bearer_token,
        )
        self._others: tuple[Subscriber, ...] = ()
        self._changing: asyncio.Task[None] | None = None

    @property
    def ceiling_bytes(self) -> int:
        """See `deliveries_ceiling_bytes`, with the subscriptions that there are."""
        return deliveries_ceiling_bytes(self._settings, len(self.outbox.names))

    async def start(self, rules: Sequence[Subscriber], others: Sequence[Subscriber]) -> None:
        """Log what a crash has left open, then deliver to rules, which may change, and to others. Before
        anything is received. Raises IndexUnavailable."""
        self._others = tuple(others)
        self._keep(rules)
        if self._log.keeps and (ended := await self._log.end_open_associations()):
            log.warning("associations.crashed", associations=ended)
        await self.outbox.start([*rules, *others])
        self._keeper.start()

    def reload(self, rules: Sequence[Subscriber]) -> None:
        """Deliver to these rules, and no others of them, as soon as what is under way has ended."""
        self._keep(rules)
        self._changing = asyncio.create_task(self._change(rules, self._changing), name="outbox rules")

    def _keep(self, rules: Sequence[Subscriber]) -> None:
        self._log.keep(self._keeps_always or bool(rules or self._others))

    async def _change(self, rules: Sequence[Subscriber], before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        try:
            await self.outbox.reconfigure([*rules, *self._others], self._seconds)
        except IndexFailure as error:
            log.error("outbox.not_changed", error=str(error))

    async def stop(self) -> None:
        """Deliver no more; what is under way may take `outbox.drain_seconds`."""
        if self._changing is not None:
            with suppress(asyncio.CancelledError):
                await self._changing
        await self.outbox.stop(self._seconds)
        await self._keeper.stop()
