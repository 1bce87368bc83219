"""C-ECHO and C-STORE against the whole server: what is answered, and what lies on disk afterwards."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from scp_server import Server
from scp_server.objects.part10 import read_file_meta
from scp_server.observability.logs import captured_logs
from scp_server.testing import wire
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_ct, dicos_dx, dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import Patient, ct_image, encapsulated_pdf, structured_report
from scp_server.testing.scripted_peer import Framing, ScriptedPeer, storage_contexts
from scp_server.testing.wire import PDV, Control, ProposedContext, Tag

StartServer = Callable[..., Awaitable[Server]]
Datasets = Callable[[], dict[str, list[bytes]]]
DICOS_APPLICATION_CONTEXTS = (
    "1.2.840.10008.3.1.1.1",
    "1.2.840.10008.3.1.1.1.3",
    "1.2.840.10008.3.1.1.1.211",
    "1.2.840.10008.3.1.1.1.2",
)
EVERY_SYNTAX = [*TransferSyntax]


async def _connected(server: Server) -> ScriptedPeer:
    return await ScriptedPeer.connect(*server.address)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".dcm", ".part")]


async def test_echo_is_answered_with_success(server: Server) -> None:
    async with await _connected(server) as peer:
        await peer.associate([ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))])
        assert await peer.echo() == 0x0000
        await peer.release()
        assert await peer.wait_eof() == b""


@pytest.mark.parametrize("syntax", EVERY_SYNTAX, ids=lambda syntax: syntax.name.lower())
async def test_the_data_set_is_kept_byte_for_byte_in_any_transfer_syntax(
    server: Server, stored_datasets: Datasets, syntax: TransferSyntax
) -> None:
    stored = ct_image(transfer_syntax=syntax, private=True, sequences=True)
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(stored))
        assert await peer.store(stored) == 0x0000
    assert stored_datasets() == {stored.sop_instance_uid: [stored.dataset]}


async def test_file_meta_says_what_the_object_is_and_who_sent_it(server: Server, tmp_path: Path) -> None:
    stored = dicos_tdr()
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(stored), calling_ae_title="EDS-07", called_ae_title="ARCHIVE")
        assert await peer.store(stored) == 0x0000
    (file,) = _files(tmp_path)
    data = file.read_bytes()
    meta = read_file_meta(data)
    assert data[:132] == bytes(128) + b"DICM"
    assert (meta.sop_class_uid, meta.sop_instance_uid) == (stored.sop_class_uid, stored.sop_instance_uid)
    assert meta.transfer_syntax_uid == stored.transfer_syntax_uid
    assert (meta.source_ae_title, meta.sending_ae_title, meta.receiving_ae_title) == (
        "EDS-07",
        "EDS-07",
        "ARCHIVE",
    )
    assert meta.dicos_version == "V03"


@pytest.mark.parametrize("application_context", DICOS_APPLICATION_CONTEXTS)
@pytest.mark.parametrize("framings", [("standard",), ("glued",), ("standard", "glued", "standard")])
async def test_both_framings_mix_on_an_association_of_any_application_context(
    server: Server, stored_datasets: Datasets, application_context: str, framings: tuple[Framing, ...]
) -> None:
    objects = [dicos_ct(seed=seed) for seed in range(len(framings))]
    async with await _connected(server) as peer:
        answer = await peer.associate(storage_contexts(*objects), application_context=application_context)
        assert answer.application_context == application_context
        for number, (stored, framing) in enumerate(zip(objects, framings, strict=True)):
            assert await peer.store(stored, framing=framing, message_id=2 * number) == 0x0000
        assert await peer.echo() == 0x0000
        await peer.release()
    assert stored_datasets() == {stored.sop_instance_uid: [stored.dataset] for stored in objects}


async def test_a_glued_object_in_one_pdv_is_kept_when_no_maximum_is_announced(
    start_server: StartServer, stored_datasets: Datasets
) -> None:
    server = await start_server(limits={"max_pdu_bytes": 0})
    stored = dicos_ct(frames=64, rows=64, columns=64)
    async with await _connected(server) as peer:
        answer = await peer.associate(storage_contexts(stored))
        assert answer.maximum_length == 0
        assert await peer.store(stored, framing="glued") == 0x0000
    assert stored_datasets() == {stored.sop_instance_uid: [stored.dataset]}


async def test_user_identity_is_answered_when_asked_for(server: Server) -> None:
    stored = dicos_dx()
    async with await _connected(server) as peer:
        answer = await peer.associate(
            storage_contexts(stored), user_identity=wire.UserIdentity(2, b"scanner", b"secret", True)
        )
        assert dict(answer.user_items)[wire.ItemType.USER_IDENTITY_AC] == b"\0\0"
        assert await peer.store(stored) == 0x0000


async def test_both_sections_of_a_ct_are_kept_as_parts_of_one_instance(
    server: Server, stored_datasets: Datasets
) -> None:
    first, second = two_section_ct()
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(first))
        assert await peer.store(first) == 0x0000
        assert await peer.store(second) == 0x0000
        assert await peer.store(first) == 0x0000, "the same bytes again are idempotent"
    assert stored_datasets() == {first.sop_instance_uid: [first.dataset, second.dataset]}


async def test_the_same_bytes_again_are_kept_once(server: Server, stored_datasets: Datasets) -> None:
    stored = ct_image()
    for _ in range(2):
        async with await _connected(server) as peer:
            await peer.associate(storage_contexts(stored))
            assert await peer.store(stored) == 0x0000
    assert stored_datasets() == {stored.sop_instance_uid: [stored.dataset]}


async def test_other_bytes_under_a_kept_uid_get_c111_and_are_not_kept(
    server: Server, stored_datasets: Datasets
) -> None:
    stored = ct_image(seed=1)
    other = ct_image(seed=2, sop_instance_uid=stored.sop_instance_uid)
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(stored))
        assert await peer.store(stored) == 0x0000
        await peer.send_store(other)
        response = await peer.read_response()
        assert response.status == 0xC111
        assert response.error_comment
    assert stored_datasets() == {stored.sop_instance_uid: [stored.dataset]}


async def test_two_senders_of_one_uid_at_once_leave_one_whole_object(
    server: Server, stored_datasets: Datasets
) -> None:
    first = ct_image(seed=1)
    second = ct_image(seed=2, sop_instance_uid=first.sop_instance_uid)

    async def send(stored: EncodedObject) -> int:
        async with await _connected(server) as peer:
            await peer.associate(storage_contexts(stored))
            return await peer.store(stored)

    statuses = await asyncio.gather(*(send(stored) for stored in [first, second] * 4))
    assert set(statuses) == {0x0000, 0xC111}
    ((kept,),) = stored_datasets().values()
    assert kept in (first.dataset, second.dataset)


def _with_dataset(stored: EncodedObject, dataset: bytes) -> EncodedObject:
    return dataclasses.replace(stored, dataset=dataset)


@pytest.mark.parametrize(
    ("make", "status"),
    [
        pytest.param(lambda s: s.dataset[:-1], 0xC000, id="cut in the pixels"),
        pytest.param(lambda s: s.dataset[:100], 0xC000, id="cut in the header"),
        pytest.param(lambda s: s.dataset + b"\xe0\x7f\x10", 0xC000, id="a tag without an end"),
        pytest.param(lambda _: b"\xff" * 1500, 0xC000, id="garbage"),
        pytest.param(lambda _: b"", 0xC000, id="nothing"),
        pytest.param(lambda s: b"\x02\0\x10\0UI\x02\x001\0" + s.dataset, 0xC000, id="group 0002"),
        pytest.param(lambda _: ct_image(seed=9).dataset, 0xA900, id="another instance"),
        pytest.param(lambda _: structured_report().dataset, 0xA900, id="another class"),
    ],
)
async def test_an_unreadable_or_wrong_data_set_is_refused_and_leaves_nothing(
    server: Server, tmp_path: Path, make: Callable[[EncodedObject], bytes], status: int
) -> None:
    stored = ct_image()
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(stored))
        await peer.send_store(_with_dataset(stored, make(stored)))
        response = await peer.read_response()
        assert response.status == status
        assert response.error_comment
        assert await peer.store(stored) == 0x0000, "the association goes on"
    assert len(_files(tmp_path)) == 1


async def test_a_data_set_without_a_study_is_refused(server: Server, tmp_path: Path) -> None:
    stored = ct_image()
    uid = stored.study_instance_uid.encode()
    at = stored.dataset.index(b"\x20\x00\x0d\x00UI")
    length = 8 + len(uid) + len(uid) % 2
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(stored))
        await peer.send_store(_with_dataset(stored, stored.dataset[:at] + stored.dataset[at + length :]))
        response = await peer.read_response()
        assert response.status == 0xC000
        assert response.elements[Tag.OFFENDING_ELEMENT] == b"\x20\x00\x0d\x00"
    assert _files(tmp_path) == []


async def test_a_class_other_than_the_contexts_is_0122_and_the_association_goes_on(
    server: Server, tmp_path: Path
) -> None:
    stored, other = ct_image(), structured_report()
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(stored))
        assert await peer.store(other, context_id=3) == 0x0122
        assert await peer.store(stored, context_id=1) == 0x0122, "C-STORE over the Verification context"
        assert await peer.echo() == 0x0000
        assert await peer.store(stored) == 0x0000
    assert len(_files(tmp_path)) == 1


async def test_an_invalid_sop_instance_uid_in_the_command_is_0117(server: Server, tmp_path: Path) -> None:
    stored = ct_image()
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(stored))
        for uid in ("../../etc/passwd", "1.2.x", "1" * 65, ""):
            bad = dataclasses.replace(stored, sop_instance_uid=uid)
            assert await peer.store(bad) == 0x0117
    assert _files(tmp_path) == []


async def test_an_unknown_command_is_0211_and_the_association_goes_on(server: Server) -> None:
    async with await _connected(server) as peer:
        await peer.associate([ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))])
        command = wire.command_set({Tag.COMMAND_FIELD: 0x0999, Tag.MESSAGE_ID: 5, Tag.DATASET_TYPE: 0x0101})
        await peer.send(wire.p_data_tf(PDV(1, Control.COMMAND | Control.LAST, command)))
        response = await peer.read_response()
        assert (response.status, response.message_id_responded_to) == (0x0211, 5)
        assert await peer.echo() == 0x0000


async def test_a_response_that_nobody_waits_for_aborts(server: Server) -> None:
    async with await _connected(server) as peer:
        await peer.associate([ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))])
        command = wire.command_set(
            {
                Tag.COMMAND_FIELD: 0x8030,
                Tag.MESSAGE_ID_RESPONDED_TO: 1,
                Tag.DATASET_TYPE: 0x0101,
                Tag.STATUS: 0,
            }
        )
        await peer.send(wire.p_data_tf(PDV(1, Control.COMMAND | Control.LAST, command)))
        assert (await peer.expect_abort()).source == 2


async def test_no_room_is_a700_and_the_association_goes_on(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(storage={"reserve_bytes": 2**60})
    stored = ct_image()
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(stored))
        await peer.send_store(stored)
        response = await peer.read_response()
        assert response.status == 0xA700
        assert response.error_comment
        assert await peer.echo() == 0x0000
    assert _files(tmp_path) == []


async def test_an_object_above_the_configured_size_is_a700(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(limits={"max_object_bytes": 1000})
    async with await _connected(server) as peer:
        stored = ct_image()
        await peer.associate(storage_contexts(stored))
        assert await peer.store(stored) == 0xA700
    assert _files(tmp_path) == []


@pytest.mark.parametrize("end", ["abort", "reset", "close"])
async def test_a_transfer_that_is_cut_off_leaves_nothing(server: Server, tmp_path: Path, end: str) -> None:
    stored = ct_image(rows=1024, columns=1024)
    peer = await _connected(server)
    await peer.associate(storage_contexts(stored))
    command = wire.c_store_rq(1, stored.sop_class_uid, stored.sop_instance_uid)
    await peer.send(wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, command)))
    for start in range(0, 1_500_000, 100_000):
        await peer.send(wire.p_data_tf(PDV(3, Control.DATASET, stored.dataset[start : start + 100_000])))
    await (peer.abort() if end == "abort" else peer.reset() if end == "reset" else peer.close())
    async with await _connected(server) as other:
        await other.associate(storage_contexts(stored))
        assert await other.echo() == 0x0000
    async with asyncio.timeout(5):
        while _files(tmp_path):
            await asyncio.sleep(0.01)
    await peer.close()


async def test_a_header_larger_than_its_buffer_is_staged(
    start_server: StartServer, stored_datasets: Datasets, tmp_path: Path
) -> None:
    server = await start_server(limits={"header_buffer_bytes": 65_536})
    document = encapsulated_pdf(document_bytes=3_000_000)
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(document))
        assert await peer.store(document) == 0x0000
    assert stored_datasets() == {document.sop_instance_uid: [document.dataset]}
    (file,) = _files(tmp_path)
    assert read_file_meta(file.read_bytes()).transfer_syntax_uid == document.transfer_syntax_uid


async def test_the_dicos_version_is_patched_into_a_staged_files_meta(
    start_server: StartServer, stored_datasets: Datasets, tmp_path: Path
) -> None:
    server = await start_server(limits={"header_buffer_bytes": 4_096})
    tdr = dicos_tdr()
    padding = b"".join(
        struct.pack("<HH2sxxI", 0x0009, element, b"OB", 60_000) + bytes(60_000)
        for element in (0x1001, 0x1002)
    )
    before = tdr.dataset.index(b"\x10\x00\x20\x00LO")
    large = _with_dataset(tdr, tdr.dataset[:before] + padding + tdr.dataset[before:])
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(large))
        assert await peer.store(large) == 0x0000
    assert stored_datasets() == {large.sop_instance_uid: [large.dataset]}
    (file,) = _files(tmp_path)
    assert read_file_meta(file.read_bytes()).dicos_version == "V03"


async def test_senders_that_together_exceed_the_budget_all_succeed(
    start_server: StartServer, stored_datasets: Datasets
) -> None:
    server = await start_server(
        limits={
            "process_buffer_bytes": 1_048_576,
            "association_buffer_bytes": 524_288,
            "header_buffer_bytes": 262_144,
        }
    )
    objects = [ct_image(rows=700, columns=700, seed=seed) for seed in range(8)]

    async def send(stored: EncodedObject) -> int:
        async with await _connected(server) as peer:
            await peer.associate(storage_contexts(stored))
            return await peer.store(stored)

    assert await asyncio.gather(*map(send, objects)) == [0x0000] * len(objects)
    assert stored_datasets() == {stored.sop_instance_uid: [stored.dataset] for stored in objects}


async def test_what_the_index_was_told_is_what_was_stored(server: Server) -> None:
    objects = [ct_image(seed=seed) for seed in range(3)]
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(*objects))
        for stored in objects:
            assert await peer.store(stored) == 0x0000
    totals = await server.index.totals()
    assert (totals.patients, totals.studies, totals.series) == (1, 1, 1)
    assert (totals.instances, totals.parts) == (3, 3)
    (part,) = await server.index.parts(objects[0].sop_instance_uid)
    assert part.study_instance_uid == objects[0].study_instance_uid


async def test_requests_sent_without_waiting_are_answered_in_order(server: Server) -> None:
    objects = [ct_image(seed=seed) for seed in range(5)]
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(*objects))
        for number, stored in enumerate(objects):
            await peer.send_store(stored, message_id=100 + number)
        answers = [await peer.read_response() for _ in objects]
    assert [answer.message_id_responded_to for answer in answers] == [100, 101, 102, 103, 104]
    assert {answer.status for answer in answers} == {0x0000}


async def test_a_message_id_in_use_is_0210(server: Server) -> None:
    async with await _connected(server) as peer:
        await peer.associate([ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))])
        echo = wire.p_data_tf(PDV(1, Control.COMMAND | Control.LAST, wire.c_echo_rq(7)))
        await peer.send(echo + echo)
        assert [(await peer.read_response()).status for _ in range(2)] == [0x0000, 0x0210]
        assert await peer.echo() == 0x0000


async def test_no_patient_is_named_in_the_log_whatever_becomes_of_their_object(server: Server) -> None:
    kept = ct_image(patient=Patient(name="Zebra^Zoe", patient_id="ZEBRA-1"))
    other = ct_image(seed=2, patient=Patient(name="Quagga^Quin", patient_id="QUAGGA-2"))
    newcomer = ct_image(seed=3, sop_instance_uid=kept.sop_instance_uid, patient=Patient(name="Okapi^Otto"))
    cut = _with_dataset(kept, kept.dataset[:-1])
    with captured_logs("info") as logs:
        async with await _connected(server) as peer:
            await peer.associate(storage_contexts(kept))
            statuses = [await peer.store(each) for each in (kept, kept, other, newcomer, cut)]
            assert statuses == [0x0000, 0x0000, 0x0000, 0xC111, 0xC000]
            await peer.release()
    assert {"operation.performed", "patient.conflict", "quarantine.kept"} <= {line["event"] for line in logs}
    for name in ("Zebra", "ZEBRA", "Quagga", "QUAGGA", "Okapi"):
        assert name not in str(logs)
