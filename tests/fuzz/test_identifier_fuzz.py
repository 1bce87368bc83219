"""Any bytes give an identifier or a refusal with 0xC000; whatever is asked for can be matched and answered.

Runs for a few seconds; `SCP_FUZZ_SECONDS` sets how long. A failing round's seed is printed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence

from scp_server.errors import OperationRefused
from scp_server.objects.header_tap import HeaderTap
from scp_server.objects.identifier import (
    Identifier,
    IdentifierLimits,
    Key,
    read_identifier,
    source_matches,
)
from scp_server.objects.matching import MatchingOptions
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.response_dataset import ResponseDataset
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax

SECONDS = float(os.environ.get("SCP_FUZZ_SECONDS", "5"))
LIMITS = IdentifierLimits(max_keys=50, max_sequence_depth=8)
SYNTAXES = [
    TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.EXPLICIT_VR_BIG_ENDIAN,
]
CODE = [Element(0x00080100, "SH", "A*"), Element(0x00080102, "SH", "")]
KEYS = [
    Element(0x00080005, "CS", "\\ISO 2022 IR 87"),
    Element(0x00080020, "DA", "20240101-20240102"),
    Element(0x0008002A, "DT", "20240101120000-0500-"),
    Element(0x00080030, "TM", "10-"),
    Element(0x00080052, "CS", "STUDY"),
    Element(0x00080061, "CS", "CT\\MR"),
    Element(0x00081032, "SQ", [CODE], undefined_length=True),
    Element(0x00100010, "PN", b"Yamada*=\x1b$B;3ED\x1b(B"),
    Element(0x00110010, "LO", "ACME"),
    Element(0x00111001, "LO", "x?"),
    Element(0x00181063, "DS", "1.5"),
    Element(0x0020000D, "UI", "1.2\\1.2.3"),
    Element(0x00280009, "AT", [0x00181063]),
    Element(0x00280010, "US", 512),
    Element(0x00400275, "SQ", [[Element(0x00400008, "SQ", [CODE])]]),
    Element(0x00420011, "OB", b"%PDF"),
    Element(0x00420012, "UN", bytes.fromhex("feff00e000000000")),
]
INTERESTING = [
    bytes.fromhex(text)
    for line in (
        "feff00e0ffffffff feff00e008000000 feff0de000000000 feffdde000000000 ffffffff 00000000",
        "554e0000ffffffff 53510000ffffffff 0800050043530a004953 1b2442 2a 3f 5c 2d 3d 5e 2a3f2a3f 2222",
    )
    for text in line.split()
]
OPTIONS = [MatchingOptions(), MatchingOptions(True, True, True)]


def header(syntax: TransferSyntax) -> RawHeader:
    tap = HeaderTap(syntax)
    tap.feed(DatasetEncoder(syntax).encode(KEYS))
    tap.finish()
    return tap.header


SEEDS = [(syntax, DatasetEncoder(syntax).encode(KEYS)) for syntax in SYNTAXES]
HEADERS = [header(syntax) for syntax in SYNTAXES]


def mutate(source: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(source.randint(1, 4)):
        position = source.randrange(len(changed) + 1)
        match source.randrange(6):
            case 0:
                changed[position : position + 1] = bytes([source.randrange(256)])
            case 1:
                del changed[position : position + source.randint(1, 20)]
            case 2:
                changed[position:position] = source.choice(INTERESTING)
            case 3:
                piece = source.choice(INTERESTING)
                changed[position : position + len(piece)] = piece
            case 4:
                start = source.randrange(len(changed) + 1)
                changed[position:position] = changed[start : start + source.randint(1, 80)]
            case _:
                del changed[position:]
    return bytes(changed)


def every(keys: Sequence[Key]) -> Iterator[Key]:
    for key in keys:
        yield key
        yield from every(key.items or ())


def run(syntax: TransferSyntax, data: bytes, source: random.Random) -> Identifier | None:
    """Read, match against a header, answer, and read the answer. Any other exception is a failure."""
    options = source.choice(OPTIONS)
    is_dicos = source.random() < 0.3
    try:
        found = read_identifier(data, syntax, is_dicos=is_dicos, options=options, limits=LIMITS)
    except OperationRefused as refused:
        # Not `pytest.raises`: most identifiers are refused, and some are not.
        if refused.status != 0xC000:
            raise
        return None
    tags = [key.tag for key in found.keys]
    assert tags == sorted(set(tags))
    assert sum(1 for _ in every(found.keys)) <= LIMITS.max_keys
    stored = source.choice(HEADERS)
    for key in found.keys:
        assert source_matches(stored, key, True) or not source_matches(stored, key, False)
    wanted = source.choice(SYNTAXES)
    encoder = ResponseDataset(found.keys, wanted, found.character_set)
    answer = encoder.encode([stored if source.random() < 0.8 else None for _ in tags])
    assert len(answer.dataset) % 2 == 0
    if answer.complete:
        empty = encoder.encode([None] * len(tags))
        again = read_identifier(
            empty.dataset, wanted, is_dicos=is_dicos, options=options, limits=IdentifierLimits()
        )
        assert [key.tag for key in again.keys] == tags
    return found


def test_mutated_identifiers_are_read_or_refused() -> None:
    first, end = random.SystemRandom().getrandbits(32), time.monotonic() + SECONDS
    count = readable = 0
    while count < 300 or time.monotonic() < end:
        source = random.Random(first + count)
        syntax, data = source.choice(SEEDS)
        try:
            found = run(syntax, mutate(source, data) if source.random() < 0.95 else data, source)
        except BaseException:
            print(f"failing seed: {first + count}")
            raise
        count += 1
        readable += found is not None
    assert readable > count // 50
