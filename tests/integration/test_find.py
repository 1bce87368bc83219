"""Queries put to the real daemon: cancelled, unread, hostile, and while others store and delete."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from scp_server.objects.dictionary import vr_of
from scp_server.objects.vr import TEXT_VRS
from scp_server.services.query_retrieve.attributes import COLUMNS
from scp_server.testing.archive import Archive
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dataset_encoder import Element
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import Patient, ct_image
from scp_server.testing.process_usage import ProcessUsage
from scp_server.testing.querying_peer import (
    PENDING,
    STUDY_ROOT_FIND,
    Found,
    QueryingPeer,
    identifier,
    values_of,
)
from scp_server.testing.scripted_peer import storage_contexts

MIB = 1 << 20
STUDIES, IMAGES = 30, 10
TEXT_BYTES = 30_000
TEXT = 0x0040A160
STUDY_UID, SOP_UID, PATIENT_ID, PATIENT_NAME = 0x0020000D, 0x00080018, 0x00100020, 0x00100010
WRITE_SECONDS = 2
SETTINGS = {
    "STORAGE__DURABILITY": "process",
    "TIMEOUTS__WRITE_SECONDS": str(WRITE_SECONDS),
    "STORAGE__DUPLICATES": "replace",
    "QUERY__RELATIONAL": "always",
}
QUICK_SECONDS = 0.15
UID = Element(SOP_UID, "UI")
LONG = [UID, Element(TEXT, "UT")]
"""Keys whose answers are long."""


def image(study: int, number: int, *, text: str = "", seed: int = 0) -> EncodedObject:
    """Their text is noise of `TEXT_BYTES`, so that answers are large."""
    noise = text or random.Random(f"{study} {number}").randbytes(TEXT_BYTES // 2).hex()
    return ct_image(
        rows=2,
        columns=2,
        patient=Patient(f"Doe^Jane{study}", f"P{study}"),
        study_instance_uid=f"2.25.{study}",
        series_instance_uid=f"2.25.{study}.1",
        sop_instance_uid=f"2.25.{study}.1.{number}",
        seed=seed,
        extra=[Element(TEXT, "UT", noise)],
    )


UIDS = sorted(f"2.25.{study}.1.{number}" for study in range(1, STUDIES + 1) for number in range(IMAGES))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with `UIDS`."""
    archive = Archive.at(tmp_path_factory.mktemp("find") / "data")
    objects = [image(study, number) for study in range(1, STUDIES + 1) for number in range(IMAGES)]
    with asyncio.Runner() as runner:
        assert set(runner.run(archive.store(objects))) == {0}
    return archive.data_dir


class Target:
    """The daemon, seen from outside."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.daemon = daemon
        self.address = (daemon.ready.dicom_host, daemon.ready.dicom_port)
        self.usage = ProcessUsage(daemon.ready.pid)

    @contextlib.asynccontextmanager
    async def peer(
        self, *stored: EncodedObject, offered: bytes = b"", receive_buffer: int = 0
    ) -> AsyncIterator[QueryingPeer]:
        """A peer that may find, and store these; with a small receive buffer it takes little unread."""
        connecting = socket.socket()
        if receive_buffer:
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connecting.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connecting, self.address)
        reader, writer = await asyncio.open_connection(sock=connecting, limit=receive_buffer or 65_536)
        async with QueryingPeer(reader, writer, 60) as peer:
            contexts = [
                each._replace(context_id=each.context_id + 20) for each in storage_contexts(*stored)[1:]
            ]
            await peer.associate_to_find(contexts, offered={STUDY_ROOT_FIND: offered} if offered else None)
            yield peer

    async def find(self, *keys: Element, level: str = "IMAGE", codec: str = "ascii") -> Found:
        """One query on an association of its own, in the Study Root."""
        async with self.peer() as peer:
            found = await peer.find(identifier(level, *keys, codec=codec))
            await peer.release()
            return found

    async def uids(self) -> list[str]:
        """Every SOP Instance UID."""
        found = await self.find(UID)
        assert found.status == 0x0000
        return values_of(found.datasets, SOP_UID)

    async def echo_seconds(self, until: asyncio.Future[Any]) -> list[float]:
        """How long echoes take, one after the other, until something is done; sorted."""
        seconds: list[float] = []
        async with self.peer() as peer:
            while not until.done() or not seconds:
                began = time.perf_counter()
                assert await peer.echo() == 0x0000
                seconds.append(time.perf_counter() - began)
        return sorted(seconds)


@pytest.fixture(scope="module")
def target(prepared: Path) -> Iterator[Target]:
    """One daemon for all tests; they leave `UIDS` as they are."""
    environment = {f"SCP_SERVER_{name}": value for name, value in SETTINGS.items()}
    with DaemonProcess(prepared, environment=environment) as daemon:
        yield Target(daemon)
    assert [line for line in daemon.output if "Traceback" in line or '"exception"' in line] == []
    assert daemon.log_records("operation.failed") == []


# --- cancelling


async def test_c_cancel_is_fe00_and_the_association_goes_on_ps3_7_9_3_2_3(
    target: Target,
) -> None:
    async with target.peer() as peer:
        message_id = await peer.send_find(identifier("IMAGE", *LONG))
        got = 0
        final = 0
        async for response, _ in peer.responses():
            final = response.status
            got += final in PENDING
            if got == 3 and final in PENDING:
                await peer.send_cancel(message_id + 50)  # nobody's: ignored
                await peer.send_cancel(message_id)
        assert final == 0xFE00
        assert 3 <= got < len(UIDS)
        assert await peer.echo() == 0x0000
        found = await peer.find(identifier("STUDY", Element(STUDY_UID, "UI")))
        assert (found.status, len(found.datasets)) == (0x0000, STUDIES)


async def test_a_cancel_sent_with_the_request_is_answered_once(target: Target) -> None:
    async with target.peer() as peer:
        await peer.send_cancel(await peer.send_find(identifier("IMAGE", *LONG)))
        found = await peer.rest()
        assert found.status in (0xFE00, 0x0000)
        assert await peer.echo() == 0x0000


# --- back-pressure


async def test_a_client_that_does_not_read_holds_little_stops_nobody_and_is_reset(target: Target) -> None:
    await target.find(*LONG)
    before = target.usage.resident_bytes
    target.usage.forget_peak()
    async with contextlib.AsyncExitStack() as stack:
        unread = [await stack.enter_async_context(target.peer(receive_buffer=4_096)) for _ in range(6)]
        for peer in unread:
            await peer.send_find(identifier("IMAGE", *LONG))
        newcomer = image(99, 1, text="short")
        async with target.peer(newcomer) as other:
            for _ in range(20):
                assert await other.echo() == 0x0000
                assert (
                    await other.find(identifier("STUDY", Element(PATIENT_ID, "LO", "P1")))
                ).status == 0x0000
            assert await other.store(newcomer) == 0x0000
            found = await other.find(identifier("IMAGE", Element(PATIENT_ID, "LO", "P99")))
            assert len(found.datasets) == 1
            async with asyncio.timeout(WRITE_SECONDS * 10):
                while len(target.daemon.log_records("connection.deaf")) < len(unread):
                    assert await other.echo() == 0x0000
        growth = target.usage.peak_bytes - before
        for peer in unread:
            with pytest.raises((ConnectionError, EOFError)):
                await peer.rest()
    assert growth < len(unread) * 4 * MIB, f"{growth / MIB:.1f} MiB"


async def test_a_slow_reader_gets_everything_in_the_end(target: Target) -> None:
    async with target.peer(receive_buffer=16_384) as peer:
        await peer.send_find(identifier("IMAGE", *LONG, Element(PATIENT_ID, "LO", "P?")))
        got = []
        async for response, dataset in peer.responses():
            if response.status in PENDING:
                got.append(dataset)
                await asyncio.sleep(0)
        assert len(values_of(got, SOP_UID)) == 9 * IMAGES
        assert {len(text) for text in values_of(got, TEXT)} == {TEXT_BYTES}


# --- while others store


async def test_eight_senders_and_queries_at_once_and_nothing_acknowledged_before_is_missed(
    target: Target,
) -> None:
    senders, each = 8, 25
    acknowledged: set[str] = set()
    done = asyncio.Event()

    async def send(sender: int) -> None:
        objects = [image(200 + sender, number, text="short") for number in range(each)]
        async with target.peer(*objects) as peer:
            for one in objects:
                assert await peer.store(one) == 0x0000
                acknowledged.add(one.sop_instance_uid)

    async def ask(rounds: list[int]) -> None:
        async with target.peer() as peer:
            while not done.is_set():
                known = set(acknowledged)
                found = await peer.find(identifier("IMAGE", UID, Element(PATIENT_ID, "LO", "P20?")))
                assert found.status == 0x0000
                uids = values_of(found.datasets, SOP_UID)
                assert len(uids) == len(set(uids))
                assert known <= set(uids)
                rounds.append(len(known))

    rounds: list[int] = []
    asking = [asyncio.create_task(ask(rounds)) for _ in range(4)]
    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(send(sender) for sender in range(senders)))
    finally:
        done.set()
    await asyncio.gather(*asking)
    assert len(set(rounds)) > 5, "the queries saw the archive at few moments"
    found = await target.find(UID, Element(PATIENT_ID, "LO", "P20?"))
    assert set(values_of(found.datasets, SOP_UID)) == acknowledged
    assert len(acknowledged) == senders * each


# --- hostile values

META = [
    "'",
    '"',
    "%",
    "_",
    "\\",
    ";",
    "--",
    "\0",
    "\n",
    "a' OR '1'='1",
    "'); DROP TABLE patients;--",
    "%\\_*?",
]
TEXT_KEYS = sorted(tag for tag in COLUMNS if vr_of(tag, tag >> 16 == 0x4010) in TEXT_VRS)


@pytest.mark.parametrize("value", META, ids=repr)
async def test_sql_metacharacters_are_values_in_every_key(target: Target, value: str) -> None:
    async with target.peer() as peer:
        for tag in [*TEXT_KEYS, TEXT, 0x00104000]:
            key = Element(tag, vr_of(tag, tag >> 16 == 0x4010), value)
            found = await peer.find(identifier("STUDY", key))
            assert found.status in (0x0000, 0xC000), f"{tag:08X}"
            if found.status == 0xC000:
                assert found.offending_elements == (tag,)
            universal = not value.strip("\\\0\n ")
            assert universal or not found.datasets or found.statuses[0] == 0xFF01, f"{tag:08X}"
        every = [Element(tag, "LO", value) for tag in TEXT_KEYS if vr_of(tag, False) == "LO"]
        assert (await peer.find(identifier("IMAGE", *every))).status == 0x0000
        nested = Element(0x00400275, "SQ", [[Element(0x00400007, "LO", value)]])
        assert (await peer.find(identifier("STUDY", nested))).status == 0x0000
    assert set(await target.uids()) >= set(UIDS)


@pytest.mark.parametrize(
    "pattern",
    [
        "*a" * 511 + "b",
        "?" * 1_000 + "*",
        "*" * 1_024,
        "a*" * 512,
        "*?" * 512,
        "*" + "?" * 1_000 + "x",
        "*0*1*2*3*" * 100,
    ],
    ids=lambda pattern: pattern[:6],
)
async def test_pathological_wild_cards_take_bounded_time_and_hold_up_nobody(
    target: Target, pattern: str
) -> None:
    for tag, vr in ((TEXT, "UT"), (PATIENT_NAME, "PN"), (0x00081030, "LO")):
        slowest = 0.0
        for _ in range(5):
            began = time.perf_counter()
            asking = asyncio.create_task(target.find(UID, Element(tag, vr, pattern)))
            echoes = await target.echo_seconds(asking)
            found = await asking
            seconds = time.perf_counter() - began
            assert found.status == 0x0000
            assert seconds < 20
            slowest = echoes[int(len(echoes) * 0.95) - 1]
            if slowest <= QUICK_SECONDS:
                break
        assert slowest <= QUICK_SECONDS, vr


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("NONSENSE", b"doe^jane1"),
        ("ISO_IR 192", b"\xff\xfe\xc3("),
        ("\\ISO 2022 IR 87", b"\x1b$B\x80\x80\x1b"),
        ("GB18030", b"\x81"),
        ("ISO 2022 IR 149", b"\x1b$)C\xb0"),
        ("ISO_IR 100\\ISO_IR 192\\" * 4, b"Doe"),
        ("\\\\\\", b"\x1b\x1b\x1b"),
        ("ISO_IR 6\0", b"\x80\x81"),
    ],
)
async def test_bad_character_sets_are_answered_and_find_what_they_can(
    target: Target, character_set: str, name: bytes
) -> None:
    keys = [
        Element(0x00080005, "CS", character_set),
        Element(PATIENT_NAME, "PN", name),
        Element(STUDY_UID, "UI"),
    ]
    found = await target.find(*keys, level="STUDY")
    assert found.status == 0x0000
    assert len(found.datasets) == (name == b"doe^jane1")


@pytest.mark.parametrize(
    ("tag", "vr", "value", "status"),
    [
        (0x00080020, "DA", "garbage", 0xC000),
        (0x00080020, "DA", "20260231", 0xC000),
        (0x00080020, "DA", "20260101-20260231", 0xC000),
        (0x00080020, "DA", "--", 0xC000),
        (0x00080020, "DA", "2026*", 0xC000),
        (0x00080020, "DA", "-", 0xC000),
        (0x00080020, "DA", "99999999-", 0xC000),
        (0x00080020, "DA", "20261231-20260101", 0x0000),
        (0x00080030, "TM", "2560", 0xC000),
        (0x00080030, "TM", "10:1", 0xC000),
        (0x0008002A, "DT", "20260101+9999", 0xC000),
        (0x0008002A, "DT", "0000", 0xC000),
        (0x00200013, "IS", "1e999", 0xC000),
        (0x00200013, "IS", "9" * 60, 0x0000),
        (0x00200013, "IS", "NaN", 0xC000),
        (0x0020000D, "UI", "not a uid", 0xC000),
        (0x0020000D, "UI", "1." * 40 + "1", 0xC000),
        (0x00101010, "AS", "old", 0xC000),
    ],
)
async def test_garbage_in_dates_times_numbers_and_uids_is_c000_with_the_element(
    target: Target, tag: int, vr: str, value: str, status: int
) -> None:
    found = await target.find(Element(tag, vr, value), level="STUDY")
    assert (found.status, found.datasets) == (status, [])
    if status:
        assert found.offending_elements == (tag,)
        assert found.comment


async def test_ten_thousand_uids_in_one_list_find_those_there_are_c_2_2_2_2(target: Target) -> None:
    wanted = UIDS[::7]
    others = [f"2.25.9999.{number}" for number in range(10_000 - len(wanted))]
    mixed = random.Random(1).sample([*wanted, *others], 10_000)
    began = time.perf_counter()
    # In explicit VR a UI has at most 64 KiB: more has the VR UN (PS3.5 6.2.2).
    found = await target.find(Element(SOP_UID, "UN", "\\".join(mixed).encode()))
    assert (found.status, values_of(found.datasets, SOP_UID)) == (0x0000, wanted)
    assert time.perf_counter() - began < 5


async def test_giant_identifiers_cost_bounded_memory_and_hold_up_nobody(target: Target) -> None:
    distinct = "".join(map(chr, range(0x4E00, 0x4E00 + 1_000))) + "*"
    wild = "\\".join([distinct] * 340).encode()[: MIB - 200]
    names = "\\".join(f"{number:x}" for number in range(160_000)).encode()[: MIB - 200]
    allowed = "\\".join(f"={number:x}" for number in range(16_000)).encode()
    charset = Element(0x00080005, "CS", "ISO_IR 192")
    cases = [(wild, 0xC000), (names, 0xC000), (allowed, 0x0000), (bytes(2 * MIB), 0xC000)]
    await target.find(UID, level="STUDY")
    for value, status in cases:
        before = target.usage.resident_bytes
        target.usage.forget_peak()
        queries = [
            asyncio.create_task(target.find(charset, Element(PATIENT_NAME, "UN", value), level="STUDY"))
            for _ in range(8)
        ]
        everybody = asyncio.gather(*queries)
        echoes = await target.echo_seconds(everybody)
        assert {found.status for found in await everybody} == {status}
        growth = target.usage.peak_bytes - before
        assert growth < 8 * 16 * MIB, f"{growth / MIB:.1f} MiB"
        assert echoes[len(echoes) // 2] <= QUICK_SECONDS


# --- while objects go and come


async def _delete(target: Target, study: int) -> None:
    command = [sys.executable, "-m", "scp_server", "delete", "--study", f"2.25.{study}", "--yes"]
    process = await asyncio.create_subprocess_exec(
        *command, "--data-dir", str(target.daemon.data_dir), stdout=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(30):
        assert await process.wait() == 0


async def test_what_is_deleted_or_replaced_during_a_query_disturbs_it_not(
    target: Target,
) -> None:
    """It may come or not, and nothing else: none twice, none of the others missing."""
    objects = [image(study, number, text=f"{study}") for study in (301, 302) for number in range(IMAGES)]
    replaced = [image(study, number, text="other", seed=1) for study, number in ((3, 1), (29, 2))]
    async with target.peer(*objects) as sender, target.peer(receive_buffer=4_096) as reader:
        for one in objects:
            assert await sender.store(one) == 0x0000
        await reader.send_find(identifier("IMAGE", *LONG))
        uids: list[str] = []
        async for response, dataset in reader.responses():
            if response.status not in PENDING:
                assert response.status == 0x0000
                break
            uids += values_of([dataset], SOP_UID)
            if len(uids) == 2:
                await _delete(target, 302)
                for one in replaced:
                    assert await sender.store(one) == 0x0000
        assert len(uids) == len(set(uids))
        moved = {one.sop_instance_uid for one in replaced}
        assert set(uids) >= set(UIDS) - moved
        assert {uid for uid in uids if uid.startswith("2.25.301.")} == {
            one.sop_instance_uid for one in objects[:IMAGES]
        }
        assert not {uid for uid in await target.uids() if uid.startswith("2.25.302.")}
        for one in (image(study, number) for study, number in ((3, 1), (29, 2))):
            assert await sender.store(one) == 0x0000
