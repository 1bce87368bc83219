"""The daemon's own life: one for a folder, ended by signals, killed where it hurts, and started again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from scp_server.index.base import DuplicatePolicy
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.storage.base import ObjectKey
from scp_server.storage.template import LayoutTemplate
from scp_server.testing import wire
from scp_server.testing.daemon import DaemonProcess, expect_stored, stored_files
from scp_server.testing.dicos_objects import two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.index_contract import index_entry
from scp_server.testing.objects import ct_image
from scp_server.testing.process_usage import ProcessUsage
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from scp_server.testing.wire import PDV, Control, ProposedContext

DURABILITIES = ["full", "process"]
INSTANCES = int(os.environ.get("SCP_ARCHIVE_INSTANCES", "20000"))
"""Of the large archive; a million on demand."""
KILLING_DAEMON = """
import os, signal, sys
from scp_server.cli.main import main
from scp_server.index.store import SqlIndex

stored = 0
add = SqlIndex.add


async def add_or_die(self, entry, policy, first=None):
    global stored
    stored += 1
    if sys.argv[1] == "before" and stored == int(sys.argv[2]):
        if first is not None:
            first()
        os.kill(os.getpid(), signal.SIGKILL)
    result = await add(self, entry, policy, first)
    if sys.argv[1] == "after" and stored == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return result


SqlIndex.add = add_or_die
main(sys.argv[3:])
"""
"""A daemon that kills itself before, or right after, the index commits the object of a given number."""


class KillingDaemon(DaemonProcess):
    """See `KILLING_DAEMON`."""

    def __init__(self, data_dir: Path, moment: str, number: int, durability: str) -> None:
        super().__init__(
            data_dir,
            environment={"SCP_SERVER_STORAGE__DURABILITY": durability},
            program=(sys.executable, "-c", KILLING_DAEMON, moment, str(number)),
        )


def _indexed(data_dir: Path) -> list[tuple[str, int, str]]:
    """Instance, part number and location of every part in the index."""
    with closing(sqlite3.connect(data_dir / "index" / "index.sqlite")) as database:
        return database.execute(
            "SELECT sop_instance_uid, part_number, location FROM parts JOIN instances USING (instance_key) "
            "ORDER BY 1, 2"
        ).fetchall()


async def _store_until_killed(port: int, *objects: EncodedObject) -> None:
    """Store one after another; the last one is not acknowledged."""
    async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
        await peer.associate(storage_contexts(*objects))
        for stored in objects[:-1]:
            assert await peer.store(stored) == 0x0000
        with pytest.raises((EOFError, ConnectionError)):
            await peer.store(objects[-1])


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_killed_around_the_indexs_commit_the_object_is_whole_and_known_after_the_next_start(
    tmp_path: Path, durability: str, moment: str
) -> None:
    objects = [*two_section_ct(), ct_image(seed=1), ct_image(rows=256, columns=256, seed=2)]
    daemon = KillingDaemon(tmp_path, moment, len(objects), durability)
    ready = await asyncio.to_thread(daemon.start)
    await _store_until_killed(ready.dicom_port, *objects)
    assert await asyncio.to_thread(daemon.process.wait, 10) == -signal.SIGKILL
    await asyncio.to_thread(daemon.kill)
    expect_stored(tmp_path, objects)
    assert len(_indexed(tmp_path)) == len(objects) - (moment == "before")

    again = DaemonProcess(tmp_path, environment={"SCP_SERVER_STORAGE__DURABILITY": durability})
    await asyncio.to_thread(again.start)
    (ended,) = again.log_records("recovery.ended")
    assert (ended["adopted"], ended["removed"], ended["unreadable"]) == (moment == "before", 0, 0)
    async with await ScriptedPeer.connect("127.0.0.1", again.ready.dicom_port) as peer:
        await peer.associate(storage_contexts(*objects))
        assert [await peer.store(stored) for stored in objects] == [0x0000] * len(objects)
    await asyncio.to_thread(again.terminate)
    expect_stored(tmp_path, objects)
    rows = _indexed(tmp_path)
    assert sorted(location for _, _, location in rows) == sorted(
        str(stored.path.relative_to(tmp_path)) for stored in stored_files(tmp_path)
    )
    assert [row[1] for row in rows if row[0] == objects[0].sop_instance_uid] == [1, 2]


async def test_a_part_file_is_removed_and_an_index_that_was_deleted_does_not_stop_the_start(
    tmp_path: Path,
) -> None:
    # The second is too large to be deferred: it is there when the index is asked.
    objects = [ct_image(seed=1), ct_image(rows=256, columns=256, seed=2)]
    daemon = KillingDaemon(tmp_path, "before", 2, "process")
    ready = await asyncio.to_thread(daemon.start)
    await _store_until_killed(ready.dicom_port, *objects)
    await asyncio.to_thread(daemon.kill)
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "incoming" / "00000000000000000000ff.part").write_bytes(bytes(1000))

    again = DaemonProcess(tmp_path)
    await asyncio.to_thread(again.start)
    await asyncio.to_thread(again.terminate)
    assert not list(tmp_path.rglob("*.part"))
    expect_stored(tmp_path, objects)
    assert {row[0] for row in _indexed(tmp_path)} >= {objects[1].sop_instance_uid}


async def test_many_objects_in_flight_are_adopted_quickly(tmp_path: Path) -> None:
    """More than a busy daemon can have between commit and index, all of one series."""
    first = DaemonProcess(tmp_path, environment={"SCP_SERVER_STORAGE__DURABILITY": "process"})
    objects = [ct_image(rows=16, columns=16, seed=seed) for seed in range(300)]
    await asyncio.to_thread(first.start)
    async with await ScriptedPeer.connect("127.0.0.1", first.ready.dicom_port) as peer:
        await peer.associate(storage_contexts(objects[0]))
        for stored in objects:
            assert await peer.store(stored) == 0x0000
        await asyncio.to_thread(first.kill)
    shutil.rmtree(tmp_path / "index")
    began = time.monotonic()
    again = DaemonProcess(tmp_path)
    await asyncio.to_thread(again.start)
    seconds = time.monotonic() - began
    await asyncio.to_thread(again.terminate)
    (ended,) = again.log_records("recovery.ended")
    assert (ended["examined"], ended["adopted"]) == (300, 300)
    assert seconds < 10, "adopting 300 small objects takes a fraction of a second, starting Python the rest"


async def _fill(data_dir: Path, instances: int) -> None:
    """So many instances, 200 to a study, each with its row and a file that nobody has to read."""
    index = SqlIndex(IndexConfig(data_dir / "index" / "index.sqlite", synchronous_full=False))
    await index.open()
    numbers = iter(range(instances))
    layout = LayoutTemplate()

    async def add() -> None:
        for number in numbers:
            study = number // 200
            key = ObjectKey(f"1.2.1.{study}", f"1.2.2.{study}", f"1.2.3.{number}", f"{number:016x}")
            location = layout.location_of(key)
            (data_dir / location).parent.mkdir(parents=True, exist_ok=True)
            (data_dir / location).touch()
            entry = index_entry(str(number), study=str(study), series="1", location=location)
            await index.add(entry, DuplicatePolicy.KEEP_FIRST)

    await asyncio.gather(*(add() for _ in range(256)))
    assert (await index.totals()).parts == instances
    await index.close()


@pytest.mark.slow
async def test_a_large_archive_is_ready_within_2_seconds_also_after_a_kill(tmp_path: Path) -> None:
    """What was in flight is looked at before ready, all the rest after it."""
    await _fill(tmp_path, INSTANCES)
    seconds = []
    for seed in range(3):
        daemon = DaemonProcess(tmp_path)
        began = time.monotonic()
        ready = await asyncio.to_thread(daemon.start)
        # What others had the processors does not count.
        waited_seconds = ProcessUsage(daemon.process.pid).waited_seconds
        seconds.append(time.monotonic() - began - waited_seconds)
        stored = ct_image(seed=seed)
        try:
            async with await ScriptedPeer.connect("127.0.0.1", ready.dicom_port) as peer:
                await peer.associate(storage_contexts(stored))
                assert await peer.store(stored) == 0x0000
        finally:
            await asyncio.to_thread(daemon.kill)
        examined = [ended["examined"] for ended in daemon.log_records("recovery.ended")]
        assert examined in ([], [seed]), "only the series that an object came to since the start before"
    assert min(seconds) < 2, seconds


# --- one daemon for a folder


def _serve(data_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scp_server.cli.main", "serve", "--data-dir", str(data_dir)]
    command += ["--port", "0", "--http-port", "0", "--log-format", "json", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


async def test_a_second_daemon_exits_2_naming_the_first_and_starts_once_that_is_killed(
    tmp_path: Path,
) -> None:
    first = DaemonProcess(tmp_path)
    await asyncio.to_thread(first.start)
    second = await asyncio.to_thread(_serve, tmp_path)
    assert second.returncode == 2
    assert f"process with id {first.process.pid}" in second.stderr + second.stdout
    assert "Traceback" not in second.stderr + second.stdout
    async with await ScriptedPeer.connect("127.0.0.1", first.ready.dicom_port) as peer:
        await peer.associate([ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))])
        assert await peer.echo() == 0x0000
    await asyncio.to_thread(first.kill)
    with DaemonProcess(tmp_path) as successor:
        assert successor.ready.pid == successor.process.pid


def test_a_port_in_use_exits_2_with_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = _serve(tmp_path, "--port", str(port))
    assert ended.returncode == 2
    (line,) = [line for line in (ended.stderr + ended.stdout).splitlines() if "not_started" in line]
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert "Traceback" not in ended.stderr + ended.stdout


# --- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_transfer_end_and_exits_0(tmp_path: Path, number: signal.Signals) -> None:
    stored = ct_image(rows=256, columns=256)
    daemon = DaemonProcess(tmp_path)
    await asyncio.to_thread(daemon.start)
    async with await ScriptedPeer.connect("127.0.0.1", daemon.ready.dicom_port) as peer:
        await peer.associate(storage_contexts(stored))
        await _begin_store(peer, stored)
        daemon.process.send_signal(number)
        await _until_logged(daemon, "server.stopping")
        await peer.send(wire.p_data_tf(PDV(3, Control.LAST, stored.dataset[1_000:])))
        assert (await peer.read_response()).status == 0x0000
        assert (await peer.read_pdu()).pdu_type == wire.PDUType.RELEASE_RQ
        await peer.send(wire.release_rp())
    assert await asyncio.to_thread(daemon.process.wait, 10) == 0
    await asyncio.to_thread(daemon.kill)
    assert daemon.log_records("server.stopped")[0]["clean"] is True
    expect_stored(tmp_path, [stored])


async def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    stored = ct_image(rows=256, columns=256)
    daemon = DaemonProcess(tmp_path)
    await asyncio.to_thread(daemon.start)
    async with await ScriptedPeer.connect("127.0.0.1", daemon.ready.dicom_port) as peer:
        await peer.associate(storage_contexts(stored))
        await _begin_store(peer, stored)
        daemon.process.send_signal(signal.SIGTERM)
        await _until_logged(daemon, "server.stopping")
        daemon.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(daemon.process.wait, 2) == 1
    await asyncio.to_thread(daemon.kill)
    with DaemonProcess(tmp_path):
        assert stored_files(tmp_path) == []
        assert not list(tmp_path.rglob("*.part"))


async def _begin_store(peer: ScriptedPeer, stored: EncodedObject) -> None:
    command = wire.c_store_rq(1, stored.sop_class_uid, stored.sop_instance_uid)
    await peer.send(wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, command)))
    await peer.send(wire.p_data_tf(PDV(3, Control.DATASET, stored.dataset[:1_000])))


async def _until_logged(daemon: DaemonProcess, event: str) -> None:
    async with asyncio.timeout(10):
        while not daemon.log_records(event):
            await asyncio.sleep(0.01)


def test_the_daemon_runs_without_a_terminal_and_says_when_it_is_open_to_the_network(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, "--host", "0.0.0.0") as daemon:
        with socket.create_connection(("127.0.0.1", daemon.ready.dicom_port), 5):
            pass
        assert daemon.ready.pid == daemon.process.pid != os.getpid()
    assert len(daemon.log_records("server.open_to_network")) == 1
