"""Rules and a whole server: what is changed on arrival is what is found, fetched, and left by kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import random
import sqlite3
from pathlib import Path
from typing import Any

import pydicom
from pydicom.filereader import read_dataset

from scp_server import Requestor, Settings
from scp_server.observability.logs import captured_logs
from scp_server.runtime.conformance import statement
from scp_server.settings.object_rules import CoerceSettings
from scp_server.testing.daemon import DaemonProcess, stored_files
from scp_server.testing.dicos_objects import dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, UnexpectedAnswer, storage_contexts
from tests.integration.conftest import StartServer
from tests.integration.test_retrieve import EXPLICIT, RETRIEVES, Memory

STUDY_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
RULE: dict[str, Any] = {
    "name": "department",
    "set": {"PatientID": "DEP-{PatientID}"},
    "remove": ["PatientSex"],
}


async def _store(address: tuple[str, int], *objects: EncodedObject) -> list[int]:
    async with await ScriptedPeer.connect(*address) as peer:
        await peer.associate(storage_contexts(*objects))
        return [await peer.store(stored) for stored in objects]


async def test_what_is_changed_on_arrival_is_what_is_found_and_fetched(start_server: StartServer) -> None:
    stored, bag = ct_image(), dicos_tdr()
    server = await start_server(coerce=[RULE])
    with captured_logs():
        assert await _store(server.address, stored, bag, stored) == [0x0000] * 3
    kinds = [(each.sop_class_uid, [EXPLICIT]) for each in (stored, bag)]
    async with Requestor(*server.address, contexts=RETRIEVES, receives=kinds) as association:
        sink = Memory()
        for study in (stored.study_instance_uid, bag.study_instance_uid):
            async for _ in association.get({"StudyInstanceUID": study}, receive=sink):
                pass
    (_, _, fetched), (_, _, untouched) = sink.received
    assert untouched == bag.dataset
    dataset = read_dataset(io.BytesIO(fetched), is_implicit_VR=False, is_little_endian=True)
    assert dataset.PatientID == "DEP-PAT-0001"
    assert "PatientSex" not in dataset
    (item,) = dataset.OriginalAttributesSequence
    (original,) = item.ModifiedAttributesSequence
    assert (original.PatientID, original.PatientSex) == ("PAT-0001", "F")
    assert (item.ModifyingSystem, item.SourceOfPreviousValues) == ("SCP_SERVER", "SCRIPTED")
    async with Requestor(
        *server.address, contexts=[("1.2.840.10008.5.1.4.1.2.2.1", [EXPLICIT])]
    ) as association:
        for patient_id, matches in (("DEP-PAT-0001", 1), ("PAT-0001", 0)):
            query = {"PatientID": patient_id, "StudyInstanceUID": stored.study_instance_uid}
            assert len([match async for match in association.find(query)]) == matches
    assert (await server.index.totals()).parts == 2


async def test_a_warning_is_told_to_medical_peers_and_never_to_dicos(start_server: StartServer) -> None:
    stored, bag = ct_image(), dicos_tdr()
    server = await start_server(coerce=[{**RULE, "warning": True, "dicos": True}])
    with captured_logs():
        assert await _store(server.address, stored) == [0xB000]
        async with await ScriptedPeer.connect(*server.address) as peer:
            await peer.associate(storage_contexts(bag), application_context="1.2.840.10008.3.1.1.1.3")
            assert await peer.store(bag) == 0x0000
    (part,) = await server.index.parts(bag.sop_instance_uid)
    assert part.stored_digest is not None


async def test_a_conformance_statement_says_what_is_coerced() -> None:
    assert statement(Settings())["storage"]["coercion"] == "none"
    said = statement(Settings(coerce=(CoerceSettings(**RULE, warning=True),)))["storage"]["coercion"]
    for word in ("department", "PatientID", "PatientSex", "0xB000", "Original Attributes Sequence"):
        assert word in said


async def test_killed_at_any_moment_every_object_is_there_changed_and_once(tmp_path: Path) -> None:
    config = tmp_path / "rules.toml"
    config.write_text('[[coerce]]\nname = "id"\nset = { PatientID = "DEP-{PatientID}" }\n')
    data_dir, moment = tmp_path / "data", random.Random()
    acknowledged: set[str] = set()
    seeds = itertools.count()

    async def send_until_killed(port: int) -> None:
        with contextlib.suppress(OSError, EOFError, UnexpectedAnswer, TimeoutError):
            async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
                await peer.associate(storage_contexts(ct_image()))
                for side in itertools.cycle((16, 256, 16, 1024)):
                    stored = ct_image(seed=next(seeds), rows=side, columns=side)
                    assert await peer.store(stored) == 0x0000
                    acknowledged.add(stored.sop_instance_uid)

    daemon = DaemonProcess(
        data_dir, "--config", str(config), environment={"SCP_SERVER_STORAGE__DURABILITY": "process"}
    )
    for _ in range(3):
        port = (await asyncio.to_thread(daemon.start)).dicom_port
        async with asyncio.TaskGroup() as senders:
            for _ in range(3):
                senders.create_task(send_until_killed(port))
            await asyncio.sleep(moment.uniform(0.2, 0.8))
            await asyncio.to_thread(daemon.kill)
    await asyncio.to_thread(daemon.start)
    await asyncio.to_thread(daemon.terminate)
    found = list(stored_files(data_dir))
    uids = [stored.sop_instance_uid for stored in found]
    assert len(set(uids)) == len(uids)
    assert acknowledged <= set(uids)
    assert len(acknowledged) > 9
    with contextlib.closing(sqlite3.connect(data_dir / "index" / "index.sqlite")) as database:
        assert {uid for (uid,) in database.execute("SELECT sop_instance_uid FROM instances")} == set(uids)
    assert not list((data_dir / "incoming").glob("*.part"))
    for stored in found:
        dataset = pydicom.dcmread(stored.path, stop_before_pixels=True)
        assert dataset.PatientID == "DEP-PAT-0001"
        (item,) = dataset.OriginalAttributesSequence
        assert item.ModifiedAttributesSequence[0].PatientID == "PAT-0001"
