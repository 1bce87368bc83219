"""Real clients and servers retrieve from the daemon, or are where it sends to: everything that was stored."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pynetdicom.sop_class
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import register_uid

from scp_server.objects.part10 import read_file_meta
from scp_server.testing.daemon import DaemonProcess, read_stored_file
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_dx, dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.objects import ct_image, structured_report
from scp_server.testing.recording_proxy import RecordingProxy, SentObject
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from tests.interop.archives import RequirePeer, free_port, orthanc, running
from tests.pynetdicom_client import leave_responses_to_who_waits

pytestmark = [
    pytest.mark.interop,
    # DICOS scanners make UIDs with leading zeros.
    pytest.mark.filterwarnings("ignore:Invalid value for VR UI"),
]

StartDaemon = Callable[..., DaemonProcess]
RunPeer = Callable[..., Awaitable[str]]

HERE = Path(__file__).parent
DCMJS = Path(os.environ.get("SCP_DCMJS_DIR", HERE / "node_modules"))
STUDY_ROOT_MOVE, STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
DEFLATED = TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
NOT_OF_DICOM = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64
STUDY = make_uid("study")
IMAGES = {
    syntax: ct_image(seed=n, study_instance_uid=STUDY, transfer_syntax=syntax, sequences=True, private=True)
    for n, syntax in enumerate(TransferSyntax)
    if syntax is not NOT_OF_DICOM
}
REPORT = structured_report(study_instance_uid=STUDY)
MEDICAL: list[EncodedObject] = [*IMAGES.values(), REPORT]
FIRST, SECOND = two_section_ct()
SCAN: list[EncodedObject] = [FIRST, SECOND, dicos_dx(), dicos_tdr(FIRST)]
STUDIES = {STUDY: MEDICAL, FIRST.study_instance_uid: SCAN}


def kinds(objects: Iterable[EncodedObject]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in objects))


def identities(objects: Iterable[EncodedObject | SentObject]) -> list[tuple[str, str, bytes]]:
    return sorted((one.sop_instance_uid, one.transfer_syntax_uid, one.dataset) for one in objects)


def datasets(folder: Path) -> list[bytes]:
    return sorted(read_stored_file(path).dataset for path in folder.iterdir())


async def filled(
    start: StartDaemon, title: str = "", port: int = 0, environment: Mapping[str, str] | None = None
) -> DaemonProcess:
    """A daemon that has both studies, and one remote if it is named."""
    options = [f"--remote={title}=127.0.0.1:{port}"] if title else []
    daemon = await asyncio.to_thread(start, *options, environment=environment)
    async with await ScriptedPeer.connect("127.0.0.1", daemon.ready.dicom_port) as peer:
        await peer.associate(storage_contexts(*MEDICAL, *SCAN))
        for one in (*MEDICAL, *SCAN):
            assert await peer.store(one) == 0x0000
        await peer.release()
    return daemon


async def expect_got(proxy: RecordingProxy, objects: Iterable[EncodedObject]) -> None:
    """What C-GET sent through the proxy is what was stored, byte for byte."""
    await proxy.drained()
    assert identities(proxy.sub_operations()) == identities(objects)


async def expect_moved(proxy: RecordingProxy, objects: Iterable[EncodedObject]) -> None:
    """What the destination took through the proxy is what was stored, byte for byte."""
    await proxy.drained()
    assert identities(proxy.stores()) == identities(objects)
    assert {status for each in proxy.recordings for status in each.statuses()} == {0x0000}


def performed(daemon: DaemonProcess, operation: str) -> list[tuple[str, int, int, int]]:
    """How the retrieves of that kind ended, by the daemon's log."""
    return [
        (line["status"], line["completed"], line["failed"], line["warning"])
        for line in daemon.log_records("operation.performed")
        if line["operation"] == operation
    ]


# -- DCMTK --------------------------------------------------------------------------------------------------

GETSCU_PREFERS = {
    "+xd": TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    "+xr": TransferSyntax.RLE_LOSSLESS,
    "+xy": TransferSyntax.JPEG_BASELINE,
    "+xs": TransferSyntax.JPEG_LOSSLESS,
    "+xt": TransferSyntax.JPEG_LS_LOSSLESS,
    "+xv": TransferSyntax.JPEG_2000_LOSSLESS,
    "+xb": TransferSyntax.EXPLICIT_VR_BIG_ENDIAN,
}


async def test_getscu_gets_images_in_what_it_prefers(
    start_daemon: StartDaemon, run_peer: RunPeer, require_peer: RequirePeer, tmp_path: Path
) -> None:
    """It proposes that beside the uncompressed ones, and we accept what we prefer of them. Not +xi: with it
    DCMTK 3.6.7 proposes explicit VR alone.
    """
    require_peer("DCMTK's getscu", shutil.which("getscu"))
    environment = {"SCP_SERVER_NEGOTIATION__TRANSFER_SYNTAXES": json.dumps([*GETSCU_PREFERS.values(), "*"])}
    daemon = await filled(start_daemon, environment=environment)
    for option, syntax in GETSCU_PREFERS.items():
        image, out = IMAGES[syntax], tmp_path / option
        out.mkdir()
        keys = [
            "QueryRetrieveLevel=IMAGE",
            f"StudyInstanceUID={STUDY}",
            f"SeriesInstanceUID={image.series_instance_uid}",
            f"SOPInstanceUID={image.sop_instance_uid}",
        ]
        async with RecordingProxy("127.0.0.1", daemon.ready.dicom_port) as proxy:
            await run_peer(
                *("getscu", option, "-S", "+B", "-od", str(out)),
                *(part for key in keys for part in ("-k", key)),
                *("127.0.0.1", str(proxy.port)),
            )
            await expect_got(proxy, [image])
        assert datasets(out) == [image.dataset], option


@pytest.mark.parametrize("forks", [False, True])
async def test_movescu_has_storescp_take_everything(
    start_daemon: StartDaemon, run_peer: RunPeer, require_peer: RequirePeer, tmp_path: Path, forks: bool
) -> None:
    """Without --fork storescp serves one association after another, and nobody told the daemon."""
    require_peer("DCMTK's movescu", shutil.which("movescu"))
    require_peer("DCMTK's storescp", shutil.which("storescp"))
    out, port = tmp_path / "taken", free_port()
    out.mkdir()
    storescp = ["storescp", "--fork" if forks else "--single-process", "+xa", "-pm", "+B", "+uf"]
    async with (
        running(*storescp, "-od", str(out), str(port), port=port),
        RecordingProxy("127.0.0.1", port) as proxy,
    ):
        daemon = await filled(start_daemon, "STORESCP", proxy.port)
        for study in STUDIES:
            keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}")
            output = await run_peer(
                *("movescu", "-v", "-S", "-aem", "STORESCP", *keys),
                *("127.0.0.1", str(daemon.ready.dicom_port)),
            )
            assert "Received Final Move Response (Success)" in output
        await asyncio.to_thread(daemon.terminate)
        await expect_moved(proxy, [*MEDICAL, *SCAN])
    assert performed(daemon, "CMove") == [("0x0000", len(MEDICAL), 0, 0), ("0x0000", len(SCAN), 0, 0)]
    assert datasets(out) == sorted(one.dataset for one in (*MEDICAL, *SCAN))


# -- pynetdicom ---------------------------------------------------------------------------------------------


def _identifier(study: str) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    identifier.StudyInstanceUID = study
    return identifier


def _pynetdicom_gets(port: int, objects: Sequence[EncodedObject]) -> tuple[list[int], list[bytes]]:
    """The statuses of a C-GET, and what came."""
    taken: list[bytes] = []

    def store(event: Any) -> int:
        taken.append(event.request.DataSet.getvalue())
        return 0x0000

    contexts = [build_context(STUDY_ROOT_GET, EXPLICIT)]
    contexts += [build_context(sop_class, syntax) for sop_class, syntax in kinds(objects)]
    roles = [build_role(sop_class, scp_role=True) for sop_class in {one.sop_class_uid for one in objects}]
    association = AE("PYNETDICOM").associate(
        "127.0.0.1", port, contexts, ext_neg=list(roles), evt_handlers=[(evt.EVT_C_STORE, store)]
    )
    assert association.is_established
    leave_responses_to_who_waits(association)
    answers = association.send_c_get(_identifier(objects[0].study_instance_uid), STUDY_ROOT_GET)
    statuses = [status.Status for status, _ in answers]
    association.release()
    return statuses, taken


async def test_pynetdicom_gets_everything(start_daemon: StartDaemon) -> None:
    daemon = await filled(start_daemon)
    for objects in STUDIES.values():
        async with RecordingProxy("127.0.0.1", daemon.ready.dicom_port) as proxy:
            statuses, taken = await asyncio.to_thread(_pynetdicom_gets, proxy.port, objects)
            await expect_got(proxy, objects)
        assert (statuses[-1], set(statuses[:-1]) - {0xFF00}) == (0x0000, set())
        assert taken == [one.dataset for one in objects]


def _pynetdicom_moves(port: int, study: str) -> list[int]:
    ae = AE("PYNETDICOM")
    ae.add_requested_context(STUDY_ROOT_MOVE, EXPLICIT)
    association = leave_responses_to_who_waits(ae.associate("127.0.0.1", port))
    assert association.is_established
    answers = association.send_c_move(_identifier(study), "PYNETDICOM", STUDY_ROOT_MOVE)
    statuses = [status.Status for status, _ in answers]
    association.release()
    return statuses


async def test_pynetdicom_has_everything_moved_to_itself(start_daemon: StartDaemon) -> None:
    taken: list[bytes] = []

    def store(event: Any) -> int:
        taken.append(event.request.DataSet.getvalue())
        return 0x0000

    for sop_class in {one.sop_class_uid for one in SCAN}:
        # DICOS is unknown to it.
        keyword = f"Dicos{sop_class.replace('.', '_')}"
        if not hasattr(pynetdicom.sop_class, keyword):
            register_uid(sop_class, keyword, StorageServiceClass)
    entity = AE("PYNETDICOM")
    for sop_class in {one.sop_class_uid for one in (*MEDICAL, *SCAN)}:
        entity.add_supported_context(sop_class, list(TransferSyntax))
    server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        async with RecordingProxy("127.0.0.1", server.socket.getsockname()[1]) as proxy:
            daemon = await filled(start_daemon, "PYNETDICOM", proxy.port)
            for study in STUDIES:
                statuses = await asyncio.to_thread(_pynetdicom_moves, daemon.ready.dicom_port, study)
                assert statuses[-1] == 0x0000
            await asyncio.to_thread(daemon.terminate)
            await expect_moved(proxy, [*MEDICAL, *SCAN])
    finally:
        server.shutdown()
    assert sorted(taken) == sorted(one.dataset for one in (*MEDICAL, *SCAN))


# -- dcmjs-dimse --------------------------------------------------------------------------------------------


@pytest.fixture
def dcmjs(require_peer: RequirePeer) -> None:
    require_peer("node", shutil.which("node"))
    require_peer("dcmjs-dimse", (DCMJS / "dcmjs-dimse").is_dir())


async def _dcmjs(run_peer: RunPeer, port: int, objects: Sequence[EncodedObject], *destination: str) -> None:
    """Run it; it read what came, and was told that all was sent."""
    output = await run_peer(
        *("node", HERE / "dcmjs_retrieve.js", DCMJS.parent, "127.0.0.1", str(port)),
        *(objects[0].study_instance_uid, json.dumps(kinds(objects)), *destination),
    )
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    final = {"status": 0x0000, "completed": len(objects), "failed": 0, "warning": 0}
    assert [line for line in lines if "status" in line] == [final]
    received = sorted((line["received"], line["sopClass"]) for line in lines if "received" in line)
    # It does not inflate what is deflated, and takes it nevertheless.
    readable = [one for one in objects if one.transfer_syntax_uid != DEFLATED]
    assert received == sorted((one.sop_instance_uid, one.sop_class_uid) for one in readable)


@pytest.mark.usefixtures("dcmjs")
async def test_dcmjs_gets_everything(start_daemon: StartDaemon, run_peer: RunPeer) -> None:
    daemon = await filled(start_daemon)
    for objects in STUDIES.values():
        async with RecordingProxy("127.0.0.1", daemon.ready.dicom_port) as proxy:
            await _dcmjs(run_peer, proxy.port, objects)
            await expect_got(proxy, objects)


@pytest.mark.usefixtures("dcmjs")
async def test_dcmjs_has_everything_moved_to_itself(start_daemon: StartDaemon, run_peer: RunPeer) -> None:
    port = free_port()
    async with RecordingProxy("127.0.0.1", port) as proxy:
        daemon = await filled(
            start_daemon, "DCMJS", proxy.port, {"SCP_SERVER_TIMEOUTS__OUTBOUND_IDLE_SECONDS": "0"}
        )
        for objects in STUDIES.values():
            await _dcmjs(run_peer, daemon.ready.dicom_port, objects, str(port))
        await expect_moved(proxy, [*MEDICAL, *SCAN])


# -- Orthanc ------------------------------------------------------------------------------------------------


async def test_orthanc_has_everything_moved_to_itself(
    start_daemon: StartDaemon, require_peer: RequirePeer, tmp_path: Path
) -> None:
    """It is the requestor and the destination. Of an instance of two parts it takes both and keeps one."""
    folder = tmp_path / "orthanc"
    folder.mkdir()
    port = free_port()
    async with RecordingProxy("127.0.0.1", port) as proxy:
        daemon = await filled(start_daemon, "ORTHANC", proxy.port)
        modalities = {"scp": ["SCP_SERVER", "127.0.0.1", daemon.ready.dicom_port]}
        async with orthanc(
            require_peer, folder, DicomPort=port, DicomModalities=modalities, UnknownSopClassAccepted=True
        ) as archive:
            kept: dict[str, bytes] = {}
            for study in STUDIES:
                asked = {"Level": "Study", "Resources": [{"StudyInstanceUID": study}], "Timeout": 60}
                await archive.rest("/modalities/scp/move", {**asked, "TargetAet": "ORTHANC"})
            for each in json.loads(await archive.rest("/instances")):
                data = await archive.rest(f"/instances/{each}/file")
                meta = read_file_meta(data)
                kept[meta.sop_instance_uid] = data[meta.dataset_offset_bytes :]
            await asyncio.to_thread(daemon.terminate)
            await expect_moved(proxy, [*MEDICAL, *SCAN])
    assert kept.pop(FIRST.sop_instance_uid) in (FIRST.dataset, SECOND.dataset)
    # It deflates anew.
    deflated = IMAGES[DEFLATED]
    assert _inflated(kept.pop(deflated.sop_instance_uid)) == _inflated(deflated.dataset)
    others = [one for one in (*MEDICAL, *SCAN) if one not in (FIRST, SECOND, deflated)]
    assert kept == {one.sop_instance_uid: one.dataset for one in others}
    assert performed(daemon, "CMove") == [("0x0000", len(MEDICAL), 0, 0), ("0x0000", len(SCAN), 0, 0)]


def _inflated(dataset: bytes) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(dataset)
