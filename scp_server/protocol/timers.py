"""The deadlines of one association, as plain numbers: no clock and nothing scheduled.

Times are seconds of one monotonic clock, given by the caller. A deadline that doesn't run is `NEVER`.

- The state's deadline: ARTIM in Sta2 and Sta13 (PS3.8 9.1.5), and the wait for an answer to our own
  A-ASSOCIATE-RQ or A-RELEASE-RQ. Absolute: no byte from the peer puts it off.
- Receiving: from the first byte of a PDU or message until nothing is left incomplete. Two rules, so that
  neither a peer that stops nor one that drips keeps its place: no silence of `dimse_seconds`, and, beyond
  that age, an average of at least `minimum_bytes_per_second`. While we do not read ourselves (`pause`),
  none of it counts.
- Idle: since the last whole message, while nobody owes anybody an answer.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from scp_server.protocol.limits import Limits

NEVER = inf


def _after(start: float, seconds: float) -> float:
    """`seconds` after `start`, where 0 seconds mean never."""
    return start + seconds if seconds else NEVER


class Timers:
    """Remembers when things began, and computes deadlines from that when asked."""

    __slots__ = (
        "_idle_since",
        "_limits",
        "_message_seen",
        "_paused_at",
        "_received_at",
        "_received_bytes",
        "_receiving_since",
        "state_deadline",
    )

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self.state_deadline = NEVER
        """The absolute deadline of the current state."""
        self._idle_since = now
        self._receiving_since = NEVER
        self._received_at = now
        self._received_bytes = 0
        self._message_seen = 0
        self._paused_at = NEVER

    def set_idle_seconds(self, seconds: float) -> None:
        """From now on the idle time of either kind of association; 0 is never."""
        self._limits = replace(self._limits, idle_seconds=seconds, dicos_idle_seconds=seconds)

    def start_artim(self, now: float) -> None:
        """Start ARTIM, or start it again (PS3.8 9.1.5)."""
        self.state_deadline = _after(now, self._limits.artim_seconds)

    def start_response(self, now: float) -> None:
        """Start to wait for the answer to our A-ASSOCIATE-RQ or A-RELEASE-RQ."""
        self.state_deadline = _after(now, self._limits.response_seconds)

    def stop(self) -> None:
        """The state has no deadline of its own."""
        self.state_deadline = NEVER

    def message_ended(self, now: float) -> None:
        """A whole message has been sent or received."""
        self._idle_since = now

    def received(self, size: int, now: float, *, incomplete: bool, whole_messages: int) -> None:
        """`size` bytes have been taken in; what they left behind is `incomplete`, or nothing.

        `whole_messages` counts those received so far: another one begins another measurement.
        """
        if not incomplete:
            self._receiving_since = NEVER
            return
        if self._receiving_since == NEVER or whole_messages != self._message_seen:
            self._receiving_since = now
            self._received_bytes = 0
            self._message_seen = whole_messages
        self._received_bytes += size
        self._received_at = now

    def pause(self, now: float) -> None:
        """We stop reading: the peer cannot be blamed for silence."""
        if self._paused_at == NEVER:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """We read again; the time in between has not been."""
        if self._paused_at == NEVER:
            return
        gap = now - self._paused_at
        self._paused_at = NEVER
        self._idle_since = min(self._idle_since + gap, now)
        self._received_at = min(self._received_at + gap, now)
        if self._receiving_since != NEVER:
            self._receiving_since = min(self._receiving_since + gap, now)

    def receiving_deadline(self) -> float:
        """When the peer will have been silent for too long, or too slow."""
        limit_seconds = self._limits.dimse_seconds
        if self._receiving_since == NEVER or self._paused_at != NEVER or not limit_seconds:
            return NEVER
        silence = self._received_at + limit_seconds
        minimum_rate = self._limits.minimum_bytes_per_second
        if not minimum_rate:
            return silence
        return min(silence, self._receiving_since + max(limit_seconds, self._received_bytes / minimum_rate))

    def idle_deadline(self, *, is_dicos: bool) -> float:
        """When nothing will have happened for too long; the caller knows whether anything is under way."""
        if self._receiving_since != NEVER or self._paused_at != NEVER:
            return NEVER
        limits = self._limits
        return _after(self._idle_since, limits.dicos_idle_seconds if is_dicos else limits.idle_seconds)
