"""How fast a data set is given another transfer syntax: MB/s of stored bytes for each pair, in this process.

    python -m benchmarks.reencoding [MIB]

A CT of 16-bit pixels (64 MiB unless said otherwise), fed 256 KiB at a time, and a header of 2 000 elements
alone. The best of three runs.
"""

from __future__ import annotations

import sys
import time
from itertools import permutations

from scp_server.objects.reencoding import UNCOMPRESSED, reencoder
from scp_server.objects.uids import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, transfer_syntax
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax, deflate
from scp_server.testing.objects import ct_image

CHUNK_BYTES = 262_144
RUNS = 3


def reencode_seconds(dataset: bytes, source: str, target: str) -> float:
    """One run."""
    started = time.perf_counter()
    found = reencoder(source, target, len(dataset))
    if found is None:
        raise ValueError(f"{source} cannot become {target}")
    for start in range(0, len(dataset), CHUNK_BYTES):
        found.feed(dataset[start : start + CHUNK_BYTES])
    found.finish()
    return time.perf_counter() - started


def main(mebibytes: int) -> None:
    rows = mebibytes * 512
    pixels = bytes(range(256)) * 4 * rows
    header = [Element(0x00091000 + number, "LO", f"value {number}") for number in range(2_000)]
    for source, target in permutations(UNCOMPRESSED, 2):
        made = ct_image(rows=rows, columns=512, pixels=pixels, transfer_syntax=TransferSyntax(source))
        elements = DatasetEncoder(TransferSyntax(source)).encode(header)
        if source == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
            elements = deflate(elements)
        best = min(reencode_seconds(made.dataset, source, target) for _ in range(RUNS))
        alone = min(reencode_seconds(elements, source, target) for _ in range(RUNS))
        swaps = transfer_syntax(source).little_endian != transfer_syntax(target).little_endian
        print(
            f"{source:24} -> {target:24} {'swapped' if swaps else '':8}"
            f"{mebibytes * 1.048576 / best:8.0f} MB/s of pixels, {alone / 2_000 * 1e6:5.1f} us an element"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 64)
