"""Valid DICOS and medical objects of every kind, and how to break a single attribute of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from pydicom import Dataset, config, dcmread

from scp_server.objects.validation.finding import Finding, Report, Severity
from scp_server.objects.validation.threats import Volumes
from scp_server.objects.validation.whole_file import FileValidation
from scp_server.testing.dicos_objects import dicos_ct, dicos_dx, dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image

Edit = Callable[[Dataset], None]
PREFIX = "1.2.840.10008.5.1.4.1.1.501"


def edited(file: bytes, edit: Edit) -> bytes:
    """The file after a change, in its own transfer syntax."""
    with config.disable_value_validation():
        dataset = dcmread(io.BytesIO(file))
        edit(dataset)
        output = io.BytesIO()
        dataset.save_as(output, enforce_file_format=False)
    return output.getvalue()


def judge(file: bytes | EncodedObject, volumes: Volumes | None = None) -> Report:
    """The report of a whole file."""
    data = file if isinstance(file, bytes) else file.part10()
    validation = FileValidation(len(data))
    for _ in validation.steps(data):
        pass
    return validation.finish(volumes)


def errors(report: Report) -> list[Finding]:
    """Its findings that are errors."""
    return [finding for finding in report.findings if finding.severity is Severity.ERROR]


def put(tag: int, vr: str, value: Any) -> Edit:
    """An edit that adds or replaces an element of the data set itself."""
    return lambda dataset: dataset.add_new(tag, vr, value)


def item(*elements: tuple[int, str, Any]) -> Dataset:
    """A sequence's item."""
    made = Dataset()
    for element in elements:
        made.add_new(*element)
    return made


def threats(dataset: Dataset) -> Iterator[Dataset]:
    """The threat objects of a report."""
    yield from dataset[0x40101011].value


def in_threat(number: int, *path: int, value: Any) -> Edit:
    """An edit of an attribute in a threat object, through the first items of the sequences on the way."""

    def edit(dataset: Dataset) -> None:
        target = list(threats(dataset))[number]
        for tag in path[:-1]:
            target = target[tag].value[0]
        target.add_new(path[-1], target[path[-1]].VR, value)

    return edit


def sop_class(uid: str) -> Edit:
    """An edit that gives data set and File Meta another SOP class."""

    def edit(dataset: Dataset) -> None:
        dataset[0x00080016].value = dataset.file_meta[0x00020002].value = uid

    return edit


def _person(dataset: Dataset) -> None:
    dataset[0x40101042].value = "PERSON"
    for threat in threats(dataset):
        for representation in threat[0x40101037].value:
            representation.add_new(0x40101079, "SQ", [item((0x4010107A, "FL", [1.0, 2.0, 3.0]))])


def _v02(dataset: Dataset) -> None:
    dataset[0x4010103A].value = "V02"
    del dataset.file_meta[0x00020004]
    for threat in threats(dataset):
        threat.add_new(0x40101017, "FL", 120.0)
        threat.add_new(0x40101018, "FL", 1.5)


def _aborted(dataset: Dataset) -> None:
    dataset[0x40101024].value = "ABORT"
    dataset.add_new(0x40101021, "CS", "TIMEOUT")
    dataset[0x4010106D].value = "YES"
    dataset.add_new(0x4010106E, "CS", "RANDOM")
    method = item(
        (0x00080100, "SH", "1"),
        (0x00080102, "SH", "TSA"),
        (0x00080104, "LO", "Opened by hand"),
        (0x00080105, "CS", "DCMR"),
        (0x00080106, "DT", "20110101000000.000000"),
        (0x0008010F, "CS", "DCS3"),
    )
    dataset.add_new(0x4010106F, "SQ", [method])


def _by_frame(dataset: Dataset) -> None:
    """What the frames share is in each frame, only the orientation also shared; and so is the position."""
    (shared,) = dataset[0x52009229].value
    frames = dataset[0x52009230].value
    position = frames[0][0x00209113]
    for frame in frames:
        for element in shared:
            frame[element.tag] = element
        del frame[0x00209113]
    for tag in list(shared.keys()):
        if tag != 0x00209116:
            del shared[tag]
    shared[0x00209113] = position


def _as_class(below: str, modality: str, *elements: tuple[int, str, Any]) -> Edit:
    def edit(dataset: Dataset) -> None:
        dataset[0x00080016].value = dataset.file_meta[0x00020002].value = f"{PREFIX}.{below}"
        dataset[0x00080060].value = modality
        for element in elements:
            dataset.add_new(*element)

    return edit


def _as_qr(dataset: Dataset) -> None:
    for tag in [element.tag for element in dataset if element.tag.group in (0x28, 0x7FE0)]:
        del dataset[tag]
    measurement = item(
        (0x4010101D, "FL", [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
        (0x00220155, "FL", 2.0),
        (0x40101072, "SQ", [item((0x00080104, "LO", "RDX"))]),
        (0x40101073, "FD", 1.0),
    )
    _as_class("6", "QR", (0x40101071, "SQ", [measurement]), (0x4010107C, "CS", "RANDOM"))(dataset)


@cache
def valid_files() -> dict[str, bytes]:
    """Valid files by what they are; together they have every attribute of the tables."""
    ct, dx, tdr = dicos_ct().part10(), dicos_dx().part10(), dicos_tdr().part10()
    inspection = ((0x40101070, "CS", "XBS"), (0x4010107C, "CS", "RANDOM"))
    return {
        "ct": ct,
        "ct by frame": edited(ct, _by_frame),
        "dx": dx,
        "tdr": tdr,
        "tdr of an operator": dicos_tdr(tdr_type="OPERATOR", decision="CLEAR").part10(),
        "tdr of a person": edited(tdr, _person),
        "tdr v02": edited(tdr, _v02),
        "tdr aborted": edited(tdr, _aborted),
        "ait 2d": edited(dx, _as_class("4", "AIT2D", *inspection)),
        "ait 3d": edited(dx, _as_class("5", "AIT3D", *inspection)),
        "qr": edited(dx, _as_qr),
        "raw ct": edited(ct, _as_class("7.1", "CT")),
        "medical ct": ct_image().part10(),
    }


def delete(path: tuple[int, ...]) -> Edit:
    """An edit that deletes an attribute, in the first item of each sequence on the way."""

    def edit(dataset: Dataset) -> None:
        del _inside(dataset, path[:-1])[path[-1]]

    return edit


def empty(path: tuple[int, ...]) -> Edit:
    """An edit that takes an attribute's value away."""

    def edit(dataset: Dataset) -> None:
        target = _inside(dataset, path[:-1])
        vr = target[path[-1]].VR
        target.add_new(path[-1], vr, [] if vr == "SQ" else None)

    return edit


def has(file: bytes, path: tuple[int, ...]) -> bool:
    """Whether an attribute is there, in the first items on the way."""
    source = dcmread(io.BytesIO(file))
    try:
        return path[-1] in _inside(source, path[:-1])
    except (KeyError, IndexError):
        return False


def _inside(dataset: Dataset, sequences: tuple[int, ...]) -> Dataset:
    for tag in sequences:
        dataset = dataset[tag].value[0]
    return dataset
