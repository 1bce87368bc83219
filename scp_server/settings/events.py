"""The settings of the event log, of those who follow it, and of the outbox that delivers from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from scp_server.errors import ConfigurationError
from scp_server.settings.limits import Count, Seconds
from scp_server.settings.secret_file import read_secret
from scp_server.settings.section import Section

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]{16,256}={0,2}")
"""A bearer token (RFC 6750 2.1) that cannot be guessed."""


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
    token: SecretStr | None = Field(
        default=None,
        description="What followers must send as Authorization: Bearer; others are answered 401. 16 to 256 "
        "letters, digits or . _ ~ + / -, such as openssl rand -hex 32 gives. Without one whoever reaches "
        "http.host may follow.",
    )
    token_file: Annotated[Path, Field(strict=False)] | None = Field(
        default=None, description="A file that holds it instead, without the line break at its end."
    )

    @field_validator("token")
    @classmethod
    def _token(cls, token: SecretStr | None) -> SecretStr | None:
        return token if token is None else SecretStr(_checked(token.get_secret_value()))

    @field_validator("token_file")
    @classmethod
    def _token_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and info.data.get("token") is not None:
            raise ValueError("must not be given beside token")
        return path

    @property
    def admits_anybody(self) -> bool:
        """Whether somebody may follow without having been told anything."""
        return self.max_followers > 0 and self.token is None and self.token_file is None

    @property
    def bearer_token(self) -> str | None:
        """The token, read from its file where it has one. Raises ConfigurationError."""
        if self.token_file is None:
            return None if self.token is None else self.token.get_secret_value()
        text = read_secret(self.token_file, "events.token_file")
        try:
            return _checked(text)
        except ValueError as error:
            raise ConfigurationError(f"events.token_file {self.token_file} {error}") from error


def _checked(token: str) -> str:
    """Raises ValueError that does not name the token."""
    if _TOKEN.fullmatch(token) is None:
        raise ValueError("must be 16 to 256 letters, digits or . _ ~ + / -")
    return token


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
