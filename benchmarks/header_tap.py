"""How long the header tap takes for one object, beside pydicom reading the same header.

    python benchmarks/header_tap.py [FILE ...]

Without files it makes an explicit VR little endian CT slice of 120 elements and 525 kB. Prints microseconds
per object, the best of several runs: tap alone (fed 128 KiB at a time), tap with summary, packing, and
`pydicom.dcmread(stop_before_pixels=True)`, all in this process.
"""

from __future__ import annotations

import io
import struct
import sys
import timeit
import warnings
from collections.abc import Callable
from pathlib import Path

import pydicom

from scp_server.objects.header_tap import HeaderTap
from scp_server.objects.part10 import file_meta, read_file_meta
from scp_server.objects.summary import summarize

CHUNK_BYTES = 131_072
REPEATS = 7


def _element(tag: int, vr: str, value: bytes) -> bytes:
    value += b"\0" * (len(value) & 1)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    if vr in ("OB", "OW", "SQ", "UN", "UT"):
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def _item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def typical_ct(elements: int = 120) -> bytes:
    """A CT slice: identity, the usual text, a sequence, private elements, 512 x 512 pixels."""
    by_tag = {
        0x00080005: ("CS", b"ISO_IR 100"),
        0x00080008: ("CS", b"ORIGINAL\\PRIMARY\\AXIAL"),
        0x00080016: ("UI", b"1.2.840.10008.5.1.4.1.1.2"),
        0x00080018: ("UI", b"1.2.826.0.1.3680043.8.498.1.1.1.17"),
        0x00080020: ("DA", b"20260101"),
        0x00080030: ("TM", b"101112.123"),
        0x00080050: ("SH", b"ACC-0001"),
        0x00080060: ("CS", b"CT"),
        0x00080070: ("LO", b"Maker of scanners"),
        0x00081030: ("LO", b"Thorax routine"),
        0x0008103E: ("LO", b"Axial 1.0"),
        0x00081140: (
            "SQ",
            _item(
                _element(0x00081150, "UI", b"1.2.840.10008.5.1.4.1.1.2")
                + _element(0x00081155, "UI", b"1.2.826.0.1.3680043.8.498.1.1.1.1")
            ),
        ),
        0x00100010: ("PN", b"Doe^Jane"),
        0x00100020: ("LO", b"PAT-0001"),
        0x00100030: ("DA", b"19700101"),
        0x00100040: ("CS", b"F"),
        0x00180050: ("DS", b"1.0"),
        0x0020000D: ("UI", b"1.2.826.0.1.3680043.8.498.1"),
        0x0020000E: ("UI", b"1.2.826.0.1.3680043.8.498.1.1"),
        0x00200011: ("IS", b"3"),
        0x00200013: ("IS", b"17"),
        0x00200052: ("UI", b"1.2.826.0.1.3680043.8.498.1.9"),
        0x00280010: ("US", struct.pack("<H", 512)),
        0x00280011: ("US", struct.pack("<H", 512)),
        0x00280100: ("US", struct.pack("<H", 16)),
    }
    for number in range(elements - len(by_tag) - 1):
        by_tag[0x00291001 + number] = ("LO", b"private value %d" % number)
    body = b"".join(_element(tag, *by_tag[tag]) for tag in sorted(by_tag))
    return body + _element(0x7FE00010, "OW", bytes(512 * 512 * 2))


def _best_microseconds(action: Callable[[], object]) -> float:
    number = max(1, int(0.1 / max(timeit.timeit(action, number=3) / 3, 1e-7)))
    return min(timeit.repeat(action, number=number, repeat=REPEATS)) / number * 1e6


def measure(name: str, transfer_syntax_uid: str, part10: bytes, offset: int) -> None:
    """Print one line for one object."""
    dataset = memoryview(part10)[offset:]

    def tap() -> HeaderTap:
        reader = HeaderTap(transfer_syntax_uid)
        for start in range(0, len(dataset), CHUNK_BYTES):
            reader.feed(dataset[start : start + CHUNK_BYTES])
        reader.finish()
        return reader

    header = tap().header
    file = io.BytesIO(part10)

    def oracle() -> object:
        file.seek(0)
        return pydicom.dcmread(file, stop_before_pixels=True)

    print(
        f"{name:28} {len(header):4} elements {len(part10):9} bytes: tap {_best_microseconds(tap):7.1f} us, "
        f"tap and summary {_best_microseconds(lambda: summarize(tap().header)):7.1f} us, "
        f"pack {_best_microseconds(header.pack):5.1f} us ({len(header.kept_bytes)} to {len(header.pack())}), "
        f"pydicom {_best_microseconds(oracle):8.1f} us"
    )


def main(paths: list[str]) -> None:
    warnings.simplefilter("ignore")
    if not paths:
        meta = file_meta(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            sop_instance_uid="1.2.826.0.1.3680043.8.498.1.1.1.17",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
        ).data
        measure("synthetic CT", "1.2.840.10008.1.2.1", meta + typical_ct(), len(meta))
    for path in paths:
        part10 = Path(path).read_bytes()
        found = read_file_meta(part10)
        measure(Path(path).name[:28], found.transfer_syntax_uid, part10, found.dataset_offset_bytes)


if __name__ == "__main__":
    main(sys.argv[1:])
