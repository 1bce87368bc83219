"""What every DICOS object says: of the object of inspection, scan, series, machine, and itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from scp_server.objects.raw_header import RawHeader
from scp_server.views.fields import integer, text, uid

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from scp_server.views.stored_file import StoredFile


@dataclass(frozen=True, slots=True)
class ObjectOfInspection:
    """Whatever was scanned; what DICOM calls the patient."""

    object_id: str
    issuer: str
    id_type: str
    """`TEXT`, `RFID`, `BARCODE` or `MRP`."""
    object_type: str
    """`BAGGAGE`, `CARGO`, `PERSON`, `ANIMAL`, `BIO_SAMPLE` or `OTHER`."""


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan of it; what DICOM calls the study. Dates and times are the object's own text."""

    study_instance_uid: str
    scan_id: str
    date: str
    time: str
    description: str
    scan_type: str
    """`OPERATIONAL` or `NON_OPERATIONAL`."""


@dataclass(frozen=True, slots=True)
class Series:
    """The series within the scan."""

    series_instance_uid: str
    modality: str
    date: str
    time: str
    acquisition_status: str


@dataclass(frozen=True, slots=True)
class Machine:
    """The device that made the object."""

    manufacturer: str
    model: str
    serial_number: str
    software_versions: str
    machine_id: str
    location: str
    address: str


class InstanceView:
    """One stored object. What is read of it later comes from its file, which stays mapped meanwhile.

    `header` gives every other attribute, with the VRs of DICOS; `dataset` the same as a pydicom data set.
    """

    def __init__(self, file: StoredFile) -> None:
        self.file = file

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def header(self) -> RawHeader:
        return self.file.header

    @property
    def transfer_syntax_uid(self) -> str:
        return self.file.file_meta.transfer_syntax_uid

    @property
    def sop_class_uid(self) -> str:
        return uid(self.header, 0x00080016)

    @property
    def sop_instance_uid(self) -> str:
        return uid(self.header, 0x00080018)

    @property
    def frame_of_reference_uid(self) -> str:
        """Empty where the object has none."""
        return uid(self.header, 0x00200052)

    @property
    def dicos_version(self) -> str:
        """`V02`, `V02A` or `V03`."""
        return text(self.header, 0x4010103A)

    @property
    def instance_number(self) -> int | None:
        return integer(self.header, 0x00200013)

    @cached_property
    def object_of_inspection(self) -> ObjectOfInspection:
        tags = (0x00100020, 0x00100021, 0x00100022, 0x40101042)
        return ObjectOfInspection(*(text(self.header, tag) for tag in tags))

    @cached_property
    def scan(self) -> Scan:
        tags = (0x00200010, 0x00080020, 0x00080030, 0x00081030, 0x40101048)
        return Scan(uid(self.header, 0x0020000D), *(text(self.header, tag) for tag in tags))

    @cached_property
    def series(self) -> Series:
        tags = (0x00080060, 0x00080021, 0x00080031, 0x40101044)
        return Series(uid(self.header, 0x0020000E), *(text(self.header, tag) for tag in tags))

    @cached_property
    def machine(self) -> Machine:
        tags = (0x00080070, 0x00081090, 0x00181000, 0x00181020, 0x00081010, 0x00080080, 0x00080081)
        return Machine(*(text(self.header, tag) for tag in tags))

    def dataset(self) -> Dataset:
        """The header as a pydicom data set: everything before the pixels but values above 64 KiB."""
        return self.header.to_pydicom()
