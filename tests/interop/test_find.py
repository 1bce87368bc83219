"""Real peers query our daemon and find what a naive matcher does: DCMTK's findscu, pynetdicom, dcmjs-dimse
and Orthanc."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pydicom.config
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from scp_server.objects.query_keys import keyword_of
from scp_server.testing.archive import Archive
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_dx, dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import JAPANESE, LATIN, PLAIN, UTF_8, ct_image, structured_report
from scp_server.testing.querying_peer import STUDY_ROOT_FIND
from tests.interop.test_find_in_archives import free_port, running
from tests.oracle.find_matcher import UNIQUE, Asked, PlainDataset, Stored, answer, stored

pytestmark = pytest.mark.interop

RunPeer = Callable[..., Awaitable[str]]
RequirePeer = Callable[[str, object], None]
HERE = Path(__file__).parent
MODULES = Path(os.environ.get("SCP_DCMJS_DIR", HERE / "node_modules"))
SECTIONS = two_section_ct()


def series(name: str) -> dict[str, Any]:
    """Its UID and its study's."""
    return {"study_instance_uid": f"2.25.{name[0]}", "series_instance_uid": f"2.25.{name}"}


OBJECTS: list[EncodedObject] = [
    *(ct_image(seed=seed, patient=PLAIN, sequences=True, **series("11")) for seed in range(3)),
    structured_report(patient=PLAIN, **series("12")),
    ct_image(seed=4, patient=JAPANESE, **series("21")),
    ct_image(seed=5, patient=LATIN, transfer_syntax=TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN, **series("31")),
    ct_image(seed=6, patient=UTF_8, transfer_syntax=TransferSyntax.EXPLICIT_VR_BIG_ENDIAN, **series("41")),
    *SECTIONS,
    dicos_dx(),
    dicos_tdr(SECTIONS[0]),
    dicos_tdr(SECTIONS[0], tdr_type="OPERATOR", decision="CLEAR"),
]


def study_query(wanted: Mapping[int, tuple[str, object]], level: str = "STUDY") -> Asked:
    """The daemon takes all queries for relational."""
    keys = dict(wanted)
    keys.setdefault(UNIQUE[level], ("UI", ""))
    return Asked(model="study", level=level, keys=keys, relational=True)


FIRST = {0x0020000D: ("UI", "2.25.1")}
ASSESSMENT = {0x40101038: ("SQ", {0x40101012: ("CS", "EXPLOSIVE")})}
THREAT: Mapping[int, tuple[str, object]] = {0x40101011: ("SQ", ASSESSMENT)}
QUERIES: dict[str, Asked] = {
    "a name with a wild card": study_query({0x00100010: ("PN", "DOE^*"), 0x00081030: ("LO", "")}),
    "a range of dates": study_query({0x00080020: ("DA", "20261101-20261130"), 0x00100020: ("LO", "")}),
    "a range without any": study_query({0x00080020: ("DA", "-20200101")}),
    "a modality in the study": study_query({0x00080061: ("CS", "SR")}),
    "a Japanese name": study_query({0x00100010: ("PN", "*=山田*"), 0x00100020: ("LO", "")}),
    "a French name": study_query({0x00100010: ("PN", "buc^jérôme")}),
    "counts": study_query({**FIRST, 0x00201206: ("IS", ""), 0x00201208: ("IS", "")}),
    "series of a study": study_query({**FIRST, 0x00080060: ("CS", ""), 0x00200011: ("IS", "")}, "SERIES"),
    "images of a series": study_query(
        {**FIRST, 0x0020000E: ("UI", "2.25.11"), 0x00200013: ("IS", ""), 0x00280010: ("US", "")}, "IMAGE"
    ),
    "a list of UIDs": study_query({0x0020000D: ("UI", "2.25.1\\2.25.3\\2.25.9")}),
}
DICOS: dict[str, Asked] = {
    "an alarm": study_query({0x40101031: ("CS", "ALARM"), 0x40101042: ("CS", "")}),
    "a threat": study_query(THREAT, "IMAGE"),
    "reports on an image": study_query({0x00081155: ("UI", SECTIONS[0].sop_instance_uid)}, "IMAGE"),
    "what an operator cleared": study_query(
        {0x40101027: ("CS", "OPERATOR"), 0x40101031: ("CS", "CLEAR")}, "IMAGE"
    ),
}


@pytest.fixture(autouse=True)
def _uids_of_any_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)


def values_of(element: Any) -> list[Any]:
    if element.VR == "SQ":
        return [plain(item) for item in element.value]
    if element.is_empty:
        return []
    return [str(value) for value in (element.value if element.VM > 1 else [element.value])]


def plain(dataset: Dataset) -> PlainDataset:
    """A data set as the naive matcher takes it."""
    return {int(element.tag): (element.VR, values_of(element)) for element in dataset}


@pytest.fixture
def kept() -> list[Stored]:
    """What the naive matcher looks at."""
    found = []
    for one in OBJECTS:
        syntax = TransferSyntax(one.transfer_syntax_uid)
        header = one.dataset.split(b"\xe0\x7f\x10\x00")[0].split(b"\x7f\xe0\x00\x10")[0]
        dataset = read_dataset(io.BytesIO(header), syntax.is_implicit, syntax.byte_order == "<")
        found.append(plain(dataset))
    return stored(found)


@pytest.fixture
async def daemon(tmp_path: Path, start_daemon: Callable[..., DaemonProcess]) -> DaemonProcess:
    """A daemon with `OBJECTS`, which takes all queries for relational."""
    assert set(await Archive.at(tmp_path / "data").store(OBJECTS)) == {0}
    environment = {"SCP_SERVER_QUERY__RELATIONAL": "always"}
    return await asyncio.to_thread(start_daemon, environment=environment)


def query_of(asked: Asked) -> Dataset:
    dataset = keys_of(asked.keys)
    dataset.QueryRetrieveLevel = asked.level
    dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


def keys_of(keys: dict[int, tuple[str, object]]) -> Dataset:
    dataset = Dataset()
    for tag, (vr, value) in keys.items():
        if vr == "SQ":
            assert isinstance(value, dict)
            dataset.add_new(tag, vr, [keys_of(value)])
        else:
            dataset.add_new(tag, vr, value if value or vr != "US" else None)
    return dataset


def expect(asked: Asked, kept: list[Stored], found: list[PlainDataset]) -> None:
    """The same entities, with the same values of their keys."""
    expected = [
        tuple((tag, texts(values)) for tag, values in sorted(each.items()) if asked.keys[tag][0] != "SQ")
        for each in answer(kept, asked).values()
    ]
    got = [
        tuple((tag, texts(each[tag][1])) for tag in sorted(asked.keys) if asked.keys[tag][0] != "SQ")
        for each in found
    ]
    assert sorted(got) == sorted(expected)


def texts(values: list[Any]) -> tuple[str, ...]:
    return tuple(text for value in values if (text := str(value).strip(" \0")))


def test_the_queries_find_something_and_not_everything(kept: list[Stored]) -> None:
    for name, asked in (QUERIES | DICOS).items():
        assert bool(answer(kept, asked)) is (name != "a range without any"), name
        assert len(answer(kept, asked)) < len(OBJECTS)


# --- DCMTK


async def test_findscu_agrees(
    daemon: DaemonProcess, kept: list[Stored], run_peer: RunPeer, require_peer: RequirePeer, tmp_path: Path
) -> None:
    require_peer("DCMTK's findscu", shutil.which("findscu"))
    for number, (name, asked) in enumerate((QUERIES | DICOS).items()):
        folder = tmp_path / f"query{number}"
        folder.mkdir()
        query = query_of(asked)
        query.file_meta = FileMetaDataset()
        query.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        query.file_meta.MediaStorageSOPClassUID = UID(STUDY_ROOT_FIND)
        query.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1")
        query.save_as(folder / "query.dcm", enforce_file_format=True)
        output = await run_peer(
            *("findscu", "-v", "-S", "-X", "-od", folder, "127.0.0.1", str(daemon.ready.dicom_port)),
            folder / "query.dcm",
        )
        assert "Received Final Find Response (Success)" in output, name
        found = [plain(dcmread(path, force=True)) for path in sorted(folder.glob("rsp*.dcm"))]
        expect(asked, kept, found)


async def test_findscu_cancels_and_ends(
    daemon: DaemonProcess, run_peer: RunPeer, require_peer: RequirePeer
) -> None:
    require_peer("DCMTK's findscu", shutil.which("findscu"))
    command = ["findscu", "-v", "-S", "--cancel", "2", "-k", "0008,0052=IMAGE", "-k", "0008,0018"]
    output = await run_peer(*command, "127.0.0.1", str(daemon.ready.dicom_port))
    assert "Final Find Response" in output


# --- pynetdicom


def ask_with_pynetdicom(port: int, queries: list[Dataset], relational: bool) -> list[list[Dataset]]:
    ae = AE("PYNETDICOM")
    ae.add_requested_context(STUDY_ROOT_FIND)
    negotiation = SOPClassExtendedNegotiation()
    negotiation.sop_class_uid = STUDY_ROOT_FIND
    negotiation.service_class_application_information = b"\x01"
    association = ae.associate("127.0.0.1", port, ext_neg=[negotiation] if relational else [])
    assert association.is_established
    if relational:
        assert association.acceptor.sop_class_extended == {STUDY_ROOT_FIND: b"\x01"}
    answers = []
    for query in queries:
        responses = list(association.send_c_find(query, STUDY_ROOT_FIND))
        assert responses[-1][0].Status == 0x0000, responses[-1][0]
        assert {status.Status for status, _ in responses[:-1]} <= {0xFF00}
        answers.append([found for _, found in responses if found is not None])
    association.release()
    return answers


async def test_pynetdicom_agrees(
    tmp_path: Path, kept: list[Stored], start_daemon: Callable[..., DaemonProcess]
) -> None:
    """Relational because it was agreed on, under the default settings."""
    assert set(await Archive.at(tmp_path / "data").store(OBJECTS)) == {0}
    daemon = await asyncio.to_thread(start_daemon)
    asked = list((QUERIES | DICOS).values())
    queries = [query_of(each) for each in asked]
    answers = await asyncio.to_thread(ask_with_pynetdicom, daemon.ready.dicom_port, queries, True)
    for each, found in zip(asked, answers, strict=True):
        expect(each, kept, [plain(dataset) for dataset in found])


# --- dcmjs-dimse


def naturalized(keys: Mapping[int, tuple[str, object]]) -> dict[str, Any]:
    """Keys as dcmjs takes them; an empty binary number has to be an empty list."""
    found: dict[str, Any] = {}
    for tag, (vr, value) in keys.items():
        text = str(value)
        found[keyword_of(tag)] = [] if vr == "US" and not text else text.split("\\") if vr == "UI" else text
    return found


async def test_dcmjs_agrees(
    daemon: DaemonProcess, kept: list[Stored], run_peer: RunPeer, require_peer: RequirePeer
) -> None:
    require_peer("node", shutil.which("node"))
    require_peer("dcmjs-dimse", (MODULES / "dcmjs-dimse").is_dir())
    port = str(daemon.ready.dicom_port)
    for name, asked in QUERIES.items():
        keys = json.dumps({**naturalized(asked.keys), "_vrMap": {}, "SpecificCharacterSet": "ISO_IR 192"})
        script = HERE / "dcmjs_find.js"
        output = await run_peer("node", script, MODULES.parent, "127.0.0.1", port, asked.level, keys)
        answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        assert {one["status"] for one in answers[:-1]} <= {0xFF00}, name
        unique = keyword_of(UNIQUE[asked.level])
        found = sorted(one["found"][unique] for one in answers if one["found"])
        assert found == sorted(key[-1] for key in answer(kept, asked)), name


# --- Orthanc


def http(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as answered:
        return json.load(answered)


async def test_orthanc_agrees(
    daemon: DaemonProcess, kept: list[Stored], require_peer: RequirePeer, tmp_path: Path
) -> None:
    program = shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin")
    require_peer("Orthanc", program)
    assert program is not None
    port = free_port()
    configuration = tmp_path / "orthanc.json"
    settings = {
        "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "storage"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "DicomPort": free_port(),
        "DefaultEncoding": "Utf8",
        "DicomModalities": {"ours": ["SCP_SERVER", "127.0.0.1", daemon.ready.dicom_port]},
        "Plugins": [],
    }
    configuration.write_text(json.dumps(settings))
    levels = {"STUDY": "Study", "SERIES": "Series", "IMAGE": "Instance"}
    async with running(program, configuration, port=port):
        for name, asked in QUERIES.items():
            keys = {f"{tag >> 16:04x},{tag & 0xFFFF:04x}": value for tag, (_, value) in asked.keys.items()}
            body = {"Level": levels[asked.level], "Query": keys}
            made = await asyncio.to_thread(http, f"http://127.0.0.1:{port}/modalities/ours/query", body)
            url = f"http://127.0.0.1:{port}/queries/{made['ID']}/answers?expand&simplify"
            answers = await asyncio.to_thread(http, url)
            unique = keyword_of(UNIQUE[asked.level])
            found = sorted(one[unique] for one in answers)
            assert found == sorted(key[-1] for key in answer(kept, asked)), name
