"""What the rules of the settings count: objects that were forwarded, and webhooks that were called."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class ForwardResult(StrEnum):
    """What became of one try to forward an object."""

    SENT = "sent"
    WARNING = "warning"
    """Sent, and the remote answered with a warning."""
    KNOWN = "known"
    """The remote says that it has the instance already, as it may when it is sent again."""
    GONE = "gone"
    """Not sent: the object was deleted, or replaced, before its turn came."""
    FAILED = "failed"
    """To be tried again."""
    REFUSED = "refused"
    """Not to be tried again: a dead letter."""


@dataclass(slots=True)
class ForwardCounts:
    """What one rule sent to one remote."""

    results: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ForwardResult, 0))
    sent_bytes: int = 0

    def count_bytes(self, size_bytes: int) -> None:
        """So many bytes of a data set were handed on."""
        self.sent_bytes += size_bytes


class ForwardMeasures:
    """The counts by rule and remote, both as the settings name them: few, and fit for labels."""

    def __init__(self) -> None:
        self.by_rule: dict[tuple[str, str], ForwardCounts] = {}

    def of(self, rule: str, remote: str) -> ForwardCounts:
        """Where to count for them."""
        return self.by_rule.setdefault((rule, remote), ForwardCounts())


class WebhookResult(StrEnum):
    """What became of one call of a webhook."""

    TAKEN = "taken"
    """Answered with a status of 2xx."""
    FAILED = "failed"
    """To be tried again: 408, 429, 5xx, no answer."""
    REFUSED = "refused"
    """Not to be tried again: another status."""
    DOWN = "down"
    """No connection."""


class WebhookMeasures:
    """Calls by the rule's name, as the settings have it, and by what became of them."""

    def __init__(self) -> None:
        self.by_rule: dict[str, dict[str, int]] = {}

    def of(self, rule: str) -> dict[str, int]:
        """Where to count for it."""
        return self.by_rule.setdefault(rule, dict.fromkeys(WebhookResult, 0))
