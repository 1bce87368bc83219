"""The settings of the event log, of those who follow it, and of the outbox that delivers from it."""

from __future__ import annotations

from pydantic import Field

from scp_server.settings.limits import Count, Seconds
from scp_server.settings.section import Section


class EventsSettings(Section):
    """What is remembered of what happened, and who may follow it at GET /events; docs/events.md says more."""

    enabled: bool = Field(
        default=True,
        description="Whether associations, objects and studies are logged in the index as events. Where a "
        "rule or a callback needs them they are, whatever stands here.",
    )
    keep_events: int = Field(
        default=100_000,
        ge=1_000,
        description="Newest events that are kept for who follows them, about a kilobyte each. What still has "
        "to be delivered is kept beyond that.",
    )
    keep_seconds: Seconds = Field(
        default=604_800.0, description="Age at which an event is dropped even if there are fewer."
    )
    max_followers: int = Field(
        default=16,
        ge=0,
        le=64,
        description="Clients of GET /events at once; a further one is answered 503. 0 serves none at all.",
    )
    heartbeat_seconds: Seconds = Field(
        default=15.0, description="Longest silence of the event stream; a comment is sent then."
    )
    follower_seconds: Seconds = Field(
        default=30.0,
        description="How long a follower may take nothing of what it is sent before it is disconnected.",
    )


class DecisionsSettings(Section):
    """When it is told that a DICOS scan lacks its report, or a report its scan; see docs/decisions.md."""

    missing_after_seconds: Seconds = Field(
        default=120.0,
        description="How long after its last image a scan without any threat detection report is told of as "
        "tdr.missing.",
    )
    orphan_after_seconds: Seconds = Field(
        default=300.0,
        description="How long after it came a report is told of as tdr.orphan, if nothing that it refers to "
        "has come.",
    )


class OutboxSettings(Section):
    """How events reach callbacks and rules, and what becomes of those that do not."""

    first_retry_seconds: Seconds = Field(
        default=2.0,
        description="Wait after a delivery failed for the first time; it doubles with each further failure.",
    )
    max_retry_seconds: Seconds = Field(
        default=3_600.0, description="Longest such wait. Of each wait up to a half is left out by chance."
    )
    max_attempts: Count = Field(
        default=36,
        description="Tries after which an event becomes a dead letter; with the other defaults after a day. "
        "A destination that is down costs none.",
    )
    max_parked: Count = Field(
        default=10_000,
        description="Events of one subscription that wait for another try, or behind one of the same series; "
        "with more it reads no further until some are delivered.",
    )
    max_dead_letters: Count = Field(
        default=10_000,
        description="Dead letters of one subscription that are kept; beyond them the oldest are dropped.",
    )
    study_settle_seconds: Seconds = Field(
        default=60.0,
        description="A study is settled when nothing has come for it for so long.",
    )
    drain_seconds: Seconds = Field(
        default=5.0,
        description="How long deliveries that are under way may take when the server stops; what is broken "
        "off is delivered again by the next one, and marked as perhaps repeated.",
    )
