"""C-STORE: the order of the promise, and what is left when any step of it fails or is cut short."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from scp_server.errors import (
    AssociationAborted,
    IndexFailure,
    IndexUnavailable,
    OperationRefused,
    StorageError,
    StorageFull,
)
from scp_server.index.base import DuplicatePolicy
from scp_server.interfaces import DicosMode, PeerRules
from scp_server.observability.logs import captured_logs
from scp_server.protocol.message import CStoreRSP
from scp_server.services.storage import ArrivalClock
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_operation import PRESSURE, FakeOperation, cut, store_operation
from scp_server.testing.objects import Patient, ct_image, encapsulated_pdf, structured_report
from scp_server.testing.storage_bench import StorageBench
from scp_server.testing.stored_objects import content

SECRET = "/srv/vault on host-17"
"""Stands for what an exception of a backend may say, and a peer must not hear."""


def _staged() -> FakeOperation:
    """A C-STORE of a DICOS object whose file is begun before its header has ended: every step occurs."""
    tdr = dicos_tdr()
    return store_operation(tdr, [[tdr.dataset[:500]], PRESSURE, [tdr.dataset[500:]]])


# --- the order


async def test_success_comes_after_the_index_and_that_after_the_commit(bench: StorageBench) -> None:
    stored = ct_image()
    answer = await bench.service.store(store_operation(stored))
    assert isinstance(answer, CStoreRSP)
    assert answer.status == 0x0000
    assert answer.affected_sop_instance_uid == stored.sop_instance_uid
    assert bench.steps.log == ["begin", "write", "commit", "commit.done", "add", "add.done", "indexed"]


@pytest.mark.parametrize("step", ["commit", "add"])
async def test_no_answer_before_the_object_is_committed_and_indexed(bench: StorageBench, step: str) -> None:
    reached = bench.steps.stop_at(step)
    task = asyncio.create_task(bench.service.store(store_operation(ct_image())))
    await reached.wait()
    done, _ = await asyncio.wait({task}, timeout=0.02)
    assert not done
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_index_learns_where_the_bytes_lie_and_who_sent_them(bench: StorageBench) -> None:
    stored = ct_image()
    operation = store_operation(stored, cut(stored.dataset, 777), calling_ae_title="CT-3")
    assert await bench.status(operation) == 0x0000
    (part,) = await bench.index.parts(stored.sop_instance_uid)
    assert await content(bench.storage, part.location, part.dataset_offset_bytes) == stored.dataset
    assert len(bench.place.objects[part.location]) == part.size_bytes
    assert (part.calling_ae_title, part.called_ae_title) == ("CT-3", "ARCHIVE")
    assert part.transfer_syntax_uid == stored.transfer_syntax_uid
    assert await bench.index.header(part.location)
    assert part.arrival_id in part.location


@pytest.mark.parametrize("staged", [False, True])
async def test_the_digest_is_the_blake3_of_the_data_set_alone(bench: StorageBench, staged: bool) -> None:
    stored = dicos_tdr()
    assert await bench.status(_staged() if staged else store_operation(stored)) == 0x0000
    (part,) = await bench.index.parts(stored.sop_instance_uid)
    assert (part.digest_algorithm, part.digest) == ("blake3", blake3(stored.dataset).digest())


# --- failures, one at every step

FAILURES = [
    *[(step, StorageFull(SECRET), "out of space") for step in ("begin", "write", "flush", "patch", "commit")],
    *[(step, StorageError(SECRET), "the object cannot be written") for step in ("begin", "write", "commit")],
    ("add", IndexUnavailable(SECRET), "the object cannot be indexed"),
    ("add", IndexFailure(SECRET), "the object cannot be indexed"),
]


@pytest.mark.parametrize(("step", "error", "comment"), FAILURES)
async def test_a_failing_step_is_a700_leaves_nothing_and_tells_the_peer_no_secret(
    bench: StorageBench, step: str, error: Exception, comment: str
) -> None:
    bench.steps.fail_at(step, error)
    with captured_logs() as logs:
        refusal = await bench.refusal(_staged())
    assert (refusal.status, refusal.comment, refusal.offending_elements) == (0xA700, comment, ())
    assert any(record.get("error") == SECRET and record.get("association_id") == "fake-1" for record in logs)
    await bench.nothing_is_left()
    bench.steps.heal()
    assert await bench.status(_staged()) == 0x0000, "the service goes on"


@pytest.mark.parametrize("step", ["begin", "write", "flush", "patch", "commit"])
async def test_an_unforeseen_failure_before_the_commit_leaves_nothing_either(
    bench: StorageBench, step: str
) -> None:
    bench.steps.fail_at(step, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        await bench.service.store(_staged())
    await bench.nothing_is_left()


async def test_an_index_that_fails_in_an_unforeseen_way_leaves_the_object_in_flight(
    bench: StorageBench,
) -> None:
    bench.steps.fail_at("add", RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        await bench.service.store(store_operation(ct_image()))
    assert await bench.left_in_flight() == set(bench.place.objects) != set()


async def test_what_cannot_be_packed_is_taken_back(
    bench: StorageBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_header: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("scp_server.objects.raw_header.RawHeader.pack", fail)
    assert await bench.status(store_operation(ct_image())) == 0xA700
    await bench.nothing_is_left()


@pytest.mark.parametrize("why", ["index fails", "same bytes again"])
async def test_what_cannot_be_taken_back_stays_in_flight_for_start_up(bench: StorageBench, why: str) -> None:
    if why == "index fails":
        bench.steps.fail_at("add", IndexUnavailable("locked"))
        expected, kept = 0xA700, 0
    else:
        assert await bench.status(store_operation(ct_image())) == 0x0000
        expected, kept = 0x0000, 1
    bench.steps.fail_at("delete", StorageError("busy"))
    with captured_logs() as logs:
        assert await bench.status(store_operation(ct_image())) == expected
    assert len(bench.place.objects) == kept + 1
    (left,) = await bench.left_in_flight()
    assert [record["location"] for record in logs if record["event"] == "object.left_over"] == [left]
    assert await bench.index.unknown_locations([left]) == [left]


# --- the association ends, or the task does


@pytest.mark.parametrize("received", [0, 1, 2, 3])
async def test_an_association_that_ends_inside_the_data_set_leaves_nothing(
    bench: StorageBench, received: int
) -> None:
    stored = dicos_tdr()
    steps = ([stored.dataset[:500]], PRESSURE, [stored.dataset[500:1000]])[:received]
    operation = store_operation(stored, (*steps, AssociationAborted(2, 0)))
    with pytest.raises(AssociationAborted):
        await bench.service.store(operation)
    await bench.nothing_is_left()


@pytest.mark.parametrize("step", ["begin", "write", "flush", "patch", "commit"])
async def test_cancelled_before_the_commit_nothing_is_left(bench: StorageBench, step: str) -> None:
    await _cancel_at(bench, step)
    await bench.nothing_is_left()


async def test_cancelled_between_commit_and_index_the_object_is_in_flight(bench: StorageBench) -> None:
    await _cancel_at(bench, "add")
    assert len(bench.place.objects) == 1
    assert await bench.left_in_flight() == set(bench.place.objects)


async def test_cancelled_while_taken_back_the_object_is_in_flight(bench: StorageBench) -> None:
    bench.steps.fail_at("add", IndexUnavailable("locked"))
    await _cancel_at(bench, "delete")
    assert len(bench.place.objects) == 1
    assert await bench.left_in_flight() == set(bench.place.objects)


async def _cancel_at(bench: StorageBench, step: str) -> None:
    reached = bench.steps.stop_at(step)
    task = asyncio.create_task(bench.service.store(_staged()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- identity


async def test_the_same_bytes_again_are_a_success_and_kept_once(bench: StorageBench) -> None:
    for _ in range(2):
        assert await bench.status(store_operation(ct_image())) == 0x0000
    assert len(bench.place.objects) == 1
    assert await bench.left_in_flight() == set()


async def test_the_same_bytes_in_another_transfer_syntax_are_other_bytes(bench: StorageBench) -> None:
    explicit = structured_report()
    unknown = dataclasses.replace(explicit, transfer_syntax_uid="1.2.3.4.5")
    assert await bench.status(store_operation(explicit)) == 0x0000
    assert await bench.status(store_operation(unknown)) == 0xC111


@pytest.mark.parametrize("policy", [*DuplicatePolicy])
@pytest.mark.parametrize("kind", ["dicom", "dicos"])
async def test_each_kind_of_object_has_its_own_policy_for_duplicates(
    tmp_path: Path, kind: str, policy: DuplicatePolicy
) -> None:
    other = DuplicatePolicy.PARTS if policy is DuplicatePolicy.KEEP_FIRST else DuplicatePolicy.KEEP_FIRST
    policies: dict[str, Any] = {"duplicates": other, "dicos_duplicates": other}
    policies["dicos_duplicates" if kind == "dicos" else "duplicates"] = policy
    first, second = _pair(kind)
    async with StorageBench(tmp_path, **policies) as bench:
        assert await bench.status(store_operation(first)) == 0x0000
        if policy in REFUSALS:
            refusal = await bench.refusal(store_operation(second))
            assert (refusal.status, refusal.offending_elements) == (REFUSALS[policy], (0x00001000,))
            assert "is kept under this SOP Instance UID" in refusal.comment
        else:
            assert await bench.status(store_operation(second)) == 0x0000
        parts = await bench.index.parts(first.sop_instance_uid)
        assert [part.part_number for part in parts] == [1, 2][: 1 + (policy is DuplicatePolicy.PARTS)]
        assert {part.location for part in parts} == set(bench.place.objects)
        kept = [bench.place.objects[part.location][part.dataset_offset_bytes :] for part in parts]
        expected = {DuplicatePolicy.PARTS: [first, second], DuplicatePolicy.REPLACE: [second]}
        assert kept == [stored.dataset for stored in expected.get(policy, [first])]
        assert await bench.left_in_flight() == set()
        assert await bench.status(store_operation(second if policy not in REFUSALS else first)) == 0x0000


REFUSALS = {DuplicatePolicy.KEEP_FIRST: 0xC111, DuplicatePolicy.REJECT: 0xC112}


@pytest.mark.parametrize(
    ("rules", "kind", "status"),
    [
        (PeerRules("A", duplicates=DuplicatePolicy.PARTS), "dicom", 0x0000),
        (PeerRules("A", duplicates=DuplicatePolicy.REJECT), "dicos", 0xC112),
        (PeerRules("A", dicos=DicosMode.ALWAYS), "dicom", 0x0000),
        (PeerRules("A", DuplicatePolicy.KEEP_FIRST, DicosMode.ALWAYS), "dicom", 0xC111),
        (PeerRules("A", dicos=DicosMode.NEVER), "dicos", 0x0000),
        (PeerRules("A"), "dicom", 0xC111),
    ],
)
async def test_a_peers_own_policy_goes_before_that_of_all(
    bench: StorageBench, rules: PeerRules, kind: str, status: int
) -> None:
    first, second = _pair(kind)
    assert await bench.status(store_operation(first)) == 0x0000
    operation = store_operation(second)
    operation.association.peer = rules
    assert await bench.status(operation) == status


async def test_what_is_replaced_is_deleted_after_the_index_and_before_the_answer(tmp_path: Path) -> None:
    first, second = _pair("dicom")
    async with StorageBench(tmp_path, duplicates=DuplicatePolicy.REPLACE) as bench:
        await bench.service.store(store_operation(first))
        bench.steps.log.clear()
        await bench.service.store(store_operation(second))
        assert bench.steps.log == [
            *("begin", "write", "commit", "commit.done", "add", "add.done"),
            *("delete", "delete.done", "forget_discarded", "indexed"),
        ]


async def test_what_is_replaced_and_cannot_be_deleted_is_remembered(tmp_path: Path) -> None:
    first, second = _pair("dicom")
    async with StorageBench(tmp_path, duplicates=DuplicatePolicy.REPLACE) as bench:
        await bench.service.store(store_operation(first))
        (old,) = bench.place.objects
        bench.steps.fail_at("delete", StorageError("busy"))
        with captured_logs() as logs:
            assert await bench.status(store_operation(second)) == 0x0000
        assert [record["event"] for record in logs] == ["object.left_over"]
        assert await bench.index.discarded() == [old]
        (part,) = await bench.index.parts(first.sop_instance_uid)
        assert part.location != old


def _pair(kind: str) -> tuple[EncodedObject, EncodedObject]:
    if kind == "dicos":
        return two_section_ct()
    first = ct_image(seed=1)
    return first, ct_image(seed=2, sop_instance_uid=first.sop_instance_uid)


async def test_a_conflicting_patient_is_logged_without_identities_and_the_object_is_kept(
    bench: StorageBench,
) -> None:
    assert await bench.status(store_operation(ct_image(seed=1))) == 0x0000
    stranger = Patient(name="Roe^Richard", patient_id="PAT-9999")
    with captured_logs() as logs:
        assert await bench.status(store_operation(ct_image(seed=2, patient=stranger))) == 0x0000
    (record,) = [record for record in logs if record["event"] == "patient.conflict"]
    assert record["association_id"] == "fake-1"
    assert not any(text in str(logs) for text in ("Roe", "Doe", "PAT-"))
    assert len(bench.place.objects) == 2


async def test_eight_senders_of_one_uid_at_once_leave_one_object(bench: StorageBench) -> None:
    first, second = _pair("dicom")
    statuses = await asyncio.gather(
        *(bench.status(store_operation(stored)) for stored in [first, second] * 4)
    )
    assert sorted(statuses) == [0x0000] * 4 + [0xC111] * 4
    assert len(bench.place.objects) == 1
    assert await bench.left_in_flight() == set()


# --- the command

HOSTILE_UIDS = [
    "",
    " ",
    "../../etc/passwd",
    "1.2.x",
    "1..2",
    ".1",
    "1.",
    "1.2\n",
    "1.2\0.3",
    "1.2 .3",
    "1" * 65,
    "1.\uff12",
    "\x1b[31m",
    "1.2\\1.3",
    "é",
]


@pytest.mark.parametrize("uid", HOSTILE_UIDS, ids=ascii)
async def test_a_sop_instance_uid_that_is_none_is_0117(bench: StorageBench, uid: str) -> None:
    refusal = await bench.refusal(store_operation(ct_image(), sop_instance_uid=uid))
    assert (refusal.status, refusal.offending_elements) == (0x0117, (0x00001000,))
    assert bench.steps.log == []


@pytest.mark.parametrize("uid", ["1", "01.002", "3.4", "1" * 64, "2.25." + "9" * 39])
async def test_any_root_and_leading_zeros_are_kept(bench: StorageBench, uid: str) -> None:
    stored = ct_image(sop_instance_uid=uid)
    assert await bench.status(store_operation(stored)) == 0x0000
    assert len(await bench.index.parts(uid)) == 1


@pytest.mark.parametrize("uid", ["1.2.840.10008.5.1.4.1.1.4", "", "CT", "1.2.840.10008.5.1.4.1.1.2.1"])
async def test_a_sop_class_other_than_the_contexts_is_0122(bench: StorageBench, uid: str) -> None:
    assert (await bench.refusal(store_operation(ct_image(), sop_class_uid=uid))).status == 0x0122
    assert bench.steps.log == []


async def test_a_command_without_a_data_set_is_c000(bench: StorageBench) -> None:
    assert (await bench.refusal(store_operation(ct_image(), has_dataset=False))).status == 0xC000
    assert bench.steps.log == []


@pytest.mark.parametrize("padding", ["\0", " ", "\0\0", " \0 "])
async def test_padding_of_the_commands_uids_is_no_difference(bench: StorageBench, padding: str) -> None:
    stored = ct_image()
    operation = store_operation(
        stored,
        sop_class_uid=stored.sop_class_uid + padding,
        sop_instance_uid=stored.sop_instance_uid + padding,
    )
    assert await bench.status(operation) == 0x0000
    (part,) = await bench.index.parts(stored.sop_instance_uid)
    assert part.sop_class_uid == stored.sop_class_uid


@pytest.mark.parametrize("padding", [b"\0", b" "])
@pytest.mark.parametrize("tag", [b"\x08\x00\x16\x00", b"\x08\x00\x18\x00", b"\x20\x00\x0d\x00"])
async def test_padding_of_the_data_sets_uids_is_no_difference_and_is_kept(
    bench: StorageBench, tag: bytes, padding: bytes
) -> None:
    stored = ct_image(sop_instance_uid="1.2.3.4.55", study_instance_uid="1.2.3.4.77")
    at = stored.dataset.index(tag + b"UI")
    length = int.from_bytes(stored.dataset[at + 6 : at + 8], "little")
    value = stored.dataset[at + 8 : at + 8 + length].rstrip(b"\0")
    value = (value + padding).ljust(length + 2, padding)
    padded = stored.dataset[:at] + tag + b"UI" + len(value).to_bytes(2, "little") + value
    padded += stored.dataset[at + 8 + length :]
    assert await bench.status(store_operation(dataclasses.replace(stored, dataset=padded))) == 0x0000
    (part,) = await bench.index.parts(stored.sop_instance_uid)
    assert part.study_instance_uid == "1.2.3.4.77"
    assert bench.place.objects[part.location].endswith(padded)


@pytest.mark.parametrize(
    ("sent", "tag", "name"),
    [
        (ct_image(seed=5), 0x00080018, "SOP Instance UID"),
        (structured_report(sop_instance_uid=ct_image().sop_instance_uid), 0x00080016, "SOP Class UID"),
    ],
)
async def test_a_data_set_that_the_command_does_not_speak_of_is_a900(
    bench: StorageBench, sent: EncodedObject, tag: int, name: str
) -> None:
    operation = store_operation(dataclasses.replace(ct_image(), dataset=sent.dataset))
    refusal = await bench.refusal(operation)
    assert (refusal.status, refusal.offending_elements) == (0xA900, (tag,))
    assert name in refusal.comment
    assert len(refusal.comment) <= 64
    await bench.nothing_is_left()


@pytest.mark.parametrize("syntax", [*TransferSyntax], ids=lambda syntax: syntax.name.lower())
async def test_a_cut_data_set_is_refused_in_every_transfer_syntax(
    bench: StorageBench, syntax: TransferSyntax
) -> None:
    stored = ct_image(transfer_syntax=syntax)
    for size_bytes in (1, 200, len(stored.dataset) // 2, len(stored.dataset) - 1):
        operation = store_operation(stored, [[stored.dataset[:size_bytes]]])
        refusal = await bench.refusal(operation)
        assert refusal.status == 0xC000
        assert refusal.comment
    await bench.nothing_is_left()


async def test_a_refused_object_can_be_followed_by_the_right_one(bench: StorageBench) -> None:
    stored = encapsulated_pdf()
    with pytest.raises(OperationRefused):
        await bench.service.store(store_operation(stored, [[stored.dataset[:-2]]]))
    assert await bench.status(store_operation(stored)) == 0x0000


# --- arrival ids


def test_arrival_ids_are_unique_and_in_order_also_when_the_clock_stands_or_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings = iter([5_000, 5_000, 4_000, 9_000, 9_000])
    monkeypatch.setattr("scp_server.services.storage.time.time_ns", lambda: next(readings))
    clock = ArrivalClock()
    arrivals = [clock.next() for _ in range(5)]
    assert [arrival.received_at_ns for arrival in arrivals] == [5_000, 5_001, 5_002, 9_000, 9_001]
    ids = [arrival.arrival_id for arrival in arrivals]
    assert ids == sorted(set(ids))


def test_two_processes_never_give_one_arrival_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scp_server.services.storage.time.time_ns", lambda: 5_000)
    assert ArrivalClock().next().arrival_id != ArrivalClock().next().arrival_id
