"""What the object factories make: a data set as bytes, or as a stream too large for memory, and its names."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from scp_server.testing.dataset_encoder import DatasetEncoder, Element

IMPLEMENTATION_CLASS_UID = "2.25.225467870011228734461923019428377281"
IMPLEMENTATION_VERSION_NAME = "SCP_TEST_KIT"
FRAME_SIDE = 512
FRAME_BYTES = FRAME_SIDE * FRAME_SIDE * 2
"""One frame of a large object: 512 x 512 pixels of 16 bits."""


@dataclass(frozen=True, slots=True)
class EncodedObject:
    """A data set as bytes in one transfer syntax, and what names it; `dicos_version` is (4010,103A)."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    dataset: bytes = field(repr=False)
    dicos_version: str = ""

    @property
    def size_bytes(self) -> int:
        """Length of the data set."""
        return len(self.dataset)

    def chunks(self) -> Iterator[bytes]:
        """The data set, whole."""
        yield self.dataset

    def part10(self) -> bytes:
        """Preamble, File Meta and data set (PS3.10 7.1); with (0002,0004) where the object is DICOS."""
        return part10_prefix(self) + self.dataset


@dataclass(frozen=True, slots=True)
class LargeObject:
    """An object that never lies in memory whole: `chunks` makes its data set anew, 512 KiB at a time.

    `head` and `tail` stand around `frames` frames of `FRAME_BYTES` each, every one behind `frame_prefix`.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    frames: int
    head: bytes = field(repr=False)
    frame_prefix: bytes = field(default=b"", repr=False)
    tail: bytes = field(default=b"", repr=False)
    dicos_version: str = ""

    @property
    def size_bytes(self) -> int:
        """Length of the data set."""
        return len(self.head) + self.frames * (len(self.frame_prefix) + FRAME_BYTES) + len(self.tail)

    def chunks(self) -> Iterator[bytes]:
        """The data set in pieces; every frame begins with its number, so that a lost or swapped one shows."""
        body = bytes(range(256)) * (FRAME_BYTES // 256)
        yield self.head
        for frame in range(self.frames):
            yield self.frame_prefix + struct.pack("<Q", frame) + body[8:]
        if self.tail:
            yield self.tail

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks()


def make_uid(name: str) -> str:
    """A valid UID that follows from `name` (PS3.5 B.2)."""
    return f"2.25.{int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], 'big')}"


def part10_prefix(identity: EncodedObject | LargeObject) -> bytes:
    """Preamble and File Meta of an object (PS3.10 7.1)."""
    encoder = DatasetEncoder()
    elements = [
        Element(0x00020001, "OB", b"\0\1"),
        Element(0x00020002, "UI", identity.sop_class_uid),
        Element(0x00020003, "UI", identity.sop_instance_uid),
        Element(0x00020010, "UI", identity.transfer_syntax_uid),
        Element(0x00020012, "UI", IMPLEMENTATION_CLASS_UID),
        Element(0x00020013, "SH", IMPLEMENTATION_VERSION_NAME),
    ]
    if identity.dicos_version:
        elements.append(Element(0x00020004, "CS", identity.dicos_version))
    meta = encoder.encode(elements)
    return bytes(128) + b"DICM" + encoder.element(Element(0x00020000, "UL", len(meta))) + meta
