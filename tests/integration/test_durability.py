"""Durability `full`, proved: what was synced when a Success left the process holds its object and its row."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from scp_server.testing.daemon import PROGRAM, DaemonProcess, expect_stored
from scp_server.testing.dicos_objects import dicos_tdr, two_section_ct
from scp_server.testing.durable_disk import DurableDisk, Names, promises
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image, encapsulated_pdf, structured_report
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from scp_server.testing.system_trace import Call, Moment, read_trace, strace_command

ASSOCIATIONS: list[list[EncodedObject]] = [
    [ct_image(seed=1), ct_image(rows=512, columns=512, seed=2), ct_image(seed=1)],
    [ct_image(rows=1024, columns=600, seed=3), structured_report()],
    [dicos_tdr(), *two_section_ct()],
    [encapsulated_pdf(document_bytes=300_000), ct_image(rows=8, columns=8, seed=4)],
]
"""What each association sends: small, large, twice the same, in parts, of one series and of others."""


@dataclass(frozen=True)
class Recorded:
    """A run of the daemon on the disk below `root`, as strace saw it."""

    root: str
    calls: Sequence[tuple[Moment, Call]]


async def _send(port: int, objects: Iterable[EncodedObject]) -> None:
    async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
        await peer.associate(storage_contexts(*objects))
        for stored in objects:
            assert await peer.store(stored) == 0x0000
        await peer.release()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """One run: the first start of a data folder, stores on several associations at once, and the end."""
    return _record(tmp_path_factory.mktemp("durability").resolve(), workers=1)


def _record(folder: Path, *, workers: int) -> Recorded:
    if shutil.which("strace") is None:
        # Not by require_peer, which is for one test: in CI a missing strace fails all the same.
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("strace is not installed")
    root, trace = folder / "disk", folder / "trace"
    root.mkdir()
    data_dir = root / "scanner" / "data"

    async def send_all(port: int) -> None:
        await asyncio.gather(*(_send(port, objects) for objects in ASSOCIATIONS))

    program = (*strace_command(trace), *PROGRAM)
    with DaemonProcess(data_dir, "--workers", str(workers), program=program) as daemon:
        asyncio.run(send_all(daemon.ready.dicom_port))
    expect_stored(data_dir, [stored for objects in ASSOCIATIONS for stored in objects])
    with trace.open() as lines:
        return Recorded(str(root), list(read_trace(lines)))


def _objects_of(sop_instance_uid: str) -> set[bytes]:
    return {
        stored.dataset
        for objects in ASSOCIATIONS
        for stored in objects
        if stored.sop_instance_uid == sop_instance_uid
    }


def _recoverable(disk: DurableDisk, names: Names, sop_instance_uid: str, scratch: Path) -> int:
    """How many of an instance's data sets could be recovered from what a power cut would leave now."""
    survivors = disk.survivors(names)
    index = scratch / "index.sqlite"
    for suffix in ("", "-wal", "-shm"):
        companion = index.with_name(index.name + suffix)
        companion.unlink(missing_ok=True)
        content = survivors.get(f"scanner/data/index/{companion.name}")
        if content is not None and suffix != "-shm":
            companion.write_bytes(content)
    try:
        with closing(sqlite3.connect(index)) as database:
            locations = database.execute(
                "SELECT location FROM parts JOIN instances USING (instance_key) WHERE sop_instance_uid = ?",
                (sop_instance_uid,),
            ).fetchall()
    except sqlite3.Error:
        return 0
    files = [survivors.get(f"scanner/data/{location}", b"") for (location,) in locations]
    return sum(any(file.endswith(dataset) for file in files) for dataset in _objects_of(sop_instance_uid))


def _broken_promises(recorded: Recorded, calls: Iterable[tuple[Moment, Call]], scratch: Path) -> list[str]:
    """The instances that a power cut right after their Success would lose. Checks that there are as many
    Successes as were sent."""
    told: Counter[str] = Counter()
    broken = []
    for promise in promises(calls, recorded.root):
        uid = promise.sop_instance_uid
        told[uid] += 1
        expected = min(told[uid], len(_objects_of(uid)))
        for names in ("synced", "all"):
            if _recoverable(promise.disk, names, uid, scratch) < expected:
                broken.append(uid)
    assert told.total() == sum(map(len, ASSOCIATIONS))
    return broken


def test_every_acknowledged_object_could_be_recovered_from_what_was_synced_by_then(
    recorded: Recorded, tmp_path: Path
) -> None:
    assert _broken_promises(recorded, recorded.calls, tmp_path) == []


def test_it_is_so_too_where_several_workers_write(tmp_path: Path) -> None:
    """Which of them serves whom is the kernel's choice: of four associations hardly ever all the same."""
    recorded = _record(tmp_path.resolve(), workers=3)
    assert _broken_promises(recorded, recorded.calls, tmp_path) == []


@pytest.mark.parametrize(
    "missing",
    [
        "disk/scanner/data/incoming/.*[.]part",
        "disk/scanner/data/index/index.sqlite-wal",
        "disk/scanner/data/index",
        "disk/scanner/data/objects/../[^/]*/[^/]*",
        "disk/scanner/data/objects/../[^/]*",
        "disk/scanner/data/objects/..",
        "disk/scanner/data/objects",
        "disk/scanner/data",
        "disk/scanner",
        "disk",
    ],
)
def test_the_proof_fails_where_the_syncs_of_one_place_are_left_out(
    recorded: Recorded, tmp_path: Path, missing: str
) -> None:
    place = re.compile(f"{os.path.dirname(recorded.root)}/{missing}")
    calls = [
        (moment, call)
        for moment, call in recorded.calls
        if not (call.name in ("fsync", "fdatasync") and place.fullmatch(call.target))
    ]
    assert len(calls) < len(recorded.calls), "the server makes no such call"
    assert _broken_promises(recorded, calls, tmp_path)
