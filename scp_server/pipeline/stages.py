"""The moments at which the user's own functions are called, and what each of them may do."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """A moment of a connection, an association, an object or a study.

    *Inline* ones are waited for by the peer; *notified* ones are told while the server runs and not again;
    *durable* ones come from the outbox: at least once each, whatever happens to the process.
    """

    CONNECTED = "connected"
    """Notified: a socket was accepted."""
    DISCONNECTED = "disconnected"
    """Notified: a socket is gone."""
    ASSOCIATED = "associated"
    """Inline: an association is asked for, and would be accepted. `Reject` refuses it."""
    ACCEPTED = "accepted"
    """Notified: an association was accepted."""
    ENDED = "ended"
    """Notified: an association was released, aborted or lost."""
    ECHO = "echo"
    """Notified: a C-ECHO was answered."""
    RECEIVED = "received"
    """Inline: an object has been received whole and nothing of it is visible yet. `Reject` refuses it, with
    or without keeping it in quarantine; `ReceivedInstance.change` coerces it."""
    INVALID = "invalid"
    """Notified: a data set was refused."""
    STORED = "stored"
    """Durable: an object is safe, and Success was or will be said."""
    ASSOCIATION_COMPLETE = "association_complete"
    """Durable: an association has ended, and these are all the parts it brought."""
    STUDY_SETTLED = "study_settled"
    """Durable: nothing has come for a study for `outbox.study_settle_seconds`."""


INLINE_STAGES = frozenset({Stage.ASSOCIATED, Stage.RECEIVED})
DURABLE_STAGES = frozenset({Stage.STORED, Stage.ASSOCIATION_COMPLETE, Stage.STUDY_SETTLED})
