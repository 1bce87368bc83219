"""How many entries the index takes, by batch size, beside plain sqlite3 writing the same rows in that run.

Run from the repository's top: `python -m benchmarks.index_add [--directory DIR] [--entries N] [--process]`.
Batches are what so many tasks give that each add one entry after the other, as associations do. `sqlite3` is
the driver alone: rows made beforehand, executemany into the same tables, no look-ups, no threads.
`beside a busy loop` is one entry at a time while another task computes in slices of 0.2 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

from scp_server.index import schema
from scp_server.index.base import DuplicatePolicy, IndexEntry
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.testing.index_contract import index_entry

BATCH_SIZES = (1, 4, 8, 16, 64, 256)
INSTANCES_PER_STUDY = 200
HEADER_BYTES = 1_500

_ATTRIBUTES: dict[str, Any] = {
    "patient_name": "DOE^JANE",
    "patient_birth_date": "19700101",
    "study_date": "20240101",
    "accession_number": "A123456",
    "modality": "CT",
    "manufacturer": "ACME",
    "rows": 512,
    "columns": 512,
    "bits_allocated": 16,
    "content_date": "20240101",
    "content_time": "120000.123",
    "frame_of_reference_uid": "1.2.840.99.4.1234567890",
    "specific_character_set": "ISO_IR 100",
}


def make_entries(count: int, run: int) -> list[IndexEntry]:
    """CT slices, in studies of one series, with UIDs of a usual length."""
    header = os.urandom(HEADER_BYTES)
    return [
        index_entry(
            f"{run}.20240101.120000.{number:012d}",
            b"%d" % number,
            study=f"{run}.20240101.{number // INSTANCES_PER_STUDY:012d}",
            series=f"{run}.20240101.{number // INSTANCES_PER_STUDY:012d}",
            header=header,
            patient_id=f"P{number // INSTANCES_PER_STUDY}",
            instance_number=number,
            **_ATTRIBUTES,
        )
        for number in range(count)
    ]


async def add_all(index: SqlIndex, entries: list[IndexEntry], tasks: int) -> float:
    """Seconds until so many tasks have added all entries."""
    waiting = iter(entries)

    async def adder() -> None:
        for entry in waiting:
            await index.add(entry, DuplicatePolicy.KEEP_FIRST)

    started = time.perf_counter()
    await asyncio.gather(*(adder() for _ in range(tasks)))
    return time.perf_counter() - started


async def busy(stop: asyncio.Event) -> None:
    """Compute in slices of 0.2 ms, giving way to the loop between them."""
    while not stop.is_set():
        end = time.perf_counter() + 0.000_2
        while time.perf_counter() < end:
            pass
        await asyncio.sleep(0)


def add_plainly(path: Path, entries: list[IndexEntry], batch_size: int, full: bool) -> float:
    """Seconds for the rows of instances, parts and headers alone, through the driver."""
    database = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = WAL", f"synchronous = {'FULL' if full else 'NORMAL'}"):
        database.execute(f"PRAGMA {pragma}")
    key = 10**9 + (database.execute("SELECT max(part_key) FROM parts").fetchone()[0] or 0)
    series_key = database.execute("SELECT max(series_key) FROM series").fetchone()[0]
    rows: dict[str, list[tuple[object, ...]]] = {"instances": [], "parts": [], "headers": []}
    for offset, entry in enumerate(entries):
        instance = [getattr(entry.summary, name) for name in schema.instances.columns.keys()[2:]]
        part = [getattr(entry, name) for name in schema.parts.columns.keys()[3:]]
        rows["instances"].append((key + offset, series_key, *instance))
        rows["parts"].append((key + offset, key + offset, 1, *part))
        rows["headers"].append((key + offset, entry.header.pack()))
    started = time.perf_counter()
    for start in range(0, len(entries), batch_size):
        database.execute("BEGIN IMMEDIATE")
        for table, its_rows in rows.items():
            marks = ", ".join("?" * len(its_rows[0]))
            database.executemany(
                f"INSERT INTO {table} VALUES ({marks})", its_rows[start : start + batch_size]
            )
        database.execute("COMMIT")
    taken = time.perf_counter() - started
    database.close()
    return taken


async def run(directory: Path, count: int, full: bool) -> None:
    """Print one line for each batch size."""
    path = directory / "index.sqlite"
    index = SqlIndex(IndexConfig(path, synchronous_full=full))
    started = time.perf_counter()
    await index.open()
    print(f"new index opened in {(time.perf_counter() - started) * 1e3:.1f} ms; synchronous {full=}")
    await add_all(index, make_entries(1_000, 0), 32)
    print(f"{'tasks':>6} {'entries/s':>10} {'µs each':>8} {'sqlite3 µs each':>16}")
    for number, tasks in enumerate(BATCH_SIZES, start=1):
        share = max(count if tasks >= 16 else count // 4, tasks)
        ours = await add_all(index, make_entries(share, 2 * number), tasks)
        plain = add_plainly(path, make_entries(share, 2 * number + 1), tasks, full)
        print(f"{tasks:>6} {share / ours:>10.0f} {ours / share * 1e6:>8.1f} {plain / share * 1e6:>16.1f}")
    stop = asyncio.Event()
    beside = asyncio.create_task(busy(stop))
    taken = await add_all(index, make_entries(200, 99), 1)
    stop.set()
    await beside
    print(f"one at a time beside a busy loop: {taken / 200 * 1e6:.0f} µs each")
    await index.close()
    started = time.perf_counter()
    await index.open()
    print(f"opened again in {(time.perf_counter() - started) * 1e3:.1f} ms")
    await index.close()


def main() -> None:
    """Read the options and run in a temporary folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, help="where the temporary folder is made")
    parser.add_argument("--entries", type=int, default=12_800, help="for each batch size")
    parser.add_argument("--process", action="store_true", help="synchronous NORMAL instead of FULL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        asyncio.run(run(Path(directory), options.entries, not options.process))


if __name__ == "__main__":
    main()
