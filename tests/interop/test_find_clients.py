"""Real clients query the daemon: each gets what the naive matcher of `tests/oracle` finds."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread
from pydicom.sequence import Sequence
from pynetdicom import AE

from scp_server.testing.daemon import DaemonProcess, Ready
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from tests.interop.archives import free_port, running
from tests.oracle.find_archive import VRS, archive
from tests.oracle.find_matcher import UNIQUE, Asked, answer, stored
from tests.pynetdicom_client import leave_responses_to_who_waits

pytestmark = [
    pytest.mark.interop,
    # A wild card is no UID, says pydicom.
    pytest.mark.filterwarnings("ignore:Invalid value for VR"),
]

SEED = 7
MADE = archive(SEED, 60)
KEPT = stored(each.plain for each in MADE)
FIND = {"patient": "1.2.840.10008.5.1.4.1.2.1.1", "study": "1.2.840.10008.5.1.4.1.2.2.1"}
EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN.value
NAME, ID, DATE, MODALITIES, DESCRIPTION = 0x00100010, 0x00100020, 0x00080020, 0x00080061, 0x00081030
DECISION, THREATS, ASSESSMENTS, CATEGORY = 0x40101031, 0x40101011, 0x40101038, 0x40101012
IMAGES, INSTANCE = 0x00081155, 0x00080018
HERE = Path(__file__).parent
DCMJS = Path(os.environ.get("SCP_DCMJS_DIR", HERE / "node_modules"))


def asked(model: str, level: str, **keys: object) -> Asked:
    """A relational query; keys are `T` and the tag in hexadecimal."""
    wanted = {int(name[1:], 16): (VRS[int(name[1:], 16)], value) for name, value in keys.items()}
    wanted.setdefault(UNIQUE[level], ("UI" if level != "PATIENT" else "LO", ""))
    return Asked(model, level, wanted, relational=True)


REFERRED_TO = next(item[IMAGES][1][0] for each in MADE for item in each.plain.get(0x00081140, ("SQ", []))[1])
QUERIES = {
    "every study": asked("study", "STUDY"),
    "a name with a wild card": asked("study", "STUDY", T00100010="doe*"),
    "a Japanese name": asked("study", "STUDY", T00100010="*山田*"),
    "a date range and a modality": asked("study", "STUDY", T00080020="20240101-20240331", T00080061="CT"),
    "a patient": asked("patient", "PATIENT", T00100020="P1"),
    "series by modality": asked("study", "SERIES", T00080060="MR"),
    "images by description": asked("study", "IMAGE", T00081030="T?orax*"),
    "reports of an alarm": asked("study", "IMAGE", T40101031="ALARM"),
    "reports on an image": asked("study", "IMAGE", T00081155=REFERRED_TO),
}
THREAT = {THREATS: ("SQ", {ASSESSMENTS: ("SQ", {CATEGORY: ("CS", "EXPLOSIVE")})})}
BY_THREAT = Asked("study", "IMAGE", {INSTANCE: ("UI", ""), **THREAT}, relational=True)


def expected(query: Asked) -> list[str]:
    """The unique keys of what matches."""
    tag = UNIQUE[query.level]
    return sorted("".join(map(str, values[tag])) for values in answer(KEPT, query).values())


def test_every_query_finds_something() -> None:
    for name, query in {**QUERIES, "by threat": BY_THREAT}.items():
        assert expected(query), name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    async def fill(ready: Ready) -> None:
        peer = await ScriptedPeer.connect(ready.dicom_host, ready.dicom_port)
        await peer.associate(storage_contexts(*(each.encoded for each in MADE)))
        for each in MADE:
            assert await peer.store(each.encoded) == 0x0000
        await peer.release()
        await peer.close()

    environment = {"SCP_SERVER_QUERY__RELATIONAL": "always"}
    with DaemonProcess(tmp_path_factory.mktemp("find"), environment=environment) as daemon:
        asyncio.run(fill(daemon.ready))
        yield daemon.ready


def dataset(keys: dict[int, tuple[str, object]]) -> Dataset:
    """Keys as a pydicom data set."""
    made = Dataset()
    for tag, (vr, value) in keys.items():
        if vr == "SQ":
            made[tag] = DataElement(tag, vr, Sequence([dataset(value)] if isinstance(value, dict) else []))
        else:
            made[tag] = DataElement(tag, vr, value)
    return made


def found(answers: Iterable[Dataset], level: str) -> list[str]:
    return sorted(str(each[UNIQUE[level]].value or "") for each in answers)


def test_pynetdicom_finds_what_the_standard_says(server: Ready) -> None:
    ae = AE("PYNETDICOM")
    for uid in FIND.values():
        ae.add_requested_context(uid, EXPLICIT)
    association = leave_responses_to_who_waits(ae.associate(server.dicom_host, server.dicom_port))
    assert association.is_established
    for name, query in {**QUERIES, "by threat": BY_THREAT}.items():
        identifier = dataset(query.keys)
        identifier.QueryRetrieveLevel = query.level
        identifier.SpecificCharacterSet = "ISO_IR 192"
        answers = list(association.send_c_find(identifier, FIND[query.model]))
        assert answers[-1][0].Status == 0x0000, name
        assert found([each for _, each in answers if each is not None], query.level) == expected(query), name
    association.release()


def options(keys: dict[int, tuple[str, object]], path: str = "") -> list[str]:
    """Keys as findscu has them: `(0010,0010)=value`, items as `(4010,1011)[0].`."""
    made = []
    for tag, (_, value) in keys.items():
        here = f"{path}({tag >> 16:04x},{tag & 0xFFFF:04x})"
        made += options(value, f"{here}[0].") if isinstance(value, dict) else ["-k", f"{here}={value}"]
    return made


@pytest.mark.parametrize("name", [*QUERIES, "by threat"])
async def test_findscu_finds_what_the_standard_says(
    server: Ready,
    name: str,
    tmp_path: Path,
    require_peer: Callable[[str, object], None],
    run_peer: Callable[..., Awaitable[str]],
) -> None:
    require_peer("DCMTK's findscu", shutil.which("findscu"))
    query = QUERIES.get(name, BY_THREAT)
    await run_peer(
        *("findscu", "-P" if query.model == "patient" else "-S", "-X", "-od", str(tmp_path)),
        *("-k", f"QueryRetrieveLevel={query.level}", "-k", "SpecificCharacterSet=ISO_IR 192"),
        *(*options(query.keys), "127.0.0.1", str(server.dicom_port)),
    )
    answers = [dcmread(path, force=True) for path in tmp_path.glob("rsp*.dcm")]
    assert found(answers, query.level) == expected(query)


async def test_dcmjs_finds_what_the_standard_says(
    server: Ready,
    require_peer: Callable[[str, object], None],
    run_peer: Callable[..., Awaitable[str]],
) -> None:
    require_peer("node", shutil.which("node"))
    require_peer("dcmjs-dimse", (DCMJS / "dcmjs-dimse").is_dir())
    keywords = {tag: keyword_for_tag(tag) for tag in VRS}
    # It writes text in one character set only, and knows no attribute of DICOS.
    chosen = [
        query
        for query in QUERIES.values()
        if all(
            keywords[tag] and tag >> 16 != 0x4010 and str(value).isascii()
            for tag, (_, value) in query.keys.items()
        )
    ]
    assert len(chosen) >= 6
    queries = [
        [
            FIND[query.model],
            {"QueryRetrieveLevel": query.level}
            | {keywords[tag]: value for tag, (_, value) in query.keys.items()},
        ]
        for query in chosen
    ]
    output = await run_peer(
        "node", HERE / "dcmjs_find.js", DCMJS.parent, "127.0.0.1", str(server.dicom_port), json.dumps(queries)
    )
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [each["status"] for each in answers] == [0x0000] * len(chosen)
    for query, each in zip(chosen, answers, strict=True):
        keyword = keywords[UNIQUE[query.level]]
        assert sorted(match.get(keyword) or "" for match in each["matches"]) == expected(query)


async def test_orthanc_finds_what_the_standard_says(
    server: Ready, tmp_path: Path, require_peer: Callable[[str, object], None]
) -> None:
    program = shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin")
    require_peer("Orthanc", program)
    assert program is not None
    http = free_port()
    configuration = tmp_path / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "StorageDirectory": str(tmp_path / "storage"),
                "IndexDirectory": str(tmp_path / "storage"),
                "HttpPort": http,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "DicomPort": free_port(),
                "DicomAet": "ORTHANC",
                "DicomModalities": {"us": ["SCP_SERVER", "127.0.0.1", server.dicom_port]},
                "DefaultEncoding": "Utf8",
                "Plugins": [],
            }
        )
    )

    def ask(path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{http}{path}", data, timeout=60) as response:
            return json.load(response)

    levels = {"PATIENT": "Patient", "STUDY": "Study", "SERIES": "Series", "IMAGE": "Instance"}
    async with running(program, configuration, port=http):
        for name, query in QUERIES.items():
            if any(tag >> 16 == 0x4010 or tag == IMAGES for tag in query.keys):
                continue  # It asks for the attributes of its own models only.
            wanted = {f"{tag >> 16:04x},{tag & 0xFFFF:04x}": value for tag, (_, value) in query.keys.items()}
            body = {"Level": levels[query.level], "Query": wanted}
            made = await asyncio.to_thread(ask, "/modalities/us/query", body)
            answers = await asyncio.to_thread(ask, f"/queries/{made['ID']}/answers?expand&simplify")
            keyword = keyword_for_tag(UNIQUE[query.level])
            assert sorted(each.get(keyword, "") for each in answers) == expected(query), name
