"""Callbacks between the last byte of an object and its commit: a Success stays true, whatever they do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from scp_server import Reject, callback
from scp_server.errors import IndexUnavailable, OperationRefused, StorageFull
from scp_server.interfaces import AcceptedContext
from scp_server.observability.logs import captured_logs
from scp_server.pipeline.instances import ReceivedInstance
from scp_server.pipeline.subjects import InvalidInstance
from scp_server.protocol.message import VERIFICATION_SOP_CLASS_UID, CEchoRQ
from scp_server.runtime.build import build_quarantine, build_storage
from scp_server.services.storage import StorageService
from scp_server.services.verification import VerificationService
from scp_server.settings import Settings
from scp_server.testing.dicos_objects import dicos_tdr
from scp_server.testing.fake_operation import PRESSURE, FakeOperation, store_operation
from scp_server.testing.objects import ct_image
from scp_server.testing.storage_bench import StorageBench


async def test_a_callback_sees_an_object_before_it_is_committed(tmp_path: Path) -> None:
    seen: list[tuple[ReceivedInstance, list[str]]] = []

    @callback("received")
    async def look(instance: ReceivedInstance) -> None:
        seen.append((instance, list(bench.steps.log)))

    stored = ct_image()
    async with StorageBench(tmp_path, callbacks=[look]) as bench:
        assert await bench.status(store_operation(stored)) == 0x0000
        ((instance, steps_before),) = seen
        assert "commit" not in steps_before
        assert bench.steps.log[-1] == "indexed"
    assert instance.sop_instance_uid == stored.sop_instance_uid
    times = instance.times
    assert times.receive_ended_at_ns is not None
    assert times.receive_began_at_ns <= times.receive_ended_at_ns
    assert times.stored_at_ns is None


async def test_what_a_callback_rejects_gets_its_status_and_leaves_nothing(tmp_path: Path) -> None:
    @callback("received")
    async def refuse(instance: Any) -> None:
        raise Reject(0xA9FE, "not this one")

    async with StorageBench(tmp_path, callbacks=[refuse]) as bench:
        with captured_logs():
            refusal = await bench.refusal(store_operation(ct_image()))
        assert (refusal.status, refusal.comment) == (0xA9FE, "not this one")
        await bench.nothing_is_left()


async def test_a_failing_callback_refuses_with_a700_and_leaves_nothing(tmp_path: Path) -> None:
    @callback("received")
    def broken(instance: Any) -> None:
        raise OSError("/srv/vault")

    async with StorageBench(tmp_path, callbacks=[broken]) as bench:
        with captured_logs():
            refusal = await bench.refusal(store_operation(ct_image()))
        assert (refusal.status, refusal.comment) == (0xA700, "a callback failed")
        await bench.nothing_is_left()


async def test_an_object_that_is_refused_as_it_comes_is_shown_to_none(tmp_path: Path) -> None:
    seen = []

    @callback("received")
    async def look(instance: Any) -> None:
        seen.append(instance)

    stored = ct_image()
    async with StorageBench(tmp_path, callbacks=[look]) as bench:
        assert await bench.status(store_operation(stored, sop_instance_uid="1.2.3")) == 0xA900
        assert await bench.status(store_operation(stored, [[stored.dataset[:900]]])) == 0xC000
        await bench.nothing_is_left()
    assert seen == []


async def test_the_memory_of_an_object_is_given_back_while_a_callback_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scp_server.services.inspection._HELD_SECONDS", 0.001)
    tdr = dicos_tdr()
    operation = store_operation(tdr)
    released = asyncio.Event()
    release = operation.dataset.release

    def releasing(size_bytes: int) -> None:
        release(size_bytes)
        released.set()

    monkeypatch.setattr(operation.dataset, "release", releasing)

    @callback("received")
    async def wait(instance: Any) -> None:
        await released.wait()
        assert operation.dataset.held_bytes == 0

    async with StorageBench(tmp_path, callbacks=[wait]) as bench:
        assert await bench.status(operation) == 0x0000


@pytest.mark.parametrize("step", ["commit", "add"])
async def test_a_callback_that_agreed_does_not_make_a_success_of_a_failure(tmp_path: Path, step: str) -> None:
    @callback("received")
    async def agree(instance: Any) -> None: ...

    async with StorageBench(tmp_path, callbacks=[agree]) as bench:
        bench.steps.fail_at(step, StorageFull("full") if step == "commit" else IndexUnavailable("locked"))
        with captured_logs():
            assert await bench.status(store_operation(ct_image())) == 0xA700
        await bench.nothing_is_left()


@pytest.mark.parametrize(
    ("status", "quarantine", "kept"),
    [(0xC001, None, 1), (0xC001, False, 0), (0xA700, None, 0), (0xA700, True, 1)],
)
async def test_what_is_rejected_is_quarantined_as_its_status_or_the_callback_says(
    tmp_path: Path, status: int, quarantine: bool | None, kept: int
) -> None:
    @callback("received")
    async def refuse(instance: Any) -> None:
        raise Reject(status, "no", quarantine=quarantine)

    settings = Settings(data_dir=tmp_path)
    storage = build_storage(settings)
    stored = ct_image()
    async with StorageBench(tmp_path / "index", storage, callbacks=[refuse]) as bench:
        place = build_quarantine(settings, storage)
        await place.open()
        service = StorageService(storage, bench.index, bench.config, None, place, callbacks=bench.callbacks)
        with captured_logs(), pytest.raises(OperationRefused, match="no"):
            await service.store(
                store_operation(stored, [[stored.dataset[:500]], PRESSURE, [stored.dataset[500:]]])
            )
        assert place.totals.objects == kept
        if kept:
            (object_id,) = place.ids("", 2)
            record = await place.record(object_id)
            data = b"".join([piece async for piece in place.read(object_id, record.dataset_offset_bytes)])
            assert (data, record.status, record.reason) == (stored.dataset, status, "no")
        await place.close()


async def test_who_wants_to_know_is_told_of_what_was_refused(tmp_path: Path) -> None:
    told: list[InvalidInstance] = []

    @callback("invalid")
    async def hear(instance: InvalidInstance) -> None:
        told.append(instance)

    @callback("received", modalities=["MR"])
    async def refuse(instance: Any) -> None:
        raise Reject(0xC001, "no")

    stored = ct_image()
    async with StorageBench(tmp_path, callbacks=[hear, refuse]) as bench:
        with captured_logs():
            assert await bench.status(store_operation(stored)) == 0x0000
            other = ct_image(seed=9, sop_instance_uid=stored.sop_instance_uid)
            assert await bench.status(store_operation(other)) == 0xC111
            assert await bench.status(store_operation(stored, sop_instance_uid="1.2.3")) == 0xA900
            assert await bench.status(store_operation(stored, [[stored.dataset[:900]]])) == 0xC000
    assert [each.status for each in told] == [0xC111, 0xA900, 0xC000]
    assert told[1].sop_instance_uid == "1.2.3"
    assert told[2].dataset_bytes == 900
    assert told[0].association.calling_ae_title == "SCANNER"


async def test_an_echo_is_told_of_when_it_is_a_success() -> None:
    told = []

    class Listener:
        def echoed(self, association: Any) -> None:
            told.append(association)

    service = VerificationService(Listener())  # type: ignore[arg-type]
    context = AcceptedContext(1, VERIFICATION_SOP_CLASS_UID, "1.2.840.10008.1.2")
    operation = FakeOperation(CEchoRQ(message_id=1), context)
    await service.echo(operation)
    assert told == [operation.association]
