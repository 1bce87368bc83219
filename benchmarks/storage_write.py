"""How many objects per second the filesystem storage takes, by size, durability and writers at once.

    python benchmarks/storage_write.py --root /dev/shm/bench --durability process

The first objects of a run touch cold memory on tmpfs: compare medians, or CPU per object.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import time
from itertools import count
from pathlib import Path

from blake3 import blake3

from scp_server.storage.base import ObjectKey
from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig

_CHUNK_BYTES = 65_536
_KEPT = 64
"""Objects that stay on the disk while more are written, so that memory is reused and the disk not filled."""


async def measure(config: FilesystemStorageConfig, size_bytes: int, objects: int, writers: int) -> None:
    """Store and print one line."""
    storage = FilesystemStorage(config)
    await storage.open()
    data = memoryview(os.urandom(size_bytes))
    chunks = [data[start : start + _CHUNK_BYTES] for start in range(0, size_bytes, _CHUNK_BYTES)]
    numbers, kept = count(), list[str]()

    async def sender(sender_number: int) -> None:
        while (number := next(numbers)) < objects:
            arrival_id = f"{number:024x}"
            writer = await storage.begin(arrival_id, bytes(400), blake3())
            for chunk in chunks:
                await writer.write([chunk])
            series = f"1.{sender_number}.{number // 200}"
            stored = await writer.commit(ObjectKey("1", series, f"2.{number}", arrival_id))
            await storage.indexed(stored)
            kept.append(stored.location)
            if len(kept) > _KEPT:
                await storage.delete(kept.pop(0))

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(sender(number) for number in range(writers)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"{config.durability:8} {size_bytes:>10} bytes {writers:>3} writers "
        f"{objects / wall:>8.0f}/s {cpu / objects * 1e6:>7.0f} us CPU each"
    )
    await storage.close()
    shutil.rmtree(config.root)


def main() -> None:
    """Run the table that the options ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--durability", type=Durability, choices=list(Durability), default=Durability.FULL)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 525_000])
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    if options.root.exists():
        parser.error("--root exists")
    for size_bytes in options.sizes:
        for writers in options.writers:
            config = FilesystemStorageConfig(options.root, options.durability, threads=options.threads)
            asyncio.run(measure(config, size_bytes, options.objects, writers))


if __name__ == "__main__":
    main()
