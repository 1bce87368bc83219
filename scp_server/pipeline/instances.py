"""Instances as callbacks get them: one that has been received, and one that is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from scp_server.errors import StorageError
from scp_server.objects.changes import Changes
from scp_server.objects.header_tap import HeaderTap
from scp_server.objects.identifier import Key, located
from scp_server.objects.query_keys import parse_key
from scp_server.objects.raw_header import RawHeader, Scalar
from scp_server.objects.summary import InstanceSummary
from scp_server.observability.text import peer_text
from scp_server.pipeline.deliveries import EventKind, LoggedEvent
from scp_server.pipeline.subjects import AssociationFacts, Times

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_PREAMBLE_BYTES = 132
_READ_BYTES = 256 * 1024
_REMEMBERED_ASSOCIATIONS = 64
"""What is known of each is kept for all of its objects."""
_REMEMBERED = 1_024
"""Instances that are kept for the next callback, of about a kilobyte each: more than a page of the log."""


@lru_cache(maxsize=512)
def _key(name: str) -> Key:
    parsed = parse_key(name)
    return Key(parsed.tag, parsed.vr, private_creator=parsed.creator)


def _attribute(header: RawHeader, name: str | int) -> Scalar | tuple[Scalar, ...] | None:
    tag = name if isinstance(name, int) else located(header, _key(name))
    values = [] if tag is None else header.value(tag)
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


class ReceivedInstance:
    """An object that has been received whole, before anything of it is stored.

    `size_bytes` are those of its data set. The attributes before pixel data can be read; values longer than
    `limits.max_header_value_bytes` cannot.
    """

    __slots__ = ("association", "changes", "header", "size_bytes", "summary", "times", "transfer_syntax_uid")

    def __init__(
        self,
        association: AssociationFacts,
        times: Times,
        summary: InstanceSummary,
        header: RawHeader,
        transfer_syntax_uid: str,
        size_bytes: int,
    ) -> None:
        self.association = association
        self.times = times
        self.summary = summary
        self.header = header
        """The attributes as their own bytes."""
        self.transfer_syntax_uid = transfer_syntax_uid
        self.size_bytes = size_bytes
        self.changes: Changes | None = None
        """What callbacks and rules want changed; None where that is nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its header as that is stored, for the process of a callback."""
        facts = (self.association, self.times, self.summary)
        return _received, (
            *facts,
            self.header.pack(),
            self.transfer_syntax_uid,
            self.size_bytes,
            self.changes,
        )

    @property
    def sop_class_uid(self) -> str:
        """SOP Class UID (0008,0016)."""
        return self.summary.sop_class_uid

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID (0008,0018)."""
        return self.summary.sop_instance_uid

    @property
    def study_instance_uid(self) -> str:
        """Study Instance UID (0020,000D)."""
        return self.summary.study_instance_uid

    @property
    def series_instance_uid(self) -> str:
        """Series Instance UID (0020,000E)."""
        return self.summary.series_instance_uid

    @property
    def modality(self) -> str | None:
        """Modality (0008,0060)."""
        return self.summary.modality

    @property
    def log_fields(self) -> dict[str, object]:
        """What log lines say of it."""
        return {**self.association.log_fields, "sop_instance_uid": peer_text(self.sop_instance_uid)}

    def attribute(self, name: str | int) -> Scalar | tuple[Scalar, ...] | None:
        """A value of the data set, several as a tuple; None where the attribute is absent, empty, a sequence
        or bytes. `name` is a keyword of DICOM or DICOS, a tag as text or number, or
        `"0029,ACME CT,10"` for a private one. Costs some microseconds. Raises QueryError for an unknown name.
        """
        return _attribute(self.header, name)

    def change(
        self,
        set: Mapping[str, object] | None = None,
        *,
        remove: Iterable[str] = (),
        copy: Mapping[str, str] | None = None,
    ) -> None:
        """Have the object stored with other attributes: values by attribute, attributes that go, sources by
        attribute. What is asked for later wins; all of it is done once every callback has seen the object.

        Attributes are named as in `attribute`. Only those of the data set itself can be changed; the original
        values go into its Original Attributes Sequence. Raises ConfigurationError for what cannot be changed,
        or a value that the attribute cannot have. A value that this object's character set cannot say refuses
        the object with 0xC000.
        """
        changes = Changes.of(set, remove, copy)
        self.changes = changes if self.changes is None else self.changes.merged(changes)

    def dataset(self) -> Dataset:
        """The attributes before pixel data as a pydicom data set of the caller's own: changing it changes
        nothing that is stored."""
        return self.header.to_pydicom()


def _received(
    association: AssociationFacts,
    times: Times,
    summary: InstanceSummary,
    packed: bytes,
    transfer_syntax_uid: str,
    size_bytes: int,
    changes: Changes | None,
) -> ReceivedInstance:
    header = RawHeader.unpack(packed)
    instance = ReceivedInstance(association, times, summary, header, transfer_syntax_uid, size_bytes)
    instance.changes = changes
    return instance


class StoredBytes(Protocol):
    """Where stored objects are read from; `Storage` is one."""

    def read(
        self, location: str, offset_bytes: int = 0, length_bytes: int | None = None
    ) -> AsyncIterator[bytes]: ...


class StoredFiles:
    """Stored objects that are files below a folder, read where there is no event loop of the server's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, location: str) -> Path:
        """The file at a location."""
        return self._folder / location

    async def read(
        self, location: str, offset_bytes: int = 0, length_bytes: int | None = None
    ) -> AsyncIterator[bytes]:
        """See `Storage.read`; blocks."""
        left = length_bytes
        with self.path(location).open("rb") as file:
            file.seek(offset_bytes)
            while data := file.read(_READ_BYTES if left is None else min(left, _READ_BYTES)):
                left = None if left is None else left - len(data)
                yield data


@dataclass(frozen=True, slots=True)
class Archive:
    """What stored instances are read through. `files` where they are some, also for other processes."""

    storage: StoredBytes
    files: StoredFiles | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled for the process of a callback, which reads the files itself."""
        if self.files is None:
            raise StorageError("the objects of this storage are no files that another process could read")
        return Archive, (self.files, self.files)


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """A part of an instance that is stored: durable, indexed, and acknowledged or about to be.

    `size_bytes` are those of the Part 10 file. `dataset_offset_bytes` is where its data set begins.
    """

    association: AssociationFacts
    times: Times
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    modality: str | None
    transfer_syntax_uid: str
    part_number: int
    """From 1 on; only DICOS objects usually have others."""
    size_bytes: int
    digest: str
    """Hexadecimal, of the data set as it was received."""
    location: str
    archive: Archive

    @classmethod
    def of(
        cls, event: LoggedEvent, archive: Archive, association: AssociationFacts | None = None
    ) -> StoredInstance:
        """The part that an event `object.stored` is about; `association` where another of it was made."""
        data = event.data
        if event.kind is not EventKind.OBJECT_STORED or event.location is None:
            raise ValueError(f"event {event.event_id} is about no object")
        return cls(
            association=association or association_of(event),
            times=Times(
                receive_began_at_ns=_int(data, "receive_began_at_ns"),
                receive_ended_at_ns=_int(data, "receive_ended_at_ns"),
                stored_at_ns=_int(data, "stored_at_ns"),
            ),
            study_instance_uid=_text(data, "study_instance_uid"),
            series_instance_uid=_text(data, "series_instance_uid"),
            sop_instance_uid=_text(data, "sop_instance_uid"),
            sop_class_uid=_text(data, "sop_class_uid"),
            modality=_text(data, "modality") or None,
            transfer_syntax_uid=_text(data, "transfer_syntax_uid"),
            part_number=_int(data, "part_number"),
            size_bytes=_int(data, "size_bytes"),
            digest=_text(data, "digest"),
            location=event.location,
            archive=archive,
        )

    @property
    def log_fields(self) -> dict[str, object]:
        """What log lines say of it."""
        return {**self.association.log_fields, "sop_instance_uid": peer_text(self.sop_instance_uid)}

    @property
    def path(self) -> Path:
        """The Part 10 file; it is the server's, only to be read. Raises StorageError where there are none."""
        if self.archive.files is None:
            raise StorageError("the objects of this storage are no files")
        return self.archive.files.path(self.location)

    def open(self, offset_bytes: int = 0, length_bytes: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of the Part 10 file, in pieces. Raises ObjectNotFound where it was deleted meanwhile, or
        StorageError."""
        return self.archive.storage.read(self.location, offset_bytes, length_bytes)

    async def header(self) -> RawHeader:
        """The attributes before pixel data, read from the file. Raises what `open` does."""
        reader = _HeaderReader(self.transfer_syntax_uid)
        async for data in self.open():
            if reader.take(data):
                break
        return reader.header

    async def dataset(self) -> Dataset:
        """The same as a pydicom data set of the caller's own."""
        return (await self.header()).to_pydicom()

    def read_dataset(self) -> Dataset:
        """`dataset` for plain functions: reads the file in this thread."""
        reader = _HeaderReader(self.transfer_syntax_uid)
        with self.path.open("rb") as file:
            while (data := file.read(_READ_BYTES)) and not reader.take(data):
                pass
        return reader.header.to_pydicom()


class StoredInstances:
    """The parts that events are about, each made once for all callbacks that get it about the same time."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._made: dict[int, StoredInstance] = {}
        self._associations: dict[str, AssociationFacts] = {}

    def of(self, event: LoggedEvent) -> StoredInstance:
        """The part that an event `object.stored` is about."""
        found = self._made.get(event.event_id)
        if found is None:
            if len(self._made) >= _REMEMBERED:
                del self._made[next(iter(self._made))]
            if len(self._associations) >= _REMEMBERED_ASSOCIATIONS:
                self._associations.clear()
            known = self._associations.get(event.association_id)
            found = self._made[event.event_id] = StoredInstance.of(event, self.archive, known)
            if event.association_id:  # What was found after a crash has none, and facts of its own.
                self._associations[event.association_id] = found.association
        return found


class _HeaderReader:
    """Reads the header of a Part 10 file that comes in pieces; the first holds File Meta, which is short."""

    def __init__(self, transfer_syntax_uid: str) -> None:
        self._tap = HeaderTap(transfer_syntax_uid)
        self._is_first = True

    def take(self, data: bytes) -> bool:
        """Whether that was enough."""
        if self._is_first:
            self._is_first = False
            data = data[dataset_offset(data) :]
        self._tap.feed(data)
        return self._tap.header_complete

    @property
    def header(self) -> RawHeader:
        """What was read."""
        if not self._tap.header_complete:
            self._tap.finish()
        return self._tap.header


def dataset_offset(start: bytes) -> int:
    """Where the data set of a Part 10 file of ours begins, by its group length (PS3.10 7.1)."""
    group_length = int.from_bytes(start[_PREAMBLE_BYTES + 8 : _PREAMBLE_BYTES + 12], "little")
    return _PREAMBLE_BYTES + 12 + group_length


def association_of(event: LoggedEvent) -> AssociationFacts:
    """The association that an event is about."""
    data = event.data
    return AssociationFacts(
        association_id=event.association_id,
        calling_ae_title=_text(data, "calling_ae_title"),
        called_ae_title=_text(data, "called_ae_title"),
        peer_host=_text(data, "peer_host"),
        peer_port=_int(data, "peer_port"),
        peer_name=_text(data, "peer_name") or None,
        is_dicos=data.get("is_dicos") is True,
        application_context_name=_text(data, "application_context_name"),
        implementation_class_uid=_text(data, "implementation_class_uid"),
        implementation_version_name=_text(data, "implementation_version_name"),
    )


def _text(data: Any, name: str) -> str:
    value = data.get(name)
    return value if isinstance(value, str) else ""


def _int(data: Any, name: str) -> int:
    value = data.get(name)
    return value if isinstance(value, int) else 0
