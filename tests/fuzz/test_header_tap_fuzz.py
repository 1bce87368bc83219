"""Any bytes give a header or UnreadableDataset, never another exception, and never more work than bytes.

Runs for a few seconds; `SCP_FUZZ_SECONDS` sets how long in all. Every round's seed is printed when it fails.
"""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest

from scp_server.errors import OperationRefused, UnreadableDataset
from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.summary import summarize
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax, deflate

SECONDS = float(os.environ.get("SCP_FUZZ_SECONDS", "10"))
LIMITS = TapLimits(max_header_bytes=4_096, max_value_bytes=512, max_elements=2_000)
INTERESTING = [
    bytes.fromhex(text)
    for line in (
        "feff00e0ffffffff feff00e008000000 feff0de000000000 feffdde000000000 e07f1000 e07f12004f44",
        "ffffffff 00000000 08001600 0800401153510000ffffffff 5351 554e0000ffffffff 4f42 4f57",
        "02001000 ffffffffffffffff fffee000 fffee0dd 1040111053510000 0a000000 fafffaff",
    )
    for text in line.split()
]


def seeds() -> list[tuple[str, bytes]]:
    found = []
    for syntax in TransferSyntax:
        for sop_class in ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.501.1"):
            encoder = DatasetEncoder(syntax)
            reference = [Element(0x00081150, "UI", sop_class), Element(0x00081155, "UI", "1.2.3")]
            inner = [Element(0x0008114A, "SQ", [reference], undefined_length=True)]
            body = encoder.encode(
                [
                    Element(0x00080005, "CS", "\\ISO 2022 IR 87"),
                    Element(0x00080016, "UI", sop_class),
                    Element(0x00080018, "UI", "1.2.3"),
                    Element(0x00081140, "SQ", [reference, []]),
                    Element(0x00100010, "PN", b"Yamada=\x1b$B;3ED\x1b(B"),
                    Element(0x0020000D, "UI", "1.2"),
                    Element(0x0020000E, "UI", "1.2.1"),
                    Element(0x00280008, "IS", "2"),
                    Element(0x00420011, "OB", bytes(600)),
                    Element(0x40101011, "SQ", [[Element(0x40101037, "SQ", [inner, inner])]]),
                ]
            )
            for pixels in (
                encoder.element(Element(0x7FE00010, "OW", bytes(16))),
                encoder.element(Element(0x7FE00012, "OD", bytes(16))),
                encoder.fragments([b"abcd", b"ef"]),
            ):
                found.append((str(syntax), body + pixels))
    return found


def mutate(random_source: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random_source.randint(1, 6)):
        position = random_source.randrange(len(changed) + 1)
        match random_source.randrange(6):
            case 0:
                changed[position : position + 1] = bytes([random_source.randrange(256)])
            case 1:
                del changed[position : position + random_source.randint(1, 20)]
            case 2:
                changed[position:position] = random_source.choice(INTERESTING)
            case 3:
                piece = random_source.choice(INTERESTING)
                changed[position : position + len(piece)] = piece
            case 4:
                start = random_source.randrange(len(changed) + 1)
                changed[position:position] = changed[start : start + random_source.randint(1, 80)]
            case _:
                del changed[position:]
                changed += random_source.randbytes(random_source.randint(0, 40))
    return bytes(changed)


@dataclass(frozen=True, slots=True)
class Refused:
    """The tap raised UnreadableDataset."""

    comment: str
    offset_bytes: int


def run(syntax: str, data: bytes, cuts: list[int]) -> object:
    """What the tap finds, all the way to the index's columns; any other exception is a failure."""
    tap = HeaderTap(syntax, LIMITS)
    edges = [0, *cuts, len(data)]
    try:
        for start, end in pairwise(edges):
            tap.feed(memoryview(data)[start:end])
        tap.finish()
    except UnreadableDataset as error:
        return Refused(error.comment, error.offset_bytes)
    header = tap.header
    try:
        found: object = summarize(header)
    except OperationRefused as refusal:
        found = refusal.comment
    again = RawHeader.unpack(header.pack())
    assert list(again) == list(header)
    for element in header:
        header.value(element.tag)
        header.text(element.tag)
        for item in header.items(element.tag):
            for inner in item:
                item.value(inner.tag)
    assert len(header.kept_bytes) <= LIMITS.max_header_bytes
    return found, header.kept_bytes, header.gaps, header.truncated


def rounds(seconds: float, one: Callable[[random.Random], None]) -> int:
    """Call `one` with a fresh seed each until the time is up, at least a hundred times."""
    first, count, end = random.SystemRandom().getrandbits(32), 0, time.monotonic() + seconds
    while count < 100 or time.monotonic() < end:
        try:
            one(random.Random(first + count))
        except BaseException:
            print(f"failing seed: {first + count}")
            raise
        count += 1
    return count


def test_mutated_data_sets_give_a_header_or_a_refusal_however_they_are_cut() -> None:
    starting = seeds()
    readable = 0

    def one(source: random.Random) -> None:
        nonlocal readable
        syntax, data = source.choice(starting)
        changed = mutate(source, data)
        if syntax == TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
            changed = deflate(changed) if source.random() < 0.8 else mutate(source, deflate(changed))
        whole = run(syntax, changed, [])
        cuts = sorted(source.randrange(len(changed) + 1) for _ in range(source.randint(1, 8)))
        for some in (cuts, range(1, len(changed))) if source.random() < 0.1 else (cuts,):
            again = run(syntax, changed, list(some))
            # Of two defects in and behind a damaged deflate stream, the pieces decide which is met first.
            deflated = syntax == TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
            assert again == whole or (deflated and isinstance(again, Refused) and isinstance(whole, Refused))
        readable += not isinstance(whole, Refused)

    count = rounds(SECONDS * 0.7, one)
    assert readable > count // 200


def test_noise_gives_a_header_or_a_refusal() -> None:
    syntaxes = [str(syntax) for syntax in TransferSyntax]

    def one(source: random.Random) -> None:
        pieces = [
            source.choice(INTERESTING) if source.random() < 0.6 else source.randbytes(source.randrange(9))
            for _ in range(source.randrange(40))
        ]
        run(source.choice(syntaxes), b"".join(pieces), [])

    rounds(SECONDS * 0.3, one)


SEQUENCE = bytes.fromhex("0800401153510000ffffffff")
ITEM = bytes.fromhex("feff00e0ffffffff")
ITEM_END = bytes.fromhex("feff0de000000000")
UN = bytes.fromhex("09000010554e0000ffffffff")
DEEP = (SEQUENCE + ITEM) * 60


@pytest.mark.parametrize(
    ("start", "pattern"),
    [
        (b"", SEQUENCE + ITEM),
        (b"", UN + ITEM),
        (SEQUENCE, bytes.fromhex("feff00e000000000")),
        (SEQUENCE, ITEM + ITEM_END),
        (DEEP, bytes.fromhex("0900001053480000")),
        (b"", bytes.fromhex("0900001053480000")),
        (b"", bytes.fromhex("e07f10004f42000000000000")),
        (b"", bytes.fromhex("e07f12004f44000000000000")),
        (bytes.fromhex("e07f10004f420000ffffffff"), bytes.fromhex("feff00e000000000")),
        (bytes.fromhex("09000010 4f42 0000 ffffffff"), bytes.fromhex("feff00e000000000")),
    ],
    ids=[
        "nesting",
        "nesting in UN",
        "items",
        "open items",
        "elements 60 deep",
        "elements",
        "pixel data",
        "64-bit pixel data",
        "fragments of pixel data",
        "fragments before pixel data",
    ],
)
@pytest.mark.parametrize("dicos", [False, True])
def test_repetition_costs_neither_memory_nor_more_than_linear_time(
    start: bytes, pattern: bytes, dicos: bool
) -> None:
    syntax = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
    class_uid = "1.2.840.10008.5.1.4.1.1.501.1" if dicos else "1.2.840.10008.5.1.4.1.1.2"
    data = DatasetEncoder(syntax).element(Element(0x00080016, "UI", class_uid)) + start + pattern * 8_000
    tap = HeaderTap(syntax, TapLimits(max_header_bytes=65_536))
    tap.feed(b"")
    tracemalloc.start()
    began = time.process_time()
    try:
        for position in range(0, len(data), 4_096):
            tap.feed(data[position : position + 4_096])
        tap.finish()
    except UnreadableDataset:
        pass
    finally:
        elapsed = time.process_time() - began
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1_048_576
    assert elapsed < 5
