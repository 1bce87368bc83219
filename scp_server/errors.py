"""Every exception this package raises on purpose, as one tree.

::

    SCPServerError
    ├── ConfigurationError          wrong settings or usage; names the key            (exit code 2)
    │   └── QueryError              a query that no identifier can say; names the key
    ├── ProtocolError               the peer broke PS3.8 or PS3.7: carries the A-ABORT it is told
    ├── LocalProtocolError          our own code asked for what the state forbids
    ├── AssociationError            there is no (more) association                    (exit code 3)
    │   ├── ConnectFailed           no TCP connection, or it ended before an answer
    │   ├── AssociationRejected     A-ASSOCIATE-RJ, with result, source and reason
    │   ├── AssociationAborted      A-ABORT, with source and reason
    │   ├── AssociationReleased     the peer released while we still wanted something
    │   └── AssociationLost         the transport ended without a word
    ├── OperationRefused            carries status, Error Comment and Offending Elements
    │   ├── RequestFailed           the peer ended a request of ours with a failure
    │   │   ├── FindFailed          a C-FIND
    │   │   └── RetrieveFailed      a C-MOVE or a C-GET
    │   └── UnreadableDataset       the data set cannot be read: what is wrong, at which byte
    ├── CannotTranscode             an object cannot be sent in another transfer syntax: says why
    ├── CannotView                  a file cannot be read as asked: says which, what and where
    ├── CannotReport                no report can be made of what was found: says why
    ├── StorageError                an object could not be written, read or deleted
    │   ├── StorageFull             no space (ENOSPC, EDQUOT, or the reserve)         (0xA700)
    │   └── ObjectNotFound          no object lies at that location
    └── IndexFailure                the index could not do it
        ├── IndexUnavailable        locked, full or failing now; trying again may help (0xA700)
        ├── SearchInterrupted       a search was stopped by whoever asked for it
        └── IndexSchemaUnknown      written by a newer version, or not an index at all
"""

from __future__ import annotations

from collections.abc import Sequence


class SCPServerError(Exception):
    """Base of every exception this package raises on purpose."""


class ConfigurationError(SCPServerError):
    """The settings or the command line ask for something impossible; the text names the key."""


class QueryError(ConfigurationError):
    """A query that no identifier can say; the text names the key."""


class ProtocolError(SCPServerError):
    """The peer sent what the standard does not allow; it is told by A-ABORT (PS3.8 9.3.8).

    `source` is 0 (service user) or 2 (service provider), `reason` the provider's reason.
    """

    def __init__(self, text: str, *, source: int = 2, reason: int = 0) -> None:
        super().__init__(text)
        self.source = source
        self.reason = reason


class LocalProtocolError(SCPServerError):
    """Our side issued a primitive that the association's state does not allow."""


class AssociationError(SCPServerError):
    """There is no association, or no more."""


class ConnectFailed(AssociationError):
    """No TCP connection could be made, or it ended before the association was answered."""


class AssociationRejected(AssociationError):
    """The peer answered A-ASSOCIATE-RJ (PS3.8 9.3.4)."""

    def __init__(self, result: int, source: int, reason: int, text: str = "") -> None:
        super().__init__(text or f"association rejected: result {result}, source {source}, reason {reason}")
        self.result = result
        self.source = source
        self.reason = reason


class AssociationAborted(AssociationError):
    """The association ended by A-ABORT, the peer's or ours (PS3.8 9.3.8)."""

    def __init__(self, source: int, reason: int, text: str = "") -> None:
        super().__init__(text or f"association aborted: source {source}, reason {reason}")
        self.source = source
        self.reason = reason


class AssociationReleased(AssociationError):
    """The peer released the association while something was still wanted of it."""


class AssociationLost(AssociationError):
    """The transport connection ended without a release or an abort."""


class OperationRefused(SCPServerError):
    """A DIMSE operation that ends with a failure status, and what the answer says about it.

    `status` is (0000,0900), `comment` becomes Error Comment (0000,0902), cut to 64 characters,
    `offending_elements` are tags as 32-bit integers for (0000,0901) (PS3.7 C).
    """

    def __init__(self, status: int, comment: str, offending_elements: Sequence[int] = ()) -> None:
        super().__init__(comment)
        self.status = status
        self.comment = comment
        self.offending_elements = tuple(offending_elements)


class RequestFailed(OperationRefused):
    """The peer ended a request of ours with a failure; what came before was handed out already.

    `status`, `comment` and `offending_elements` are the peer's.
    """

    request_name = "the request"

    def __str__(self) -> str:
        tags = ", ".join(f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in self.offending_elements)
        parts = (f"{self.request_name} ended with status 0x{self.status:04X}", self.comment, tags)
        return ": ".join(part for part in parts if part)


class FindFailed(RequestFailed):
    """The peer ended our C-FIND with a failure; what matched before was handed out already."""

    request_name = "C-FIND"


class RetrieveFailed(RequestFailed):
    """The peer ended our C-MOVE or C-GET with a failure; `result` of the retrieval has its counters."""

    request_name = "the retrieval"


class UnreadableDataset(OperationRefused):
    """The data set is structurally broken: cut, overrunning, too deep, or not a data set at all.

    `offset_bytes` counts from the data set's first byte (after inflating, where it is deflated).
    """

    def __init__(
        self,
        comment: str,
        *,
        offset_bytes: int = 0,
        status: int = 0xC000,
        offending_elements: Sequence[int] = (),
    ) -> None:
        super().__init__(status, comment, offending_elements)
        self.offset_bytes = offset_bytes


class CannotTranscode(SCPServerError):
    """A data set cannot be given another transfer syntax without losing something, or is damaged."""


class CannotView(SCPServerError):
    """What was asked of a stored object cannot be given: its file is damaged or no object, what it holds
    makes no sense, or an extra is not installed. The text names the file, what is wrong, and where."""


class CannotReport(SCPServerError):
    """What was found in an image cannot be reported: it lies outside of the image, or says what no report
    can say."""


class StorageError(SCPServerError):
    """An object could not be written, read or deleted."""


class StorageFull(StorageError):
    """There is no space left for the object, or only the reserve."""


class ObjectNotFound(StorageError):
    """No object lies at the location asked for."""


class IndexFailure(SCPServerError):
    """The index could not do what it was asked."""


class IndexUnavailable(IndexFailure):
    """The index is locked, full or failing now; trying again may help."""


class SearchInterrupted(IndexFailure):
    """A search was stopped by whoever asked for it."""


class IndexSchemaUnknown(IndexFailure):
    """The index was written by a newer version, or is not an index of this server."""
