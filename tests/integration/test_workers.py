"""Several processes on one port: what one acknowledged all know, caps hold for all, and any may die."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from scp_server.cli.control_client import ControlClient
from scp_server.testing import wire
from scp_server.testing.daemon import DaemonFailed, DaemonProcess
from scp_server.testing.dataset_encoder import Element
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.testing.querying_peer import STUDY_ROOT_FIND, identifier, values_of
from scp_server.testing.retrieving_peer import STUDY_ROOT_GET
from scp_server.testing.scripted_peer import ScriptedPeer, UnexpectedAnswer, storage_contexts
from scp_server.testing.wire import ProposedContext
from scp_server.testing.witness import Witness
from tests.integration.workers import PROCESS, WORKERS, Workers, is_gone, let_in

CAP = 6
SENDERS = 8
STUDY_UID, SOP_UID = 0x0020000D, 0x00080018
EXPLICIT = "1.2.840.10008.1.2.1"
LIMITS = {
    "SCP_SERVER_LIMITS__MAX_ASSOCIATIONS_PER_PEER": str(CAP),
    "SCP_SERVER_QUARANTINE__MAX_OBJECTS": "4",
    "SCP_SERVER_QUERY__RELATIONAL": "always",
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """Three workers for all tests that leave them as they are."""
    folder = tmp_path_factory.mktemp("workers") / "data"
    with DaemonProcess(folder, "--workers", str(WORKERS), environment=PROCESS | LIMITS) as daemon:
        yield daemon


@pytest.fixture
def workers(daemon: DaemonProcess) -> Workers:
    return Workers(daemon)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def _image(study: str, number: int) -> EncodedObject:
    return ct_image(
        rows=16, columns=16, seed=number, study_instance_uid=study, sop_instance_uid=f"{study}.{number}"
    )


def _contexts(stored: EncodedObject) -> list[ProposedContext]:
    more = [
        ProposedContext(91, STUDY_ROOT_FIND, (EXPLICIT,)),
        ProposedContext(93, STUDY_ROOT_GET, (EXPLICIT,)),
    ]
    return [*storage_contexts(stored), *more]


async def test_what_one_worker_acknowledged_every_other_finds_at_once_and_sends(
    workers: Workers, stack: AsyncExitStack
) -> None:
    study = "1.2.826.0.1.50"
    first = _image(study, 0)
    role = wire.role_selection(first.sop_class_uid, scu=True, scp=True)
    peers = await workers.on_each(stack, _contexts(first), role)
    numbers = itertools.count()
    for _ in range(3):
        for sender in peers.values():
            stored = _image(study, next(numbers))
            assert await sender.store(stored) == 0x0000
            for asking in peers.values():
                keys = (Element(STUDY_UID, "UI", study), Element(SOP_UID, "UI", stored.sop_instance_uid))
                found = await asking.find(identifier("IMAGE", *keys))
                assert values_of(found.datasets, SOP_UID) == [stored.sop_instance_uid]
    wanted = {_image(study, number).dataset for number in range(next(numbers))}
    for fetching in peers.values():
        await fetching.send_get(study)
        received = set()
        for _ in wanted:
            store, dataset = await fetching.read_message()
            received.add(dataset)
            await fetching.answer_store(store)
        assert (await fetching.final()).status == 0x0000
        assert received == wanted


async def test_the_caps_of_associations_hold_for_all_workers_together(
    workers: Workers, stack: AsyncExitStack
) -> None:
    """However unevenly the kernel spreads them: the last place is free for whichever worker is asked."""
    for _ in range(3):
        peers = [await let_in(workers.address, "CAPPED") for _ in range(CAP)]
        assert None not in peers
        assert await let_in(workers.address, "CAPPED") is None
        for peer in filter(None, peers):
            await peer.release()
            await peer.close()


async def test_metrics_and_status_tell_of_all_workers_together(
    workers: Workers, stack: AsyncExitStack
) -> None:
    before = await workers.metrics()
    stored = _image("1.2.826.0.1.51", 1)
    peers = await workers.on_each(stack, storage_contexts(stored))
    for peer in peers.values():
        assert await peer.store(stored) == 0x0000
    after = await workers.metrics()
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    assert grown["scp_objects_received_total"] == WORKERS
    assert grown["scp_operation_duration_seconds_count store success"] == WORKERS
    assert grown["scp_stage_duration_seconds_count index"] == WORKERS
    assert grown["scp_peer_operations_total other success"] == WORKERS
    assert after["scp_associations_active"] == WORKERS
    assert after["scp_associations_limit"] == 2_000
    assert after["scp_connections_limit"] == 4_096
    assert after["scp_held_bytes_limit"] == 256 << 20
    assert (after["scp_workers"], after["scp_workers_limit"]) == (WORKERS, WORKERS)
    assert after["scp_ready"] == 1
    with ControlClient(workers.daemon.data_dir) as client:
        report = client.ask("status")
    pids = [workers.daemon.ready.pid, *dict(sorted(workers.satellites().items())).values()]
    assert report["server"]["worker_pids"] == pids
    assert report["associations"]["now"] == len(report["associations"]["list"]) == WORKERS
    assert report["totals"]["operations"] == sum(
        value for name, value in after.items() if name.startswith("scp_operation_duration_seconds_count")
    )


async def test_the_quarantine_is_bounded_for_all_workers_together(
    workers: Workers, stack: AsyncExitStack
) -> None:
    study = "1.2.826.0.1.52"
    peers = await workers.on_each(stack, storage_contexts(_image(study, 0)))
    for number, peer in enumerate([*peers.values()] * 2):
        stored = _image(study, number)
        cut = dataclasses.replace(stored, dataset=stored.dataset[:-1])
        assert await peer.store(cut) == 0xC000
    folder = workers.daemon.data_dir / "quarantine"
    assert len(list(folder.glob("*.quarantine"))) == len(list(folder.glob("*.json"))) == 4
    with ControlClient(workers.daemon.data_dir) as client:
        assert client.ask("quarantine.list", after="")["totals"]["objects"] == 4
    found = await workers.metrics()
    assert found["scp_quarantine_objects"] == 4
    assert found["scp_quarantine_events_total not_kept"] == 2


async def test_every_line_of_the_log_is_whole_and_names_its_worker(workers: Workers) -> None:
    records = workers.daemon.log_records()
    assert len(records) == len(workers.daemon.output)
    assert {record["worker"] for record in records} == set(range(WORKERS))


def test_another_server_cannot_share_the_port(daemon: DaemonProcess, tmp_path: Path) -> None:
    other = DaemonProcess(
        tmp_path, "--workers", "2", "--port", str(daemon.ready.dicom_port), environment=PROCESS
    )
    with pytest.raises(DaemonFailed, match="cannot listen"):
        other.start()
    assert other.process.returncode == 2


# -- workers that die


async def _send_until_told(
    address: tuple[str, int], objects: Iterator[EncodedObject], witness: Witness, enough: asyncio.Event
) -> None:
    """Send on one association after another; one that ends in the middle is followed by the next."""
    while not enough.is_set():
        with contextlib.suppress(OSError, EOFError, UnexpectedAnswer, TimeoutError):
            async with await ScriptedPeer.connect(*address, timeout_seconds=10) as peer:
                stored = next(objects)
                await peer.associate(storage_contexts(stored))
                while not enough.is_set():
                    witness.sending(stored)
                    assert await peer.store(stored) == 0x0000
                    witness.was_acknowledged(stored)
                    stored = next(objects)


def _objects(seed: int) -> Iterator[EncodedObject]:
    for number in itertools.count():
        side = (16, 256, 16)[number % 3]
        yield ct_image(rows=side, columns=side, seed=seed * 100_000 + number)


async def _some_more(workers: Workers, witness: Witness) -> None:
    """Wait until some more objects were acknowledged."""
    before = len(witness.acknowledged)
    await workers.until(lambda: len(witness.acknowledged) > before + 50 or None)


@pytest.mark.slow
async def test_nothing_acknowledged_is_lost_when_workers_are_killed_or_hang_and_others_take_their_places(
    tmp_path: Path,
) -> None:
    """Among these one that hangs (SIGSTOP); then the whole server is killed, and started again."""
    settings = PROCESS | {"SCP_SERVER_WORKER_SILENCE_SECONDS": "1"}
    daemon = DaemonProcess(tmp_path, "--workers", str(WORKERS), environment=settings)
    await asyncio.to_thread(daemon.start)
    workers, witness, enough = Workers(daemon), Witness(tmp_path), asyncio.Event()
    async with asyncio.TaskGroup() as senders:
        for sender in range(SENDERS):
            senders.create_task(_send_until_told(workers.address, _objects(sender), witness, enough))
        for number, sent, reason in ((1, signal.SIGKILL, "ended"), (2, signal.SIGSTOP, "silent")):
            await _some_more(workers, witness)
            pid = workers.satellites()[number]
            os.kill(pid, sent)
            assert (await workers.logged("worker.ended", worker_pid=pid))["reason"] == reason
            assert is_gone(pid)
            await workers.logged("worker.restarted", number=number)
        await _some_more(workers, witness)
        enough.set()
    after = await workers.metrics()
    assert (after["scp_workers"], after["scp_workers_lost_total"]) == (WORKERS, 2)
    assert after["scp_objects_received_total"] <= len(witness.acknowledged) + SENDERS
    assert after["scp_associations_active"] == 0
    witness.testify()

    pids = [daemon.ready.pid, *workers.satellites().values()]
    enough.clear()
    async with asyncio.TaskGroup() as senders:
        for sender in range(SENDERS):
            objects = _objects(SENDERS + sender)
            senders.create_task(_send_until_told(workers.address, objects, witness, enough))
        await _some_more(workers, witness)
        os.kill(daemon.ready.pid, signal.SIGKILL)
        enough.set()
    await workers.until(lambda: all(map(is_gone, pids)) or None)
    await asyncio.to_thread(daemon.start)
    witness.testify(anew=True)
    await asyncio.to_thread(daemon.terminate)
    witness.testify()
    assert not [line for line in daemon.output if "Traceback" in line]


async def test_a_reload_holds_for_all_workers_and_sigterm_drains_them(
    tmp_path: Path, stack: AsyncExitStack
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("")
    daemon = DaemonProcess(
        tmp_path / "data", "--workers", str(WORKERS), "--config", str(file), environment=PROCESS
    )
    await asyncio.to_thread(daemon.start)
    workers, stored = Workers(daemon), _image("1.2.826.0.1.53", 1)
    before = await workers.on_each(stack, storage_contexts(stored))
    file.write_text("[access]\nknown_peers_only = true\n[[peers]]\naddress = '10.0.0.0/8'\n")
    os.kill(daemon.ready.pid, signal.SIGHUP)
    await workers.logged("settings.reloaded")
    for _ in range(6 * WORKERS):
        assert await let_in(workers.address, "STRANGER") is None
    rejecting = {record["worker"] for record in daemon.log_records("association.rejected")}
    assert rejecting == set(range(WORKERS))
    for peer in before.values():
        assert await peer.store(stored) == 0x0000
    ending = asyncio.create_task(asyncio.to_thread(daemon.terminate))
    for peer in before.values():
        assert (await peer.read_pdu()).pdu_type == wire.PDUType.RELEASE_RQ
        await peer.send(wire.release_rp())
    await ending
    assert daemon.log_records("server.stopped")[0]["clean"] is True
    assert all(map(is_gone, workers.satellites().values()))
