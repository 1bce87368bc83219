"""The real DICOS toolkit's verdict on broken files beside ours: what it finds, we find."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydicom import Dataset

from scp_server.objects.validation.finding import Code, Severity
from scp_server.objects.validation.subject import Kind
from scp_server.objects.validation.tables import attribute_rules
from tests.unit.objects.validation.broken_objects import (
    PREFIX,
    Edit,
    delete,
    edited,
    empty,
    errors,
    has,
    in_threat,
    judge,
    put,
    sop_class,
    valid_files,
)

pytestmark = pytest.mark.interop

READER = Path(__file__).with_name("dicos_reader.py")
KINDS = {
    "ct": Kind.CT,
    "dx": Kind.DX,
    "tdr": Kind.TDR,
    "tdr of an operator": Kind.TDR,
    "tdr of a person": Kind.TDR,
    "tdr v02": Kind.TDR,
    "tdr aborted": Kind.TDR,
}
"""The valid files that the toolkit takes. What is all told by frame crashes it."""
REGION = (0x40101011, 0x40101037, 0x40101001)
STRICTER = {
    ("tdr of a person", "delete", (*REGION, 0x40101004)),
    ("tdr of a person", "empty", (*REGION, 0x40101004)),
    ("tdr of a person", "delete", (*REGION, 0x40101006)),
    ("tdr aborted", "empty", (0x40101021,)),
}
"""Attributes that we demand and it does not: inside a region that a person's object need not have, and the
reason of an abort where it is there and empty."""


class Probe(NamedTuple):
    """A file, and how it was broken."""

    name: str
    how: str
    path: tuple[int, ...]
    file: bytes


class Verdict(NamedTuple):
    """Whether the toolkit took a file (None: it crashed), what it said, and what it has written."""

    taken: bool | None
    log: str
    written: list[str]


Read = Callable[..., Awaitable[list[Verdict]]]


@pytest.fixture
def read(
    require_peer: Callable[[str, object], None], run_peer: Callable[..., Awaitable[str]], tmp_path: Path
) -> Read:
    """The toolkit's verdicts on files, each with its kind."""
    require_peer("the DICOS toolkit (pydicos)", importlib.util.find_spec("pyDICOS"))

    async def read(files: list[tuple[Kind, bytes]], *options: str | Path) -> list[Verdict]:
        arguments = []
        for number, (kind, file) in enumerate(files):
            path = tmp_path / f"{number}.dcs"
            path.write_bytes(file)
            arguments.append(f"{kind}:{path}")
        output = await run_peer(sys.executable, READER, *options, *arguments)
        found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        assert len(found) == len(files)
        return [Verdict(one["read"], one["log"], one["written"]) for one in found]

    return read


def _probes() -> Iterator[Probe]:
    """Each mandatory attribute deleted and emptied, in each valid file that has it."""
    for name, kind in KINDS.items():
        file = valid_files()[name]
        for path in dict.fromkeys(rule.tags for rule in attribute_rules() if kind in rule.kinds):
            if has(file, path):
                yield Probe(name, "delete", path, edited(file, delete(path)))
                yield Probe(name, "empty", path, edited(file, empty(path)))


async def test_mandatory_attributes_are_those_of_the_toolkit(read: Read) -> None:
    probes = list(_probes())
    verdicts = await read([(KINDS[probe.name], probe.file) for probe in probes])
    missed, stricter, crashed = [], set(), 0
    for probe, verdict in zip(probes, verdicts, strict=True):
        found = errors(judge(probe.file))
        if verdict.taken is None:
            crashed += 1
            assert found, f"{probe[:3]} crashes the toolkit, and has no error here"
        elif verdict.taken and found:
            stricter.add(probe[:3])
        elif not verdict.taken and not found:
            missed.append((probe[:3], verdict.log))
    assert missed == []
    assert stricter == STRICTER
    assert crashed < 10
    assert len(probes) > 900


def _labelled_v02(dataset: Dataset) -> None:
    dataset[0x4010103A].value = "V02"
    del dataset.file_meta[0x00020004]


def _without_pixels(dataset: Dataset) -> None:
    del dataset[0x7FE00010]


def _private(dataset: Dataset) -> None:
    dataset.add_new(0x00091010, "LO", "ACME")


def _operator(dataset: Dataset) -> None:
    dataset[0x40101027].value = "OPERATOR"


ASSESSMENT, REPRESENTATION = 0x40101038, 0x40101037
REFUSED: list[tuple[str, Edit]] = [
    ("tdr", put(0x00080018, "UI", "abc")),
    ("tdr", put(0x00080018, "UI", "1." * 35 + "1")),
    ("tdr", put(0x00080060, "CS", "CT")),
    ("tdr", put(0x40101027, "CS", "BANANA")),
    ("tdr", put(0x40101024, "CS", "ABORT")),
    ("tdr", _operator),
    ("tdr", put(0x40101011, "SQ", [])),
    ("tdr", put(0x40101042, "CS", "PERSON")),
    ("tdr", put(0x40101034, "US", 3)),
    ("tdr", put(0x40101075, "FD", 0.0)),
    ("tdr", in_threat(0, REPRESENTATION, 0x4010101D, value=[1.0] * 7)),
    ("tdr", in_threat(0, REPRESENTATION, 0x40101001, 0x40101006, value=b"\xff" * 14)),
    ("tdr", put(0x4010102B, "DT", "garbage")),
    ("tdr", put(0x4010103A, "CS", "V04")),
    ("tdr", _labelled_v02),
    ("ct", put(0x00280008, "US", 5)),
    ("ct", _without_pixels),
    ("ct", put(0x00280100, "US", 8)),
    ("ct", put(0x00280010, "US", 32)),
    ("dx", put(0x00280010, "US", 48)),
]
TAKEN: list[tuple[str, Edit, Code | None]] = [
    ("tdr", sop_class(f"{PREFIX}.1"), Code.CLASS_CONTENT),
    ("tdr", sop_class("1.2.840.10008.5.1.4.1.1.2"), Code.CLASS_CONTENT),
    ("tdr", put(0x40101031, "CS", "MAYBE"), Code.ENUMERATION),
    ("tdr", in_threat(0, ASSESSMENT, 0x40101012, value="FROG"), Code.ENUMERATION),
    ("tdr", in_threat(0, ASSESSMENT, 0x40101014, value="FROG"), Code.ENUMERATION),
    ("tdr", put(0x40101042, "CS", "CAR"), Code.ENUMERATION),
    ("tdr", put(0x40101033, "US", 5), Code.TOTAL_OBJECTS),
    ("tdr", put(0x00080020, "DA", "20261399"), Code.DATE_TIME),
    ("tdr", in_threat(0, ASSESSMENT, 0x40101016, value=3.5), Code.PROBABILITY),
    ("tdr", in_threat(1, 0x40101010, value=100), Code.PTO_ID),
    ("tdr", _private, Code.PRIVATE_ELEMENTS),
    ("ct", put(0x00080018, "UI", "09.01.1"), None),
]
"""What the toolkit takes, and what we find in it."""


async def test_what_the_toolkit_refuses_has_an_error(read: Read) -> None:
    files = [edited(valid_files()[name], edit) for name, edit in REFUSED]
    kinds = [KINDS[name] for name, _ in REFUSED]
    verdicts = await read(list(zip(kinds, files, strict=True)))
    assert [verdict.taken for verdict in verdicts] == [False] * len(files)
    assert [bool(errors(judge(file))) for file in files] == [True] * len(files)


async def test_what_the_toolkit_takes_unseen_is_found(read: Read) -> None:
    files = [edited(valid_files()[name], edit) for name, edit, _ in TAKEN]
    kinds = [KINDS[name] for name, _, _ in TAKEN]
    verdicts = await read(list(zip(kinds, files, strict=True)))
    assert [verdict.taken for verdict in verdicts] == [True] * len(files)
    for file, (_, _, code) in zip(files, TAKEN, strict=True):
        codes = {one.code for one in judge(file).findings} - {Code.META_MISMATCH}
        assert code in codes if code else codes == set()


async def test_what_the_toolkit_writes_has_no_errors_and_no_warnings(read: Read, tmp_path: Path) -> None:
    names = [name for name in KINDS if name != "tdr v02"]
    (tmp_path / "written").mkdir()
    files: list[tuple[Kind, bytes]] = [(KINDS[name], valid_files()[name]) for name in names]
    verdicts = await read(files, "--rewrite", tmp_path / "written")
    written: list[Any] = [path for verdict in verdicts for path in verdict.written]
    assert len(written) >= 4 * len(files)
    for path in written:
        report = judge(Path(path).read_bytes())
        assert [one for one in report.findings if one.severity is not Severity.INFO] == [], path
