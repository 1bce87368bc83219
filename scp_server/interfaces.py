"""What `net` offers to services (and later to the pipeline), so that neither needs to import it."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from scp_server.protocol.events import Buffer
from scp_server.protocol.items import RoleSelection
from scp_server.protocol.message import Message, Priority


@dataclass(frozen=True, slots=True)
class AcceptedContext:
    """A presentation context both sides agreed on (PS3.8 9.3.3.2)."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str


class DuplicatePolicy(StrEnum):
    """What happens to other bytes under a SOP Instance UID that is already kept."""

    KEEP_FIRST = "keep_first"
    """The first bytes stay; the newcomer is refused."""
    PARTS = "parts"
    """Both are kept, as parts of one instance."""
    REPLACE = "replace"
    """The newcomer becomes the instance; what was kept before is deleted."""
    REJECT = "reject"
    """As `KEEP_FIRST`, but the newcomer is of no interest to anybody."""


class ValidationPolicy(StrEnum):
    """What happens to objects that are not what their class says."""

    OFF = "off"
    """Nobody looks."""
    RECORD = "record"
    """They are stored, and what was found beside them."""
    QUARANTINE = "quarantine"
    """They are refused, and kept in quarantine."""
    REFUSE = "refuse"
    """They are refused, and not kept."""


class DicosMode(StrEnum):
    """Whether a peer's associations are treated as DICOS associations."""

    AUTO = "auto"
    """Those that are, by application context name or framing."""
    ALWAYS = "always"
    """All of them."""
    NEVER = "never"
    """None: only DICOM's application context name is accepted."""


@dataclass(frozen=True, slots=True)
class PeerRules:
    """How a configured peer is treated. `name` is ours, made from the settings: fit for logs and labels."""

    name: str
    duplicates: DuplicatePolicy | None = None
    """None: as for everybody."""
    dicos: DicosMode = DicosMode.AUTO
    validation: ValidationPolicy | None = None
    """None: as for everybody."""
    relational: bool | None = None
    """Whether its queries are relational without having been negotiated as such; None: as for everybody."""


@dataclass(slots=True)
class AssociationInfo:
    """Who is on the other end of an association, and how it speaks.

    AE titles are the peer's own text, stripped of outer spaces; they are escaped where they reach a log.
    """

    association_id: str
    calling_ae_title: str
    called_ae_title: str
    peer_host: str
    peer_port: int
    application_context_name: str
    implementation_class_uid: str = ""
    implementation_version_name: str = ""
    contexts: dict[int, AcceptedContext] = field(default_factory=dict)
    extended_negotiations: Mapping[str, bytes] = field(default_factory=dict)
    """By SOP class, the service-class application information that was agreed on (PS3.7 D.3.3.5)."""
    roles: Mapping[str, RoleSelection] = field(default_factory=dict)
    """By SOP class, the roles of the requestor that were agreed on (PS3.7 D.3.3.4). Of a class that is not
    here it is the SCU, and we are the SCP."""
    is_dicos: bool = False
    """True with one of the DICOS application context names, or once the glued framing was used, unless
    `peer` says otherwise."""
    peer: PeerRules | None = None
    """The entry of the settings that the association matched."""


class AssociationVerdict(StrEnum):
    """What is said of an association that is asked for."""

    YES = "yes"
    NO = "no"
    """Refused on purpose."""
    CANNOT_SAY = "cannot_say"
    """Whoever was asked failed: trying again may help."""


class DatasetSource(Protocol):
    """The data set of one request, as it arrives."""

    def chunks(self) -> AsyncIterator[list[memoryview]]:
        """Yield what has arrived since the last time, without copying, until the data set's end.

        The views are of immutable bytes and stay valid as long as they are kept. They count against the
        association's and the process's budget until `release`. An empty list asks the reader to let go of
        what it holds, because the process's budget is used up. Raises AssociationError when the association
        ends before the data set does.
        """
        ...

    def release(self, size_bytes: int) -> None:
        """So many bytes are held no longer. What is unreleased when the operation ends is released then."""
        ...

    @property
    def received_bytes(self) -> int:
        """How much of the data set has arrived."""
        ...


@dataclass(frozen=True, slots=True)
class StoreOutcome:
    """The peer's answer to a C-STORE of ours: Status (0000,0900) and Error Comment (0000,0902)."""

    status: int
    error_comment: str = ""
    counts_as_warning: bool = False
    """The settings say so, whatever the status is."""


class Sender(Protocol):
    """An association on which we may send C-STORE requests, one after another."""

    def contexts_for(self, sop_class_uid: str) -> tuple[AcceptedContext, ...]:
        """The accepted contexts of that class on which we may be the SCU, in order of their ids."""
        ...

    async def store(
        self,
        context: AcceptedContext,
        *,
        sop_class_uid: str,
        sop_instance_uid: str,
        dataset: AsyncIterable[bytes],
        priority: int = Priority.MEDIUM,
        move_originator: tuple[str, int] | None = None,
    ) -> StoreOutcome:
        """Send an object in the transfer syntax of `context`, streamed, and wait for the answer.

        `move_originator` is the AE title and message id of the C-MOVE-RQ behind it (PS3.7 9.1.1.1). A second
        call waits for the first. Raises AssociationError when the association is gone: also when the peer
        does not answer in time. What `dataset` raises before its first piece leaves the association as it
        is; later, or when the call is cancelled, the association is aborted, for half a message was sent.
        """
        ...


class Destinations(Protocol):
    """The remotes that are configured, by AE title: where objects may be sent."""

    def is_known(self, ae_title: str) -> bool:
        """Whether a remote of that title is configured."""
        ...

    def transfer_syntaxes_for(self, ae_title: str, stored: str, targets: Sequence[str]) -> tuple[str, ...]:
        """The transfer syntaxes to propose to a remote for an object that is stored in `stored` and can be
        given `targets`; empty where it takes none of them. For an unknown title, all of them."""
        ...

    def send_to(
        self, ae_title: str, contexts: Sequence[tuple[str, Sequence[str]]]
    ) -> AbstractAsyncContextManager[Sender]:
        """An association to a configured remote: one that is open, or a new one; waits where the limits say.

        `contexts` are (SOP class, transfer syntaxes) pairs; each class is proposed with each of its transfer
        syntaxes in a context of its own, 128 of them at most (LocalProtocolError). What was accepted of them
        `Sender.contexts_for` says. After a clean end the association is kept for the next one; otherwise it
        is aborted. Entering raises AssociationError: ConnectFailed (also for a title that is not known, or
        no more), AssociationRejected, AssociationAborted.
        """
        ...


class Operation(Protocol):
    """One DIMSE request being performed, in a task of its own.

    When the association ends, an unfinished data set raises AssociationError, `send` raises it too, and
    `cancel_requested` becomes true; the task itself is cancelled only when the server is stopped at once.
    """

    @property
    def association(self) -> AssociationInfo: ...

    @property
    def context(self) -> AcceptedContext: ...

    @property
    def request(self) -> Message: ...

    @property
    def dataset(self) -> DatasetSource:
        """Empty where the request has none. What a service leaves unread is drained before the answer."""
        ...

    @property
    def sender(self) -> Sender:
        """Sends C-STORE sub-operations on the operation's own association, as C-GET does (PS3.4 C.4.3)."""
        ...

    @property
    def cancel_requested(self) -> bool:
        """A C-CANCEL-RQ for this operation has arrived (PS3.7 9.3.2.3), or the association has ended."""
        ...

    def when_cancelled(self, callback: Callable[[], None]) -> None:
        """Have `callback` called as soon as `cancel_requested` becomes true; now, where it is already."""
        ...

    async def send(self, response: Message, dataset: Buffer | None = None) -> None:
        """Send a pending response; waits while the peer does not read. Raises AssociationError."""
        ...


class AssociationListener(Protocol):
    """Who is told of connections and associations. None raises, and only `may_associate` takes its time."""

    def connected(self, peer_host: str, peer_port: int) -> None:
        """A socket was accepted."""
        ...

    def disconnected(self, peer_host: str, peer_port: int) -> None:
        """A socket is gone."""
        ...

    def judges(self, association: AssociationInfo) -> bool:
        """Whether `may_associate` is to be asked about this association."""
        ...

    async def may_associate(self, association: AssociationInfo) -> AssociationVerdict:
        """Asked before the association is accepted, and while its peer waits; answers within a time limit."""
        ...

    def accepted(self, association: AssociationInfo) -> None:
        """An association was accepted."""
        ...

    def ended(self, association: AssociationInfo, outcome: str, operations: int, dataset_bytes: int) -> None:
        """An association is over: `released`, `aborted` or `lost`, after so many requests and bytes of data
        sets."""
        ...

    def echoed(self, association: AssociationInfo) -> None:
        """A C-ECHO is being answered."""
        ...


class Transcoding(Protocol):
    """Sends an object in another transfer syntax than it is stored in, where that loses nothing of it."""

    def targets(self, stored_transfer_syntax: str, dataset_bytes: int) -> tuple[str, ...]:
        """The other transfer syntaxes an object of this one and of this size can be sent in now, best first.

        Nothing of the object is read: `start` may still find that it cannot be done.
        """
        ...

    async def start(
        self, dataset: AsyncIterable[Buffer], stored: str, target: str, dataset_bytes: int
    ) -> AsyncGenerator[bytes, None]:
        """The data set (of `dataset_bytes` as stored) in transfer syntax `target`, in pieces.

        When this returns, what is before pixel data has been judged and the first frame is decoded, so that
        what can be told early is told before anything is sent: raises CannotTranscode. The pieces raise it,
        too, for damage further on; what was sent until then is no whole data set. Neither the object nor any
        multi-frame pixel data is ever held. Close the generator (`aclose`) where it is not read to its end; a
        `dataset` that is one, too, is closed with it.
        """
        ...


@dataclass(frozen=True, slots=True)
class FinalResponse:
    """A final response that has a data set, as that of a retrieve with failures does (PS3.4 C.4.2.1.4.2)."""

    response: Message
    dataset: bytes


Service = Callable[[Operation], Awaitable[Message | FinalResponse]]
"""Performs one operation and returns its final response, which `net` sends."""
