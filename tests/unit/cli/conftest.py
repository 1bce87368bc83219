from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

MakePart10 = Callable[..., bytes]


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def _part10(
    dataset: bytes = b"\x08\x00\x60\x00CS\x02\x00CT",
    *,
    sop_class: str = CT,
    instance: str = "1.2.3",
    transfer_syntax: str = EXPLICIT,
    extra_meta_bytes: int = 0,
) -> bytes:
    """A Part 10 file, written independently of the product."""
    meta = _element(2, b"UI", sop_class.encode()) + _element(3, b"UI", instance.encode())
    meta += _element(0x10, b"UI", transfer_syntax.encode())
    if extra_meta_bytes:
        meta += struct.pack("<HH2sHI", 2, 0x102, b"OB", 0, extra_meta_bytes) + bytes(extra_meta_bytes)
    group_length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta))
    return bytes(128) + b"DICM" + group_length + meta + dataset


@pytest.fixture
def part10() -> MakePart10:
    return _part10


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with two objects, one of them deeper, a text file and an empty one."""
    folder = tmp_path / "study"
    (folder / "deeper").mkdir(parents=True)
    (folder / "b.dcm").write_bytes(_part10(instance="1.2.3.2"))
    (folder / "deeper" / "a.dcm").write_bytes(_part10(instance="1.2.3.1"))
    (folder / "readme.txt").write_text("no object")
    (folder / "empty").write_bytes(b"")
    return folder
