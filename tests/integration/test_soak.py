"""A soak: mixed peers, kills and restarts; nothing acknowledged is lost, and nothing that is held grows.

SCP_SOAK_SECONDS says how long it takes, an hour is 3600.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from scp_server import Requestor
from scp_server.cli.control_client import ControlClient
from scp_server.errors import SCPServerError
from scp_server.interfaces import AcceptedContext
from scp_server.protocol.message import CStoreRQ
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.testing import wire
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dataset_encoder import Element, TransferSyntax
from scp_server.testing.dicos_objects import Scan, dicos_ct
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.objects import ct_image
from scp_server.testing.process_usage import ProcessUsage
from scp_server.testing.querying_peer import QueryingPeer, identifier, values_of
from scp_server.testing.scripted_peer import ScriptedPeer, UnexpectedAnswer, storage_contexts
from scp_server.testing.wire import PDV, Control
from scp_server.testing.witness import Witness
from tests.integration.faults import no_deletion_is_left

MIB = 1 << 20
SECONDS = float(os.environ.get("SCP_SOAK_SECONDS", "36"))
LIVES = max(3, min(24, int(SECONDS / 150)))
"""How often the daemon is started: half of the lives end by kill -9, the others by SIGTERM."""
SHIFTS = 4
"""Times in a life at which everybody leaves and the daemon is looked at; the first is what the others are
compared with."""
KEPT_STUDIES = 30
"""Beyond these the oldest is deleted."""
ENOUGH_STUDIES = 10
"""Those that are retrieved are so far from being deleted."""
GROWTH_BYTES = 32 * MIB
MORE_OF_A_KIND = 6
"""Descriptors and threads that a pool may still open after the first shift."""
WHAT = ("stored", "stored as DICOS", "queried", "retrieved", "deleted", "came and went")
EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
DICOS_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1.3"
STUDY_GET = "1.2.840.10008.5.1.4.1.2.2.3"
NUMBER_OF_STUDY_RELATED_INSTANCES = 0x00201208
PEERS_END = (OSError, EOFError, UnexpectedAnswer, TimeoutError, SCPServerError)
"""What peers see of a daemon that ends."""

NEVER_WHOLE = ct_image(rows=1024, columns=1024, pixels=bytes(2 * MIB))

COUNTING_DAEMON = """
import asyncio, json, signal, sys
from scp_server.cli.main import main
from scp_server.web.health import HealthState

ready = HealthState.ready


def count():
    print(json.dumps({"event": "test.counted", "tasks": len(asyncio.all_tasks())}), flush=True)


def ready_to_count(state):
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, count)
    ready(state)


HealthState.ready = ready_to_count
main(sys.argv[1:])
"""
"""A daemon that says at SIGUSR1 how many tasks it has."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the daemon has while nobody is there."""

    tasks: int
    threads: int
    descriptors: int
    resident_bytes: int

    def expect_flat(self, first: Held) -> None:
        """Nothing has grown since `first`."""
        assert self.tasks <= first.tasks, (first, self)
        assert self.threads <= first.threads + MORE_OF_A_KIND, (first, self)
        assert self.descriptors <= first.descriptors + MORE_OF_A_KIND, (first, self)
        assert self.resident_bytes <= first.resident_bytes + GROWTH_BYTES, (first, self)


@dataclass(frozen=True, slots=True)
class Study:
    """A study of which everything was acknowledged."""

    study_instance_uid: str
    objects: list[EncodedObject]

    @property
    def uids(self) -> set[str]:
        return {stored.sop_instance_uid for stored in self.objects}


class Comparing:
    """A sink of C-GET that compares what comes with what was sent, and keeps nothing."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness
        self.received: list[str] = []

    async def begin(self, request: CStoreRQ, context: AcceptedContext) -> _ComparingWriter:
        return _ComparingWriter(self, request.affected_sop_instance_uid, context)


class _ComparingWriter:
    def __init__(self, sink: Comparing, uid: str, context: AcceptedContext) -> None:
        self._sink = sink
        self._uid = uid
        self._context = context
        self._pieces: list[bytes] = []

    async def write(self, chunks: Sequence[memoryview]) -> None:
        self._pieces += map(bytes, chunks)

    async def commit(self) -> None:
        syntax, dataset = self._context.transfer_syntax, b"".join(self._pieces)
        received = EncodedObject(self._context.abstract_syntax, self._uid, "", "", syntax, dataset)
        assert self._sink.witness.is_as_sent(received), self._uid
        self._sink.received.append(self._uid)

    async def abort(self) -> None: ...


class Soak:
    """One daemon after another on the same data folder, and the peers that come and go."""

    def __init__(self, data_dir: Path) -> None:
        self.witness = Witness(data_dir)
        self.daemon = DaemonProcess(
            data_dir,
            environment={
                "SCP_SERVER_STORAGE__DURABILITY": "process",
                "SCP_SERVER_INDEX__COMPARE_AT_START": "false",
                # What is held is to be seen, not what glibc keeps of it once it is freed.
                "MALLOC_MMAP_THRESHOLD_": "65536",
            },
            program=(sys.executable, "-c", COUNTING_DAEMON),
        )
        self.done: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._studies: deque[Study] = deque()
        self._to_delete = asyncio.Event()
        self._ends = asyncio.Event()
        self._is_ending = False
        self._chance = random.Random()

    async def live(self, seconds: float, *, killed: bool) -> None:
        """One life: shifts with a look at the daemon after each, then an end in the middle of another."""
        await asyncio.to_thread(self.daemon.start)
        await no_deletion_is_left(self.witness.data_dir)
        self.witness.testify()
        first: Held | None = None
        for _ in range(SHIFTS):
            await self._work(seconds / (SHIFTS + 1))
            self.witness.testify()
            held = await self._held()
            first = first or held
            held.expect_flat(first)
        self._is_ending = True
        stop = self.daemon.kill if killed else self.daemon.terminate
        await self._work(self._chance.uniform(0.3, 0.8) * seconds / (SHIFTS + 1), stop)
        self._is_ending = False

    async def _work(self, seconds: float, stop: Callable[[], None] | None = None) -> None:
        """Everybody works for so long, and leaves; with `stop` the daemon is the one that goes."""
        self._ends.clear()
        peers: list[Callable[[], Awaitable[None]]] = [
            *(3 * [self._send_small]),
            self._send_large,
            *(2 * [self._send_dicos]),
            self._query,
            self._retrieve,
            self._delete,
            self._come_and_go,
        ]
        async with asyncio.TaskGroup() as group:
            for peer in peers:
                group.create_task(self._until_the_end(peer))
            await asyncio.sleep(seconds)
            if stop is not None:
                await asyncio.to_thread(stop)
            self._ends.set()
            self._to_delete.set()

    async def _until_the_end(self, peer: Callable[[], Awaitable[None]]) -> None:
        while not self._ends.is_set():
            try:
                await peer()
            except PEERS_END:
                if not self._is_ending:
                    raise
                return

    # -- who comes ----------------------------------------------------------------------------------------

    async def _send_small(self) -> None:
        await self._send(self._cts(*(16 << number % 4 for number in range(16))))

    async def _send_large(self) -> None:
        await self._send(self._cts(1448))

    async def _send_dicos(self) -> None:
        scan = Scan(f"BAG{next(self._numbers)}")
        await self._send([dicos_ct(seed=next(self._numbers), scan=scan) for _ in range(8)], dicos=True)

    def _cts(self, *sides: int) -> list[EncodedObject]:
        study = make_uid(f"study {next(self._numbers)}")
        return [
            ct_image(rows=side, columns=side, seed=next(self._numbers), study_instance_uid=study)
            for side in sides
        ]

    async def _send(self, objects: list[EncodedObject], *, dicos: bool = False) -> None:
        """One association that sends one study."""
        async with await self._connected() as peer:
            application_context = DICOS_APPLICATION_CONTEXT if dicos else wire.DICOM_APPLICATION_CONTEXT
            contexts = storage_contexts(objects[0])
            await peer.associate(contexts, application_context=application_context, maximum_length=131_072)
            for stored in objects:
                self.witness.sending(stored)
                assert await peer.store(stored, framing="glued" if dicos else "standard") == 0x0000
                self.witness.was_acknowledged(stored)
                self.done["stored as DICOS" if dicos else "stored"] += 1
            await peer.release()
        self._studies.append(Study(objects[0].study_instance_uid, objects))
        if len(self._studies) > KEPT_STUDIES:
            self._to_delete.set()

    async def _query(self) -> None:
        """How many objects a study has is what was acknowledged."""
        async with await QueryingPeer.connect(*self._address) as peer:
            await peer.associate_to_find()
            study = await self._any_study()
            if study is None:
                return
            keys = [
                Element(0x0020000D, "UI", study.study_instance_uid),
                Element(NUMBER_OF_STUDY_RELATED_INSTANCES, "IS", ""),
            ]
            found = await peer.find(identifier("STUDY", *keys))
            assert found.status == 0x0000
            assert values_of(found.datasets, NUMBER_OF_STUDY_RELATED_INSTANCES) == [str(len(study.objects))]
            self.done["queried"] += 1
            await peer.release()

    async def _retrieve(self) -> None:
        """C-GET of a study brings all of it as it was sent."""
        study = await self._any_study()
        if study is None:
            return
        one, sink = study.objects[0], Comparing(self.witness)
        host, port = self._address
        async with Requestor(
            host,
            port,
            contexts=[(STUDY_GET, [EXPLICIT])],
            receives=[(one.sop_class_uid, [one.transfer_syntax_uid])],
        ) as association:
            getting = association.get({"StudyInstanceUID": study.study_instance_uid}, receive=sink)
            async for _ in getting:
                pass
        assert getting.result is not None
        assert (getting.result.status, set(sink.received)) == (0x0000, study.uids)
        self.done["retrieved"] += 1

    async def _any_study(self) -> Study | None:
        """One that is far from being deleted; None when there is none, after a turn of the loop."""
        await asyncio.sleep(0.01)
        studies = list(self._studies)[-ENOUGH_STUDIES:]
        return self._chance.choice(studies) if studies else None

    async def _delete(self) -> None:
        """The oldest studies go, one at a time, once there are enough."""
        await self._to_delete.wait()
        if len(self._studies) <= KEPT_STUDIES:
            self._to_delete.clear()
            return
        study = self._studies.popleft()
        self.witness.deleting(study.uids)
        await asyncio.to_thread(self._ask_to_delete, study)
        self.witness.were_deleted(study.uids)
        self.done["deleted"] += 1

    def _ask_to_delete(self, study: Study) -> None:
        with ControlClient(self.witness.data_dir) as client:
            scope = {"level": "study", "uid": study.study_instance_uid}
            client.follow("delete", scope, NoProgress())

    async def _come_and_go(self) -> None:
        """Peers that leave in every way there is, also in the middle of an object."""
        async with await self._connected() as peer:
            match self._chance.randrange(4):
                case 0:
                    await peer.send(b"\x01\0\0")
                case 1:
                    await peer.associate(storage_contexts(NEVER_WHOLE))
                    await peer.abort()
                    await peer.wait_eof()
                case 2:
                    await peer.associate(storage_contexts(NEVER_WHOLE))
                    await peer.reset()
                case _:
                    await peer.associate(storage_contexts(NEVER_WHOLE), maximum_length=131_072)
                    await self._send_half(peer, NEVER_WHOLE)
        self.done["came and went"] += 1

    async def _send_half(self, peer: ScriptedPeer, stored: EncodedObject) -> None:
        """More than the server gathers in memory: it has begun a file."""
        command = wire.c_store_rq(1, stored.sop_class_uid, stored.sop_instance_uid)
        await peer.send(wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, command)))
        for start in range(0, stored.size_bytes // 4 * 3, 100_000):
            fragment = stored.dataset[start : start + 100_000]
            await peer.send(wire.p_data_tf(PDV(3, Control.DATASET, fragment)))

    @property
    def _address(self) -> tuple[str, int]:
        return self.daemon.ready.dicom_host, self.daemon.ready.dicom_port

    async def _connected(self) -> ScriptedPeer:
        return await ScriptedPeer.connect(*self._address, timeout_seconds=30)

    # -- what is held -------------------------------------------------------------------------------------

    async def _held(self) -> Held:
        """Once it holds no more than before a moment: ends are not seen at once."""
        async with asyncio.timeout(20):
            before, held = None, await self._look()
            while before is None or held.tasks != before.tasks or held.descriptors != before.descriptors:
                await asyncio.sleep(0.3)
                before, held = held, await self._look()
        return held

    async def _look(self) -> Held:
        usage, told = ProcessUsage(self.daemon.process.pid), len(self.daemon.log_records("test.counted"))
        self.daemon.process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(10):
            while len(self.daemon.log_records("test.counted")) == told:
                await asyncio.sleep(0.02)
        tasks = int(self.daemon.log_records("test.counted")[-1]["tasks"])
        return Held(tasks, usage.threads, usage.descriptors, usage.resident_bytes)


@pytest.mark.slow
async def test_a_soak_loses_nothing_and_nothing_that_is_held_grows(tmp_path: Path) -> None:
    soak = Soak(tmp_path)
    for life in range(LIVES):
        await soak.live(SECONDS / LIVES, killed=life % 2 == 0)
    with soak.daemon:
        await no_deletion_is_left(tmp_path)
    soak.witness.testify(anew=True)
    assert min(soak.done[what] for what in WHAT) >= 3 * LIVES, soak.done
    assert not [line for line in soak.daemon.output if "Traceback" in line]
    assert soak.daemon.log_records("operation.failed") == []
