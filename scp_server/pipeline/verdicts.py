"""What a callback raises to say what is to happen."""

from __future__ import annotations

from scp_server.errors import SCPServerError


class Reject(SCPServerError):
    """Refuse what is asked for: an object (stage `received`) or an association (stage `associated`).

    `status` is the C-STORE status (0xA7xx, 0xA9xx or 0xCxxx, PS3.4 B.2.3); `comment` becomes Error Comment,
    cut to 64 characters. `quarantine` keeps the bytes, or not; None does as with the server's own refusals
    (kept when refused for what it is). An association is rejected with 1/1/1 (PS3.8 9.3.4), whatever the
    status is.
    """

    def __init__(self, status: int = 0xC000, comment: str = "", *, quarantine: bool | None = None) -> None:
        if not (status & 0xFF00 in (0xA700, 0xA900) or status & 0xF000 == 0xC000):
            raise ValueError(f"0x{status:04X} does not refuse a C-STORE: 0xA7xx, 0xA9xx or 0xCxxx does")
        super().__init__(comment or "refused by a callback")
        self.status = status
        self.comment = comment or "refused by a callback"
        self.quarantine = quarantine

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled by what it was made from: a callback's process sends it to the server."""
        return _reject, (self.status, self.comment, self.quarantine)


def _reject(status: int, comment: str, quarantine: bool | None) -> Reject:
    return Reject(status, comment, quarantine=quarantine)


class NotDelivered(SCPServerError):
    """A delivery of the outbox failed, and is to be tried again later: where the destination has asked for
    that, not before `retry_after_seconds`."""

    def __init__(self, text: str = "", *, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


class DestinationDown(NotDelivered):
    """It failed because nothing can be delivered there now: everything waits, no delivery counts as tried."""


class Undeliverable(SCPServerError):
    """A delivery of the outbox failed in a way that trying again does not mend: it becomes a dead letter."""
