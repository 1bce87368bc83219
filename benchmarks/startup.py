"""How soon the daemon is ready with a large archive, and what its comparison costs those who send meanwhile.

    python -m benchmarks.startup [--instances N] [--no-files] [--directory DIR] [--keep]

Makes a data folder with N instances in studies of 200: rows through the index itself, files as hard links,
one real Part 10 file for each study. Then the real daemon is started on it four times: as it is, with cold
caches (where root may drop them), after a kill -9 in the middle of many objects of many series, and with
`index.compare_at_start = false`. `--keep` leaves the folder, and takes one that is there already.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from scp_server.cli.control_client import ControlClient
from scp_server.index.base import DuplicatePolicy
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.objects.header_tap import HeaderTap
from scp_server.runtime.build import index_path
from scp_server.settings import Settings
from scp_server.storage.base import ObjectKey
from scp_server.storage.template import LayoutTemplate
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.index_contract import index_entry
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts

INSTANCES_PER_STUDY = 200
ADDED_AT_ONCE = 256
SENDERS = 8
SENT = 2_000
KILLED_SERIES = 200
STUDY, SERIES, INSTANCE = 11, 12, 13
"""What a UID of the archive names, in one of its components: all have one length."""
LAYOUT = LayoutTemplate()
FIRST_ARRIVAL_NS = 1_700_000_000_000_000_000


@dataclass(frozen=True, slots=True)
class _Packed:
    """A header that was packed before: all instances have one."""

    packed: bytes

    def pack(self) -> bytes:
        return self.packed


def uid_of(kind: int, number: int) -> str:
    """A UID of usual length; one number belongs to a study and its series."""
    return f"1.2.840.99999.{kind}.20240101.120000.{number:012d}"


def location(number: int) -> tuple[str, str]:
    """Location and arrival id of an instance."""
    study = number // INSTANCES_PER_STUDY
    arrival_id = f"{FIRST_ARRIVAL_NS + number:016x}abcdef"
    return LAYOUT.location_of(
        ObjectKey(uid_of(STUDY, study), uid_of(SERIES, study), uid_of(INSTANCE, number), arrival_id)
    ), arrival_id


async def fill_index(data_dir: Path, count: int) -> None:
    """Record `count` instances through the index's own writer."""
    sample = ct_image()
    tap = HeaderTap(sample.transfer_syntax_uid)
    tap.feed(sample.dataset)
    tap.finish()
    header = _Packed(tap.header.pack())
    size_bytes = len(sample.part10())
    index = SqlIndex(IndexConfig(index_path(Settings(data_dir=data_dir)), synchronous_full=False))
    await index.open()
    numbers = iter(progress("index", count))

    async def adder() -> None:
        for number in numbers:
            study = number // INSTANCES_PER_STUDY
            where, arrival_id = location(number)
            entry = index_entry(
                content=b"%d" % number,
                location=where,
                patient_id=f"P{study}",
                patient_name="DOE^JANE",
                study_date="20240101",
                modality="CT",
                manufacturer="ACME",
                instance_number=number,
                rows=64,
                columns=64,
            )
            summary = replace(
                entry.summary,
                study_instance_uid=uid_of(STUDY, study),
                series_instance_uid=uid_of(SERIES, study),
                sop_instance_uid=uid_of(INSTANCE, number),
            )
            await index.add(
                replace(entry, summary=summary, arrival_id=arrival_id, size_bytes=size_bytes, header=header),
                DuplicatePolicy.KEEP_FIRST,
            )

    await asyncio.gather(*(adder() for _ in range(ADDED_AT_ONCE)))
    await index.close()


def fill_folder(data_dir: Path, count: int) -> None:
    """Put a file into the place of every instance."""
    content = ct_image().part10()
    first = Path()
    for number in progress("files", count):
        path = data_dir / location(number)[0]
        if number % INSTANCES_PER_STUDY:
            os.link(first, path)
        else:
            first = path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def progress(what: str, count: int) -> Iterator[int]:
    """The numbers below `count`, telling at a terminal how far it is."""
    began = time.monotonic()
    for number in range(count):
        if sys.stderr.isatty() and number % 5_000 == 0:
            print(f"\r{what}: {number} of {count}", end="", file=sys.stderr, flush=True)
        yield number
    end = "\r" if sys.stderr.isatty() else ""
    print(f"{end}{what}: {count} in {time.monotonic() - began:.1f} s", file=sys.stderr)


def objects(kind: int, count: int, series: int, *, kept_series: bool = False) -> Iterator[EncodedObject]:
    """Objects of `series` series in turn, as bytes that differ in their UIDs only.

    `kind` tells their UIDs apart from others; `kept_series` puts them into series of the archive.
    """
    sample = ct_image(
        study_instance_uid=uid_of(STUDY, 0),
        series_instance_uid=uid_of(SERIES, 0),
        sop_instance_uid=uid_of(INSTANCE, 0),
    )
    uids = sample.study_instance_uid, sample.series_instance_uid, sample.sop_instance_uid
    for number in range(count):
        place = number % series
        names = (
            uid_of(STUDY if kept_series else kind + STUDY, place),
            uid_of(SERIES if kept_series else kind + SERIES, place),
            uid_of(kind + INSTANCE, number),
        )
        dataset = sample.dataset
        for old, new in zip(uids, names, strict=True):
            dataset = dataset.replace(old.encode(), new.encode())
        yield EncodedObject(sample.sop_class_uid, names[2], *names[:2], sample.transfer_syntax_uid, dataset)


async def send(daemon: DaemonProcess, kind: int, count: int, series: int = 20) -> float:
    """Send objects on several associations; returns how many a second were answered with success."""
    waiting = objects(kind, count, series)

    async def sender() -> None:
        async with await ScriptedPeer.connect(daemon.ready.dicom_host, daemon.ready.dicom_port) as peer:
            await peer.associate(storage_contexts(ct_image()))
            for each in waiting:
                if (status := await peer.store(each)) != 0x0000:
                    raise RuntimeError(f"refused with 0x{status:04X}")

    began = time.monotonic()
    await asyncio.gather(*(sender() for _ in range(SENDERS)))
    return count / (time.monotonic() - began)


async def kill_in_flight(daemon: DaemonProcess) -> None:
    """Kill the daemon while objects arrive for many series that it keeps: all their files are in question."""
    waiting = objects(40, 100 * KILLED_SERIES, KILLED_SERIES, kept_series=True)
    answered = 0

    async def sender() -> None:
        nonlocal answered
        async with await ScriptedPeer.connect(daemon.ready.dicom_host, daemon.ready.dicom_port) as peer:
            await peer.associate(storage_contexts(ct_image()))
            for each in waiting:
                await peer.store(each)
                answered += 1
                if answered == 3 * KILLED_SERIES:
                    daemon.process.kill()

    await asyncio.gather(*(sender() for _ in range(SENDERS)), return_exceptions=True)
    await asyncio.to_thread(daemon.kill)


def resident_bytes(pid: int) -> int:
    """What the process holds in memory (RSS)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def drop_caches() -> bool:
    """Forget what the kernel has read of any disk; False where that is not allowed."""
    os.sync()
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    return False


def tell_status(data_dir: Path) -> None:
    """Print how long the first and the second `status` took."""
    taken = []
    with ControlClient(data_dir) as client:
        for _ in range(2):
            began = time.monotonic()
            client.ask("status")
            taken.append(f"{(time.monotonic() - began) * 1e3:.0f} ms")
    print(f"  status: {', '.join(taken)}", flush=True)


async def start(daemon: DaemonProcess, what: str) -> None:
    """Start and print how long that took."""
    began = time.monotonic()
    await asyncio.to_thread(daemon.start)
    seconds = time.monotonic() - began
    mib = resident_bytes(daemon.ready.pid) / 2**20
    print(f"{what}: ready in {seconds:.2f} s, {mib:.0f} MiB resident", flush=True)


async def measure(data_dir: Path) -> None:
    """Start the daemon in every way and print what is seen."""
    daemon = DaemonProcess(data_dir)
    quiet = DaemonProcess(data_dir, environment={"SCP_SERVER_INDEX__COMPARE_AT_START": "false"})
    try:
        await start(daemon, "as it is")
        tell_status(data_dir)
        print(f"  beside the comparison: {await send(daemon, 20, SENT):.0f} objects/s")
        await asyncio.to_thread(daemon.terminate)
        if drop_caches():
            await start(daemon, "cold caches")
            tell_status(data_dir)
            await asyncio.to_thread(daemon.terminate)
        await start(daemon, "to be killed")
        await kill_in_flight(daemon)
        await start(daemon, f"after kill -9 with {KILLED_SERIES} series in flight")
        for record in daemon.log_records("recovery.ended"):
            print("  " + ", ".join(f"{key} {record[key]}" for key in ("examined", "adopted", "removed")))
        await asyncio.to_thread(daemon.terminate)
        await start(quiet, "without comparison")
        print(f"  undisturbed: {await send(quiet, 30, SENT):.0f} objects/s")
        await asyncio.to_thread(quiet.terminate)
    finally:
        for each in daemon, quiet:
            if each.is_running:
                each.kill()


def main() -> None:
    """Read the options, make the archive and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--no-files", action="store_true", help="rows only: every one will be missing")
    parser.add_argument("--directory", type=Path, help="the data folder; a temporary one otherwise")
    parser.add_argument("--keep", action="store_true", help="use the folder if it is there, and leave it")
    options = parser.parse_args()
    data_dir = options.directory or Path(tempfile.mkdtemp(prefix="startup-"))
    try:
        if not index_path(Settings(data_dir=data_dir)).exists():
            asyncio.run(fill_index(data_dir, options.instances))
            if not options.no_files:
                fill_folder(data_dir, options.instances)
        asyncio.run(measure(data_dir))
    finally:
        if not options.keep:
            shutil.rmtree(data_dir)


if __name__ == "__main__":
    main()
