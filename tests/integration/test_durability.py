"""Durability `full`, proved: from what was synced when a Success left the process, a start has its object."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from scp_server.errors import IndexFailure, StorageError
from scp_server.runtime.server import Server
from scp_server.settings import Settings
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
BELOW = "scanner/data/"
NAMES: tuple[Names, ...] = get_args(Names)


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
    data_dir = root / BELOW

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


def _lay_out(disk: DurableDisk, names: Names, data_dir: Path, *, forget_contents: bool = False) -> None:
    """Make the data folder that a power cut would leave now."""
    shutil.rmtree(data_dir, ignore_errors=True)
    for path, content in disk.survivors(names).items():
        # What maps the log into memory is no part of what lasts.
        if path.startswith(BELOW) and not path.endswith("-shm"):
            file = data_dir / path.removeprefix(BELOW)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    if forget_contents and (index := data_dir / "index" / "index.sqlite").exists():
        # Where the disk has no table yet it has no promise either.
        with suppress(sqlite3.Error), closing(sqlite3.connect(index)) as database, database:
            database.execute("DELETE FROM unsynced_objects")


async def _recovered(data_dir: Path, sop_instance_uids: Iterable[str]) -> dict[str, set[bytes]]:
    """The data sets of each instance, as a server has them that was started on what was left."""
    sections: dict[str, Any] = {
        "listen": {"port": 0},
        "http": {"port": 0},
        "index": {"compare_at_start": False},
        "storage": {"durability": "process", "reserve_bytes": 0},
    }
    found: dict[str, set[bytes]] = {uid: set() for uid in sop_instance_uids}
    try:
        async with Server(Settings(data_dir=data_dir, **sections)) as server:
            for uid, datasets in found.items():
                for part in await server.index.parts(uid):
                    pieces = [piece async for piece in server.storage.read(part.location)]
                    datasets.add(b"".join(pieces)[part.dataset_offset_bytes :])
    except (IndexFailure, StorageError):
        # Nothing that could be started.
        return {uid: set() for uid in found}
    return found


def _broken_promises(
    recorded: Recorded,
    calls: Iterable[tuple[Moment, Call]],
    scratch: Path,
    *,
    only_whether: bool = False,
    forget_contents: bool = False,
) -> list[str]:
    """The instances that a power cut right after their Success would lose, one if `only_whether`. Checks that
    there are as many Successes as were sent."""
    told: Counter[str] = Counter()
    broken = []
    for promise in promises(calls, recorded.root):
        uid = promise.sop_instance_uid
        told[uid] += 1
        sent = _objects_of(uid)
        for names in NAMES:
            _lay_out(promise.disk, names, scratch, forget_contents=forget_contents)
            kept = asyncio.run(_recovered(scratch, [uid]))[uid]
            # Other bytes than were sent would be worse than none.
            if not kept <= sent or len(kept) < min(told[uid], len(sent)):
                broken.append(uid)
                if only_whether:
                    return broken
    assert told.total() == sum(map(len, ASSOCIATIONS))
    return broken


def test_every_acknowledged_object_is_recovered_by_a_start_from_what_was_synced_by_then(
    recorded: Recorded, tmp_path: Path
) -> None:
    assert _broken_promises(recorded, recorded.calls, tmp_path) == []


def test_it_is_so_too_where_several_workers_write(tmp_path: Path) -> None:
    """Which of them serves whom is the kernel's choice: of four associations hardly ever all the same."""
    recorded = _record(tmp_path.resolve(), workers=3)
    assert _broken_promises(recorded, recorded.calls, tmp_path) == []


def test_the_small_ones_are_recovered_from_what_the_index_keeps_of_them(
    recorded: Recorded, tmp_path: Path
) -> None:
    """Without it each of them is broken, and none of the large ones."""
    broken = _broken_promises(recorded, recorded.calls, tmp_path, forget_contents=True)
    objects = [stored for objects in ASSOCIATIONS for stored in objects]
    small = {stored.sop_instance_uid for stored in objects if len(stored.dataset) < 60_000}
    assert set(broken) == small
    assert len(small) < len({stored.sop_instance_uid for stored in objects})


def _lost_at_the_end(
    recorded: Recorded, calls: Iterable[tuple[Moment, Call]], scratch: Path, names: Names
) -> set[str]:
    """The instances that a power cut would lose when the server has ended; the index keeps none by then."""
    (*_, last) = promises(calls, recorded.root)
    _lay_out(last.disk, names, scratch)
    with closing(sqlite3.connect(scratch / "index" / "index.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM parts").fetchone() != (0,)
        assert database.execute("SELECT count(*) FROM unsynced_objects").fetchone() == (0,)
    uids = {stored.sop_instance_uid for objects in ASSOCIATIONS for stored in objects}
    kept = asyncio.run(_recovered(scratch, uids))
    return {uid for uid in uids if kept[uid] != _objects_of(uid)}


@pytest.mark.parametrize("names", NAMES)
def test_what_the_index_keeps_no_longer_is_durable_in_its_file(
    recorded: Recorded, tmp_path: Path, names: Names
) -> None:
    assert _lost_at_the_end(recorded, recorded.calls, tmp_path, names) == set()


def test_settling_without_its_sync_loses_what_the_index_has_forgotten(
    recorded: Recorded, tmp_path: Path
) -> None:
    """The sync of the filesystem, or of each file where there is no such thing."""
    calls = [
        (moment, call)
        for moment, call in recorded.calls
        if not (call.name == "syncfs" or (call.name == "fdatasync" and call.target.endswith(".dcm")))
    ]
    assert len(calls) < len(recorded.calls), "the server makes no such call"
    assert _lost_at_the_end(recorded, calls, tmp_path, "all")


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
    assert _broken_promises(recorded, calls, tmp_path, only_whether=True)
