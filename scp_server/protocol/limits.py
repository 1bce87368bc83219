"""What one association may cost: every bound on what a peer can declare or delay, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one association. Sizes in bytes, times in seconds; a time of 0 means never.

    `max_pdu_bytes` is what we announce (PS3.8 D.1): it bounds the length field of a P-DATA-TF, 0 is no bound.
    """

    max_pdu_bytes: int = 131_072
    """Announced maximum length of a P-DATA-TF PDU, without its 6-byte header."""
    max_associate_pdu_bytes: int = 1_048_576
    """Longest A-ASSOCIATE-RQ or -AC that is buffered; a longer one is refused before its body is read."""
    max_command_bytes: int = 65_536
    """Longest command set (PS3.7 6.3); longer ones end in A-ABORT(2,6)."""
    max_empty_fragments: int = 1_000
    """Empty PDV fragments in one message before A-ABORT(2,6)."""
    max_association_items: int = 16_384
    """Items and sub-items of one A-ASSOCIATE-RQ or -AC: 128 presentation contexts of over a hundred transfer
    syntaxes. It bounds the time that a PDU of nothing but four-byte items can take."""
    max_user_information_items: int = 1_024
    """Sub-items in one user information item."""
    artim_seconds: float = 10.0
    """ARTIM (PS3.8 9.1.5): until a whole A-ASSOCIATE-RQ, and after an abort. Never restarted by bytes."""
    response_seconds: float = 30.0
    """Requestor: until a whole A-ASSOCIATE answer; both roles: until the answer to our A-RELEASE-RQ."""
    idle_seconds: float = 300.0
    """Longest time between messages while nothing runs; expiry is A-ABORT."""
    dicos_idle_seconds: float = 0.0
    """The same on a DICOS association, whose client does not reconnect."""
    dimse_seconds: float = 60.0
    """Longest silence inside a message or a PDU."""
    minimum_bytes_per_second: int = 1_024
    """Slowest average rate of one message, measured once it has taken `dimse_seconds`; 0 switches it off."""
