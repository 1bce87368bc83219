"""Objects that are changed on arrival: what is stored, known and answered, and what a failure leaves."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import io
import sys
import tracemalloc
from pathlib import Path
from typing import Any, Literal

import pydicom
import pytest
from blake3 import blake3
from pydicom.dataset import Dataset

from scp_server import callback
from scp_server.errors import IndexUnavailable, StorageError, StorageFull
from scp_server.objects.changes import Changes
from scp_server.objects.part10 import ReceivedDigest, read_file_meta
from scp_server.observability.logs import captured_logs
from scp_server.pipeline.filters import ObjectFilter
from scp_server.pipeline.rules import CoerceRule, ObjectRules, RequireRule
from scp_server.protocol.message import CStoreRSP
from scp_server.runtime.build import build_quarantine, build_storage
from scp_server.services.release import QuarantineRelease
from scp_server.settings import Settings
from scp_server.settings.models import StorageSettings
from scp_server.settings.object_rules import RequireAttributesSettings
from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_ct, dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_operation import PRESSURE, cut, store_operation
from scp_server.testing.objects import LATIN, ct_image, encapsulated_pdf
from scp_server.testing.storage_bench import StorageBench

NEW_STUDY = "1.2.3.4.5"


def coercing(name: str = "rule", chosen: ObjectFilter | None = None, **asked: Any) -> CoerceRule:
    changes = {key: asked.pop(key) for key in ("set", "remove", "copy") if key in asked}
    return CoerceRule(name, chosen or ObjectFilter(), Changes.of(**changes, templates=True), **asked)


def rules(**asked: Any) -> ObjectRules:
    return ObjectRules(coerce=(coercing(**asked),))


def requiring(**asked: Any) -> ObjectRules:
    found = RequireAttributesSettings(name="needed", **asked)
    rule = RequireRule(
        "needed", found.object_filter, found.keys, found.values_by_name, found.status, found.quarantine
    )
    return ObjectRules(require=(rule,))


def only_object(bench: StorageBench) -> tuple[str, bytes, Dataset]:
    ((location, data),) = bench.place.objects.items()
    return location, data, pydicom.dcmread(io.BytesIO(data))


@pytest.mark.parametrize("steps_of", [lambda data: None, lambda data: [*cut(data, 5_000), PRESSURE]])
@pytest.mark.parametrize(
    "syntax", [TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN]
)
async def test_an_object_is_stored_and_indexed_as_it_was_changed_and_known_by_what_came(
    tmp_path: Path, syntax: TransferSyntax, steps_of: Any
) -> None:
    stored = ct_image(transfer_syntax=syntax)
    changing = rules(set={"PatientID": "NEW", "StudyInstanceUID": NEW_STUDY}, remove=["AccessionNumber"])
    async with StorageBench(tmp_path, rules=changing, modifying_system="US") as bench:
        operation = store_operation(stored, steps_of(stored.dataset))
        with captured_logs() as lines:
            assert await bench.status(operation) == 0x0000
        location, data, dataset = only_object(bench)
        (part,) = await bench.index.parts(stored.sop_instance_uid)
        assert await bench.left_in_flight() == set()
    assert (dataset.PatientID, dataset.StudyInstanceUID) == ("NEW", NEW_STUDY)
    assert "AccessionNumber" not in dataset
    (item,) = dataset.OriginalAttributesSequence
    assert (item.ModifyingSystem, item.SourceOfPreviousValues) == ("US", "SCANNER")
    assert item.ModifiedAttributesSequence[0].StudyInstanceUID == stored.study_instance_uid
    meta = read_file_meta(data)
    assert part.digest == blake3(stored.dataset).digest()
    assert part.stored_digest == blake3(data[meta.dataset_offset_bytes :]).digest()
    assert meta.received_digest == ReceivedDigest("blake3", part.digest)
    assert (part.study_instance_uid, part.location) == (NEW_STUDY, location)
    assert (part.arrival_id, part.dataset_offset_bytes) == (meta.arrival_id, meta.dataset_offset_bytes)
    assert (part.received_at_ns, part.size_bytes) == (meta.received_at_ns, len(data))
    assert operation.dataset.held_bytes == 0
    assert bench.measures.coerced == 1
    (line,) = (line for line in lines if line["event"] == "object.coerced")
    assert (line["rules"], line["elements"]) == (["rule"], ["(0008,0050)", "(0010,0020)", "(0020,000D)"])
    assert "NEW" not in str(line)


async def test_where_nothing_is_to_be_changed_nothing_more_is_done(tmp_path: Path) -> None:
    logs = []
    for number, changing in enumerate(
        [None, rules(set={"PatientID": "PAT-0001"}, remove=["PatientComments"])]
    ):
        stored = ct_image()
        folder = tmp_path / str(number)
        folder.mkdir()
        async with StorageBench(folder, rules=changing) as bench:
            assert await bench.status(store_operation(stored)) == 0x0000
            logs.append(bench.steps.log)
            _, data, _ = only_object(bench)
            (part,) = await bench.index.parts(stored.sop_instance_uid)
        assert data[part.dataset_offset_bytes :] == stored.dataset
        assert (part.stored_digest, bench.measures.coerced) == (None, 0)
    assert logs[0] == logs[1]


async def test_the_same_object_again_is_a_success_and_kept_once(tmp_path: Path) -> None:
    stored = ct_image()
    async with StorageBench(tmp_path, rules=rules(set={"PatientID": "NEW"})) as bench:
        with captured_logs():
            for _ in range(3):
                assert await bench.status(store_operation(stored)) == 0x0000
        only_object(bench)
        assert (await bench.index.totals()).parts == 1
        assert not bench.storage.writing
        assert await bench.left_in_flight() == set()


@pytest.mark.parametrize(
    ("step", "error", "status"),
    [
        ("read_back", StorageError("disk"), 0xA700),
        ("commit", StorageFull("full"), 0xA700),
        ("add", IndexUnavailable("locked"), 0xA700),
        ("flush", StorageFull("full"), 0xA700),
    ],
)
async def test_whatever_fails_leaves_nothing(
    tmp_path: Path, step: str, error: Exception, status: int
) -> None:
    async with StorageBench(tmp_path, rules=rules(set={"PatientID": "NEW"})) as bench:
        bench.steps.fail_at(step, error)
        with captured_logs():
            assert await bench.status(store_operation(ct_image())) == status
        await bench.nothing_is_left()
        bench.steps.heal()
        with captured_logs():
            assert await bench.status(store_operation(ct_image())) == 0x0000
        assert not bench.storage.writing


async def test_a_second_writer_that_cannot_begin_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with StorageBench(tmp_path, rules=rules(set={"PatientID": "NEW"})) as bench:
        begin_really = bench.storage.begin
        begun: list[str] = []

        async def begin(arrival_id: str, prefix: bytes, digest: Any = None) -> Any:
            begun.append(arrival_id)
            if len(begun) == 2:
                raise StorageFull("full")
            return await begin_really(arrival_id, prefix, digest)

        monkeypatch.setattr(bench.storage, "begin", begin)
        with captured_logs():
            assert await bench.status(store_operation(ct_image())) == 0xA700
        assert begun[0] < begun[1]
        await bench.nothing_is_left()


@pytest.mark.parametrize("step", ["read_back", "commit", "add"])
async def test_a_store_that_is_cancelled_leaves_no_writer(tmp_path: Path, step: str) -> None:
    async with StorageBench(tmp_path, rules=rules(set={"PatientID": "NEW"})) as bench:
        reached = bench.steps.stop_at(step)
        with captured_logs():
            task = asyncio.create_task(bench.status(store_operation(ct_image())))
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not bench.storage.writing
        if step != "add":
            await bench.nothing_is_left()


async def test_what_the_character_set_cannot_say_is_refused(tmp_path: Path) -> None:
    async with StorageBench(tmp_path, rules=rules(set={"PatientName": "山田^太郎"})) as bench:
        with captured_logs():
            refusal = await bench.refusal(store_operation(ct_image(patient=LATIN)))
        assert (refusal.status, refusal.offending_elements) == (0xC000, (0x00100010,))
        await bench.nothing_is_left()


@pytest.mark.parametrize("durability", ["full", "process"])
async def test_of_what_is_refused_the_quarantine_keeps_what_came_and_a_release_changes_it(
    tmp_path: Path, durability: Literal["full", "process"]
) -> None:
    settings = Settings(data_dir=tmp_path, storage=StorageSettings(durability=durability))
    storage = build_storage(settings)
    place = build_quarantine(settings, storage)
    first, other = ct_image(), ct_image(seed=5, sop_instance_uid=ct_image().sop_instance_uid)
    unsayable = ct_image(seed=6, patient=LATIN)
    changing = rules(
        set={"InstitutionName": "{PatientID}:山"}, chosen=ObjectFilter(calling_ae_titles=("J*",))
    )
    changing = dataclasses.replace(changing, coerce=(*changing.coerce, coercing(set={"PatientID": "NEW"})))
    async with StorageBench(tmp_path, storage, rules=changing, quarantine=place) as bench:
        await place.open()
        with captured_logs():
            assert await bench.status(store_operation(first)) == 0x0000
            assert await bench.status(store_operation(other)) == 0xC111
            assert await bench.status(store_operation(unsayable, calling_ae_title="JP")) == 0xC000
        kept = []
        for object_id in place.ids("", 5):
            record = await place.record(object_id)
            kept.append(
                b"".join([piece async for piece in place.read(object_id, record.dataset_offset_bytes)])
            )
            assert record.digest == blake3(kept[-1]).hexdigest()
        assert kept == [other.dataset, unsayable.dataset]
        assert (await bench.index.totals()).parts == 1
        assert len(list(tmp_path.glob("objects/**/*.dcm"))) == 1
        assert not list(tmp_path.glob("incoming/*.part"))
        (part,) = await bench.index.parts(first.sop_instance_uid)
        await bench.index.remove([part.location])
        await storage.delete(part.location)
        with captured_logs():
            release = QuarantineRelease(place, bench.service)
            assert (await release.release(place.ids("", 1)[0])).released
        (part,) = await bench.index.parts(first.sop_instance_uid)
        assert part.digest == blake3(other.dataset).digest()
        assert pydicom.dcmread(tmp_path / part.location).PatientID == "NEW"
        await place.close()


async def test_a_large_header_that_was_begun_without_is_changed(tmp_path: Path) -> None:
    stored = encapsulated_pdf(document_bytes=400_000)
    async with StorageBench(
        tmp_path, rules=rules(set={"PatientID": "NEW"}), header_buffer_bytes=4_096
    ) as bench:
        with captured_logs():
            assert await bench.status(store_operation(stored, cut(stored.dataset, 3_000))) == 0x0000
        _, data, dataset = only_object(bench)
    assert dataset.PatientID == "NEW"
    assert dataset.EncapsulatedDocument in stored.dataset
    assert len(data) > 400_000


@pytest.mark.parametrize("dicos", [False, True])
@pytest.mark.parametrize("stored", [dicos_tdr(), dicos_ct()], ids=["TDR", "CT"])
async def test_dicos_objects_are_changed_only_when_that_is_asked_for(
    tmp_path: Path, stored: EncodedObject, dicos: bool
) -> None:
    async with StorageBench(tmp_path, rules=rules(set={"PatientID": "NEW"}, dicos=dicos)) as bench:
        with captured_logs():
            assert await bench.status(store_operation(stored)) == 0x0000
        (part,) = await bench.index.parts(stored.sop_instance_uid)
        _, data, dataset = only_object(bench)
    if dicos:
        assert dataset.PatientID == "NEW"
        assert read_file_meta(data).dicos_version == "V03"
    else:
        assert data[part.dataset_offset_bytes :] == stored.dataset


async def test_what_comes_on_a_dicos_association_is_not_changed(tmp_path: Path) -> None:
    stored = ct_image()
    operation = store_operation(stored)
    operation.association.is_dicos = True
    async with StorageBench(tmp_path, rules=rules(set={"PatientID": "NEW"})) as bench:
        assert await bench.status(operation) == 0x0000
        _, data, _ = only_object(bench)
    assert data.endswith(stored.dataset)


@pytest.mark.parametrize(("patient_id", "status"), [("NEW", 0xB000), ("PAT-0001", 0x0000)])
async def test_a_rule_may_warn_of_what_was_changed(tmp_path: Path, patient_id: str, status: int) -> None:
    async with StorageBench(tmp_path, rules=rules(set={"PatientID": patient_id}, warning=True)) as bench:
        with captured_logs():
            answer = await bench.service.store(store_operation(ct_image()))
    assert isinstance(answer, CStoreRSP)
    assert answer.status == status
    assert tuple(answer.offending_elements) == ((0x00100020,) if status else ())


async def test_rules_hold_by_their_filters_and_the_last_one_wins(tmp_path: Path) -> None:
    changing = ObjectRules(
        coerce=(
            coercing("all", set={"PatientID": "A", "StudyID": "A", "StudyDescription": "A"}),
            coercing(
                "ct", ObjectFilter(modalities=("CT",)), set={"StudyID": "B"}, source_of_previous_values="X"
            ),
            coercing("mr", ObjectFilter(modalities=("MR",)), set={"PatientID": "C"}),
            coercing("caller", ObjectFilter(calling_ae_titles=("SCAN*",)), remove=["StudyDescription"]),
        )
    )
    async with StorageBench(tmp_path, rules=changing) as bench:
        with captured_logs() as lines:
            assert await bench.status(store_operation(ct_image())) == 0x0000
        _, _, dataset = only_object(bench)
    assert (dataset.PatientID, dataset.StudyID) == ("A", "B")
    assert "StudyDescription" not in dataset
    assert dataset.OriginalAttributesSequence[0].SourceOfPreviousValues == "X"
    assert next(line for line in lines if line["event"] == "object.coerced")["rules"] == [
        "all",
        "ct",
        "caller",
    ]


async def test_a_callback_changes_what_it_is_shown_after_the_rules(tmp_path: Path) -> None:
    seen: list[Any] = []

    @callback("received", order=1)
    async def first(instance: Any) -> None:
        instance.change({"StudyID": "F", "PatientID": f"{instance.attribute('PatientID')}-F"})

    @callback("received", order=2)
    def second(instance: Any) -> None:
        seen.append(instance.attribute("StudyID"))
        instance.change({"StudyID": "S"}, remove=["PatientSex"], copy={"OtherPatientNames": "PatientName"})

    changing = rules(set={"StudyID": "R", "InstitutionName": "R"})
    async with StorageBench(tmp_path, callbacks=[first, second], rules=changing) as bench:
        with captured_logs():
            assert await bench.status(store_operation(ct_image())) == 0x0000
        _, _, dataset = only_object(bench)
    assert seen == ["STUDY-1"]
    assert (dataset.PatientID, dataset.StudyID, dataset.InstitutionName) == ("PAT-0001-F", "S", "R")
    assert "PatientSex" not in dataset
    assert str(dataset.OtherPatientNames) == "Doe^Jane"
    assert len(dataset.OriginalAttributesSequence) == 1


async def test_a_callback_that_asks_for_what_cannot_be_changed_has_failed(tmp_path: Path) -> None:
    @callback("received")
    async def wrong(instance: Any) -> None:
        instance.change({"SOPInstanceUID": "1.2.3"})

    async with StorageBench(tmp_path, callbacks=[wrong]) as bench:
        with captured_logs() as lines:
            assert await bench.status(store_operation(ct_image())) == 0xA700
        await bench.nothing_is_left()
    (line,) = (line for line in lines if line["event"] == "callback.raised")
    assert "SOPInstanceUID must not be changed" in str(line["error"])


@pytest.mark.parametrize(
    ("asked", "status", "comment"),
    [
        ({"attributes": ["PatientID", "0009,SCP TEST KIT,01", "ReferencedImageSequence"]}, 0x0000, ""),
        ({"attributes": ["Rows", "Columns"], "values": {"Modality": ["MR", "CT"]}}, 0x0000, ""),
        ({"attributes": ["PixelRepresentation"]}, 0x0000, ""),
        ({"attributes": ["PatientComments"]}, 0xC000, "PatientComments is missing"),
        (
            {"attributes": ["ReferringPhysicianName"], "status": 0xA9FF},
            0xA9FF,
            "ReferringPhysicianName is missing",
        ),
        ({"attributes": ["0009,NOBODY,01"], "status": 0xA701}, 0xA701, "0009,NOBODY,01 is missing"),
        ({"values": {"Modality": ["MR"]}, "status": 0xC123}, 0xC123, "Modality has another value"),
        ({"values": {"BodyPartExamined": ["HEAD"]}}, 0xC000, "BodyPartExamined is missing"),
        ({"values": {"ImageType": ["AXIAL", "ORIGINAL", "PRIMARY"]}}, 0x0000, ""),
        ({"values": {"ImageType": ["ORIGINAL", "PRIMARY"]}}, 0xC000, "ImageType has another value"),
        ({"attributes": ["PatientComments"], "modalities": ["MR"]}, 0x0000, ""),
    ],
)
async def test_objects_without_what_is_required_are_refused(
    tmp_path: Path, asked: dict[str, Any], status: int, comment: str
) -> None:
    stored = ct_image(private=True, sequences=True)
    async with StorageBench(tmp_path, rules=requiring(**asked)) as bench:
        operation = store_operation(stored)
        with captured_logs() as lines:
            if not status:
                assert await bench.status(operation) == 0x0000
                return
            refusal = await bench.refusal(operation)
        assert (refusal.status, refusal.comment) == (status, comment)
        await bench.nothing_is_left()
    (line,) = (line for line in lines if line["event"] == "rule.rejected")
    assert (line["rule"], line["error"], line["status"]) == ("needed", comment, f"0x{status:04X}")


@pytest.mark.parametrize(("quarantine", "kept"), [(None, 1), (True, 1), (False, 0)])
async def test_a_rule_says_whether_what_it_refuses_is_kept(
    tmp_path: Path, quarantine: bool | None, kept: int
) -> None:
    settings = Settings(data_dir=tmp_path)
    storage = build_storage(settings)
    place = build_quarantine(settings, storage)
    needed = requiring(attributes=["PatientComments"], quarantine=quarantine)
    async with StorageBench(tmp_path, storage, rules=needed, quarantine=place) as bench:
        await place.open()
        with captured_logs():
            assert await bench.status(store_operation(ct_image())) == 0xC000
        assert place.totals.objects == kept
        await place.close()


async def test_no_more_objects_are_written_anew_at_once_than_may_be(tmp_path: Path) -> None:
    async with StorageBench(tmp_path, rules=rules(set={"PatientID": "NEW"}), max_changed_objects=1) as bench:
        reached = bench.steps.stop_at("commit")
        with captured_logs():
            operations = [store_operation(ct_image(seed=seed)) for seed in range(2)]
            first, second = (asyncio.create_task(bench.status(operation)) for operation in operations)
            await reached.wait()
            for _ in range(200):
                await asyncio.sleep(0)
            assert bench.steps.log.count("read_back") == 1
            assert operations[1].dataset.held_bytes == 0, "what waits uses up nobody's memory"
            bench.steps.heal()
            first.cancel()
            assert await second == 0x0000
            with pytest.raises(asyncio.CancelledError):
                await first
        assert not bench.storage.writing


@pytest.mark.parametrize("pressed", [False, True])
async def test_a_large_object_is_changed_at_constant_memory(tmp_path: Path, pressed: bool) -> None:
    pieces, piece = 96, bytes(1 << 20)
    stored = ct_image()
    header = stored.dataset[: stored.dataset.index(b"\xe0\x7f\x10\x00OW")]
    header += b"\xe0\x7f\x10\x00OW\0\0" + (pieces * len(piece)).to_bytes(4, "little")
    steps: list[Any] = [[header], *[[piece]] * pieces]
    if pressed:
        steps = [step for each in steps for step in (each, PRESSURE)]
    storage = FilesystemStorage(FilesystemStorageConfig(tmp_path, Durability.PROCESS, reserve_bytes=0))
    async with StorageBench(tmp_path, storage, rules=rules(set={"PatientID": "NEW"})) as bench:
        with captured_logs():
            assert await bench.status(store_operation(ct_image(seed=1))) == 0x0000
            tracemalloc.start()
            assert await bench.status(store_operation(stored, steps)) == 0x0000
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        (part,) = await bench.index.parts(stored.sop_instance_uid)
    assert part.size_bytes > pieces * len(piece)
    assert pydicom.dcmread(tmp_path / part.location, stop_before_pixels=True).PatientID == "NEW"
    assert peak < 12 << 20


async def test_a_callback_in_a_process_of_its_own_changes_an_object_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plugin_that_coerces.py").write_text(
        "from scp_server import callback\n"
        "@callback('received', run_in='process')\n"
        "def change(instance):\n"
        "    instance.change({'PatientID': instance.attribute('PatientID') + '-P', 'StudyID': 'P'})\n"
    )
    plugin = importlib.import_module("plugin_that_coerces")
    changing = rules(set={"StudyID": "R", "InstitutionName": "R"})
    async with StorageBench(tmp_path, callbacks=[plugin.change], rules=changing) as bench:
        with captured_logs():
            assert await bench.status(store_operation(ct_image())) == 0x0000
        _, _, dataset = only_object(bench)
    sys.modules.pop("plugin_that_coerces")
    assert (dataset.PatientID, dataset.StudyID, dataset.InstitutionName) == ("PAT-0001-P", "P", "R")
