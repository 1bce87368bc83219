"""What an `Association` tells its owner, in the order it happened on the wire."""

from __future__ import annotations

from dataclasses import dataclass

from scp_server.protocol.message import Message
from scp_server.protocol.pdu import AssociateAC, AssociateRJ, AssociateRQ

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class AssociateRequested:
    """Acceptor: an A-ASSOCIATE-RQ arrived (Sta3); answer with `accept` or `reject`."""

    request: AssociateRQ


@dataclass(frozen=True, slots=True)
class AssociateAccepted:
    """Requestor: the peer accepted (Sta6)."""

    answer: AssociateAC


@dataclass(frozen=True, slots=True)
class AssociateRejected:
    """Requestor: the peer rejected; the transport is to be closed."""

    answer: AssociateRJ


@dataclass(frozen=True, slots=True)
class CommandReceived:
    """A whole command set arrived on `context_id`.

    When `message.has_dataset`, `DatasetFragment` events of the same context follow, the last one marked.
    `glued` is true when command and data set shared a PDV stream, which only DICOS scanners do.
    """

    context_id: int
    message: Message
    glued: bool = False


@dataclass(frozen=True, slots=True)
class DatasetFragment:
    """Some bytes of the current message's data set, as they lay in what was received.

    `data` is a view of the bytes given to `receive_data` and keeps them alive; it may be empty
    (only when `last`). How the stream was cut decides how many fragments there are, never what
    they add up to.
    """

    context_id: int
    data: memoryview
    last: bool


@dataclass(frozen=True, slots=True)
class ReleaseRequested:
    """The peer wants to release (Sta8, or Sta9/Sta10 on a collision); answer with `release_response`."""

    collision: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseConfirmed:
    """Our release was confirmed; the transport is to be closed."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """The association ended by A-ABORT. `by_peer` tells whose; `text` says why when it was ours."""

    source: int
    reason: int
    by_peer: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class TransportClosed:
    """The transport ended; the last event there is. `expected` after a release, rejection or abort."""

    expected: bool


Event = (
    AssociateRequested
    | AssociateAccepted
    | AssociateRejected
    | CommandReceived
    | DatasetFragment
    | ReleaseRequested
    | ReleaseConfirmed
    | Aborted
    | TransportClosed
)
