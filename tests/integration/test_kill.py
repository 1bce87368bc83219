"""kill -9 under load: nothing acknowledged is lost, nothing half-done is seen."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from scp_server.cli.control_client import CommandFailed, ControlClient
from scp_server.index.base import DuplicatePolicy, Level, Scope
from scp_server.runtime.maintenance.deletion_record import Draft
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.testing.archive import Archive
from scp_server.testing.daemon import DaemonFailed, DaemonProcess, stored_files
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.index_contract import index_entry
from scp_server.testing.objects import ct_image
from scp_server.testing.process_usage import ProcessUsage
from scp_server.testing.scripted_peer import ScriptedPeer, UnexpectedAnswer, storage_contexts
from scp_server.testing.witness import Witness
from tests.integration.faults import no_deletion_is_left

SENDERS = 8
ROUNDS = int(os.environ.get("SCP_KILL_ROUNDS", "4"))
SIDES = (16, 256, 16, 16, 1448, 16, 256)
READY_SECONDS = 2.0


class Successes:
    """Tells, of some senders in one round, when each has had as many as are wanted."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._had: Counter[int] = Counter()
        self._news = asyncio.Event()

    def one(self, sender: int) -> None:
        """A sender has had one more."""
        self._had[sender] += 1
        self._news.set()

    async def enough(self) -> None:
        """Wait until each has had them."""
        async with asyncio.timeout(60):
            while any(self._had[sender] < self._wanted for sender in range(SENDERS)):
                self._news.clear()
                await self._news.wait()


def _first(round_number: int) -> int:
    """The Successes that each sender has before the daemon may be killed: none in every other round."""
    return 2 * (round_number % 2)


async def _send_until_killed(
    port: int, objects: Iterator[EncodedObject], witness: Witness, heard: Callable[[], None] = lambda: None
) -> None:
    """Send objects one after another, and have it noted what became of each."""
    with contextlib.suppress(OSError, EOFError, UnexpectedAnswer, TimeoutError):
        async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
            first = next(objects)
            await peer.associate(storage_contexts(first))
            while True:
                witness.sending(first)
                assert await peer.store(first) == 0x0000
                witness.was_acknowledged(first)
                heard()
                first = next(objects)


def _objects(seed: int) -> Iterator[EncodedObject]:
    """CT slices of half a kilobyte, 128 KiB and, some, 4 MiB."""
    for number in itertools.count(seed % len(SIDES)):
        side = SIDES[number % len(SIDES)]
        yield ct_image(rows=side, columns=side, seed=seed * 100_000 + number)


def _stored(data_dir: Path) -> dict[str, list[bytes]]:
    """Every data set on disk, by SOP Instance UID."""
    found: dict[str, list[bytes]] = {}
    for stored in stored_files(data_dir):
        found.setdefault(stored.sop_instance_uid, []).append(stored.dataset)
    return found


def _indexed(data_dir: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(data_dir / "index" / "index.sqlite")) as database:
        return {uid for (uid,) in database.execute("SELECT sop_instance_uid FROM instances")}


@dataclass(slots=True)
class Starts:
    """How long it took to be ready again, not counting what others had the processors."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    async def start(self, daemon: DaemonProcess) -> int:
        """Start; returns the port."""
        began = time.monotonic()
        port = (await asyncio.to_thread(daemon.start)).dicom_port
        usage = ProcessUsage(daemon.process.pid)
        self.seconds.append(time.monotonic() - began - usage.waited_seconds)
        self.cpu_seconds.append(usage.cpu_seconds)
        return port

    def expect_soon(self) -> None:
        """Each with less than two seconds of work; by the clock, on which others at the disk count too, the
        quickest, and most of them with some patience."""
        assert max(self.cpu_seconds) < READY_SECONDS, self
        assert min(self.seconds) < READY_SECONDS, self
        assert statistics.median(self.seconds) < 3 * READY_SECONDS, self


async def _start_and_kill(daemon: DaemonProcess, after_seconds: float) -> None:
    """Killed while it starts, perhaps just before or just after it is ready."""
    starting = asyncio.create_task(asyncio.to_thread(daemon.start))
    await asyncio.sleep(after_seconds)
    await asyncio.to_thread(daemon.kill)
    with contextlib.suppress(DaemonFailed):
        await starting
    await asyncio.to_thread(daemon.kill)


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["full", "process"])
async def test_nothing_acknowledged_is_lost_and_nothing_half_done_is_seen(
    tmp_path: Path, durability: str
) -> None:
    """Looked at after every kill, the index not compared with the files in the background meanwhile."""
    witness, starts, moment = Witness(tmp_path), Starts(), random.Random()
    environment = {
        "SCP_SERVER_STORAGE__DURABILITY": durability,
        "SCP_SERVER_INDEX__COMPARE_AT_START": "false",
    }
    daemon = DaemonProcess(tmp_path, environment=environment)
    for round_number in range(ROUNDS):
        port = await starts.start(daemon)
        witness.testify()
        successes = Successes(_first(round_number))
        async with asyncio.TaskGroup() as senders:
            for sender in range(SENDERS):
                objects = _objects(round_number * SENDERS + sender)
                heard = partial(successes.one, sender)
                senders.create_task(_send_until_killed(port, objects, witness, heard))
            await successes.enough()
            await asyncio.sleep(moment.uniform(0.05, 0.6))
            await asyncio.to_thread(daemon.kill)
        if round_number % 3 == 1:
            await _start_and_kill(daemon, moment.uniform(0.2, 1.2))
    await starts.start(daemon)
    witness.testify(anew=True)
    await asyncio.to_thread(daemon.terminate)
    witness.testify()
    assert len(witness.acknowledged) >= ROUNDS // 2 * 2 * SENDERS, "it was killed before it did any work"
    assert len(witness.acknowledged) < witness.sent, "it was never killed in the middle of anything"
    assert not [line for line in daemon.output if "Traceback" in line]
    starts.expect_soon()


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["full", "process"])
async def test_what_is_replaced_again_and_again_is_whole_and_once_whenever_the_daemon_is_killed(
    tmp_path: Path, durability: str
) -> None:
    """Each version has a series, and so a directory, of its own; one sender each, so the last is known."""
    daemon = DaemonProcess(
        tmp_path,
        environment={
            "SCP_SERVER_STORAGE__DURABILITY": durability,
            "SCP_SERVER_STORAGE__DUPLICATES": "replace",
        },
    )
    sent: list[list[bytes]] = [[] for _ in range(SENDERS)]
    acknowledged = [0] * SENDERS
    moment = random.Random(21)
    for round_number in range(ROUNDS):
        port = (await asyncio.to_thread(daemon.start)).dicom_port
        successes = Successes(_first(round_number))
        async with asyncio.TaskGroup() as senders:
            for sender in range(SENDERS):
                heard = partial(successes.one, sender)
                senders.create_task(_replace_until_killed(port, sender, sent[sender], acknowledged, heard))
            await successes.enough()
            await asyncio.sleep(moment.uniform(0.05, 0.6))
            await asyncio.to_thread(daemon.kill)

    await asyncio.to_thread(daemon.start)
    await asyncio.to_thread(daemon.terminate)
    stored = _stored(tmp_path)
    assert min(acknowledged) >= ROUNDS // 2 * 2, "the daemon was killed before it did any work"
    for sender in range(SENDERS):
        (kept,) = stored[_version(sender, 0).sop_instance_uid]
        assert kept in sent[sender][acknowledged[sender] - 1 :], "older than what was acknowledged"
    assert _indexed(tmp_path) == set(stored)
    with contextlib.closing(sqlite3.connect(tmp_path / "index" / "index.sqlite")) as database:
        (series,) = database.execute("SELECT count(*) FROM series").fetchone()
        locations = {location for (location,) in database.execute("SELECT location FROM parts")}
    assert series == SENDERS
    assert locations == {str(path.relative_to(tmp_path)) for path in (tmp_path / "objects").rglob("*.dcm")}


def _version(sender: int, number: int) -> EncodedObject:
    return ct_image(
        rows=16,
        columns=16,
        seed=number,
        sop_instance_uid=f"1.2.826.0.99.{sender}",
        series_instance_uid=f"1.2.826.0.98.{sender}.{number}",
    )


async def _replace_until_killed(
    port: int, sender: int, sent: list[bytes], acknowledged: list[int], heard: Callable[[], None]
) -> None:
    """Send one version after another; `acknowledged` is how many of `sent` go up to the last Success."""
    with contextlib.suppress(OSError, EOFError, UnexpectedAnswer, TimeoutError):
        async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
            await peer.associate(storage_contexts(_version(sender, 0)))
            while True:
                stored = _version(sender, len(sent))
                sent.append(stored.dataset)
                assert await peer.store(stored) == 0x0000
                acknowledged[sender] = len(sent)
                heard()


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["full", "process"])
async def test_a_deletion_is_whole_or_not_begun_whenever_the_daemon_is_killed(
    tmp_path: Path, durability: str
) -> None:
    """A study is deleted while others are sent; what the next start finds of it is all or nothing."""
    daemon = DaemonProcess(tmp_path, environment={"SCP_SERVER_STORAGE__DURABILITY": durability})
    witness = Witness(tmp_path)
    moment = random.Random(22)
    for round_number in range(max(3, ROUNDS // 2)):
        port = (await asyncio.to_thread(daemon.start)).dicom_port
        study = f"1.2.826.0.97.{round_number}"
        doomed = [
            ct_image(rows=16, columns=16, seed=n, study_instance_uid=study, sop_instance_uid=f"{study}.{n}")
            for n in range(200)
        ]
        async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
            await peer.associate(storage_contexts(doomed[0]))
            for each in doomed:
                witness.sending(each)
                assert await peer.store(each) == 0x0000
        witness.deleting(each.sop_instance_uid for each in doomed)
        async with asyncio.TaskGroup() as group:
            for sender in range(2):
                objects = _objects(1_000_000 + round_number * 2 + sender)
                group.create_task(_send_until_killed(port, objects, witness))
            group.create_task(asyncio.to_thread(_delete_until_killed, tmp_path, study))
            await asyncio.sleep(moment.uniform(0.0, 0.2))
            await asyncio.to_thread(daemon.kill)
        await asyncio.to_thread(daemon.start)
        await no_deletion_is_left(tmp_path)
        await asyncio.to_thread(daemon.terminate)
        witness.testify()


def _delete_until_killed(data_dir: Path, study: str) -> None:
    with contextlib.suppress(CommandFailed), ControlClient(data_dir) as client:
        client.follow("delete", {"level": "study", "uid": study}, NoProgress())


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["full", "process"])
async def test_a_start_is_ready_before_the_files_of_a_big_deletion_are_gone_and_may_be_killed_again(
    tmp_path: Path, durability: str
) -> None:
    """20 000 parts: the first start has to forget them, the second one is killed among the files."""
    scope = Scope(Level.STUDY, "1.2.840.99.1.1")
    directories = await _decided(Archive.at(tmp_path), scope, parts=20_000)
    daemon = DaemonProcess(tmp_path, environment={"SCP_SERVER_STORAGE__DURABILITY": durability})
    await asyncio.to_thread(daemon.start)
    async with asyncio.timeout(60):
        while all(directory.is_dir() for directory in directories):
            await asyncio.sleep(0.001)
    await asyncio.to_thread(daemon.kill)
    left = len(list((tmp_path / "objects").rglob("*.dcm")))
    assert 0 < left < 20_000, "it was not killed in the middle"
    assert _indexed(tmp_path) == set()
    await asyncio.to_thread(daemon.start)
    await no_deletion_is_left(tmp_path)
    await asyncio.to_thread(daemon.terminate)
    assert not list((tmp_path / "objects").iterdir())
    told = [record["event"] for record in daemon.log_records()]
    of_interest = ("deletion.resumed", "server.ready", "deletion.finished")
    assert [event for event in told if event in of_interest] == [*of_interest[:2], *of_interest]
    assert [record["parts"] for record in daemon.log_records("deletion.resumed")] == [20_000, 0]


async def _decided(archive: Archive, scope: Scope, *, parts: int) -> list[Path]:
    """Files and rows of a study, and the record of its deletion; returns the directories of the files."""
    directories = [archive.data_dir / f"objects/ab/{'5' * 20}/{number:020}" for number in range(20)]
    for directory in directories:
        directory.mkdir(parents=True)
    entries = []
    for number in range(parts):
        path = directories[number % len(directories)] / f"{number:020x}-{number:024x}.dcm"
        path.touch()
        entries.append(index_entry(str(number), location=str(path.relative_to(archive.data_dir))))
    async with archive.opened() as (_, index):
        await asyncio.gather(*(index.add(entry, DuplicatePolicy.KEEP_FIRST) for entry in entries))
        draft = Draft(archive.data_dir)
        assert (await draft.list(index, scope, lambda: False)).parts == parts
        draft.decide()
    return directories
