"""The header tap: what is a data set, what is not, and what of it is kept, however the bytes are cut."""

from __future__ import annotations

import struct
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_server.errors import LocalProtocolError, UnreadableDataset
from scp_server.objects.header_tap import STEP_BYTES, HeaderTap, TapLimits
from scp_server.objects.raw_header import RawHeader
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax, deflate

EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
IMPLICIT = TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN
BIG = TransferSyntax.EXPLICIT_VR_BIG_ENDIAN
LONG = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64
DEFLATED = TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
DICOS_CT_CLASS = "1.2.840.10008.5.1.4.1.1.501.1"
ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def sequence(tag: int, body: bytes, length: int | None = None) -> bytes:
    declared = len(body) if length is None else length
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"SQ", 0, declared) + body


def undefined(tag: int, body: bytes, vr: bytes = b"SQ") -> bytes:
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, 0xFFFFFFFF) + body + SEQUENCE_END


def elements(sop_class: str = CT_CLASS) -> list[Element]:
    code = [Element(0x00080100, "SH", "T-D1100"), Element(0x00080104, "LO", "Head")]
    nested = [Element(0x00081150, "UI", CT_CLASS), Element(0x0040A170, "SQ", [code], undefined_length=True)]
    return [
        Element(0x00080005, "CS", "ISO_IR 100"),
        Element(0x00080016, "UI", sop_class),
        Element(0x00080018, "UI", "1.2.3.4"),
        Element(0x00081140, "SQ", [nested, nested]),
        Element(0x00082112, "SQ", [nested, []], undefined_length=True),
        Element(0x00100020, "LO", "PAT-1"),
        Element(0x00280010, "US", 4),
        Element(0x00420011, "OB", b"%PDF-1.4"),
        Element(0x00720082, "SQ", []),
    ]


def dataset(syntax: TransferSyntax = EXPLICIT, sop_class: str = CT_CLASS, pixels: bool = True) -> bytes:
    encoder = DatasetEncoder(syntax)
    body = encoder.encode(elements(sop_class))
    if pixels:
        body += encoder.element(Element(0x7FE00010, "OW", bytes(range(32))))
    return deflate(body) if syntax is DEFLATED else body


def read(data: bytes, syntax: str = EXPLICIT, limits: TapLimits | None = None, step: int = 0) -> HeaderTap:
    tap = HeaderTap(syntax, limits or TapLimits())
    for start in range(0, len(data), step or max(len(data), 1)):
        tap.feed(memoryview(data)[start : start + (step or len(data))])
    tap.finish()
    return tap


def facts(header: RawHeader) -> tuple[object, ...]:
    return (header.kept_bytes, header.gaps, header.truncated, [tuple(element) for element in header])


def outcome(data: bytes, syntax: str, limits: TapLimits, cuts: list[int]) -> tuple[object, ...]:
    """What a tap says of `data` cut at `cuts`: its header, or what is wrong and where."""
    tap = HeaderTap(syntax, limits)
    edges = [0, *sorted(cuts), len(data)]
    try:
        for start, end in pairwise(edges):
            tap.feed(data[start:end])
        tap.finish()
    except UnreadableDataset as error:
        return (error.comment, error.offset_bytes, error.offending_elements, tap.header_complete)
    return facts(tap.header)


def is_refusal(result: tuple[object, ...]) -> bool:
    """Whether an `outcome` is that nothing can be read."""
    return isinstance(result[0], str)


# Reading


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, DEFLATED, "1.2.840.113619.5.2", "1.2.3.unknown"])
def test_a_whole_data_set_gives_its_header(syntax: str) -> None:
    encoding = {"1.2.840.113619.5.2": IMPLICIT, "1.2.3.unknown": EXPLICIT}.get(syntax, syntax)
    data = dataset(TransferSyntax(encoding))
    tap = read(data, syntax)
    assert tap.header_complete
    assert tap.dataset_bytes == len(data)
    assert tap.header.tags() == [element.tag for element in elements()]
    assert tap.header.text(0x00100020) == "PAT-1"
    assert tap.header.value(0x00280010) == [4]
    assert [entry.text(0x00081150) for entry in tap.header.sequence(0x00081140)] == [CT_CLASS, CT_CLASS]
    code = tap.header.sequence(0x00082112)[0].sequence(0x0040A170)[0]
    assert code.text(0x00080104) == "Head"


def test_the_header_is_complete_when_pixel_data_begins() -> None:
    data = dataset()
    start = data.index(b"\xe0\x7f\x10\x00")
    tap = HeaderTap(EXPLICIT)
    tap.feed(data[:start])
    before = tap.header_complete
    tap.feed(data[start : start + 8])
    assert (before, tap.header_complete) == (False, True)
    assert tap.header.length_bytes == start


def test_without_pixel_data_the_header_is_complete_at_the_end() -> None:
    tap = HeaderTap(EXPLICIT)
    tap.feed(dataset(pixels=False))
    assert not tap.header_complete
    with pytest.raises(LocalProtocolError, match="not ended"):
        _ = tap.header
    tap.finish()
    assert len(tap.header) == len(elements())


def test_an_empty_data_set_has_an_empty_header() -> None:
    assert len(read(b"").header) == 0


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, DEFLATED])
@pytest.mark.parametrize("step", [1, 2, 7, 8, 13])
def test_small_pieces_give_the_same_header(syntax: TransferSyntax, step: int) -> None:
    data = dataset(syntax)
    assert facts(read(data, syntax, step=step).header) == facts(read(data, syntax).header)


@pytest.mark.parametrize("step", [0, 1])
def test_after_the_header_a_known_sequence_is_only_walked_by_its_length_in_implicit_vr(step: int) -> None:
    private = struct.pack("<HHI", 0xFFFC, 0xFFFC, 2) + b"ab"
    broken = struct.pack("<HHI", 0x0008, 0x1140, 8) + b"notanite"
    assert read(private + broken, IMPLICIT, step=step).header_complete


@given(st.data())
def test_no_cut_changes_what_is_found(data: st.DataObject) -> None:
    syntax = data.draw(st.sampled_from([EXPLICIT, IMPLICIT, BIG, DEFLATED]))
    whole = dataset(syntax)
    end = data.draw(st.integers(0, len(whole)))
    damage = data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=2))
    damaged = bytearray(whole)
    for position, value in damage:
        damaged[position] = value
    limits = TapLimits(
        max_value_bytes=data.draw(st.sampled_from([4, 1000])),
        max_header_bytes=data.draw(st.sampled_from([200, 400, 4000])),
        max_elements=data.draw(st.sampled_from([10, 1000])),
    )
    cuts = data.draw(st.lists(st.integers(0, end), max_size=12))
    in_pieces, at_once = (outcome(bytes(damaged[:end]), syntax, limits, each) for each in (cuts, []))
    if syntax == DEFLATED and is_refusal(at_once):
        # zlib gives nothing of a piece with a fault in it, so what came before the fault depends on the cuts.
        assert is_refusal(in_pieces)
    else:
        assert in_pieces == at_once


def test_the_first_of_repeated_elements_counts_and_order_does_not_matter() -> None:
    encoder = DatasetEncoder(EXPLICIT)
    patient = [encoder.element(Element(0x00100020, "LO", name)) for name in ("FIRST", "SECOND")]
    late = encoder.element(Element(0x00080018, "UI", "1.2.3"))
    header = read(patient[0] + patient[1] + late).header
    assert header.text(0x00100020) == "FIRST"
    assert header.text(0x00080018) == "1.2.3"


# Refusing


def level_0_boundaries(syntax: TransferSyntax) -> set[int]:
    encoder = DatasetEncoder(syntax)
    found, position = {0}, 0
    for element in elements():
        position += len(encoder.element(element))
        found.add(position)
    return found


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_a_cut_is_found_at_any_byte_but_between_elements_of_level_0(syntax: TransferSyntax) -> None:
    data = dataset(syntax)
    boundaries = level_0_boundaries(syntax)
    accepted = set()
    for end in range(len(data)):
        try:
            read(data[:end], syntax)
        except UnreadableDataset:
            continue
        accepted.add(end)
    assert accepted == boundaries


def test_a_cut_deflate_stream_is_refused_at_any_byte() -> None:
    data = dataset(DEFLATED)
    stream = data.rstrip(b"\0") if len(data.rstrip(b"\0")) == len(data) - 1 else data
    for end in range(len(stream) - 1):
        with pytest.raises(UnreadableDataset):
            read(data[:end], DEFLATED)


def test_a_cut_names_what_is_missing_and_where() -> None:
    data = dataset()
    with pytest.raises(UnreadableDataset, match="5 bytes are missing") as caught:
        read(data[:-5])
    assert caught.value.offset_bytes == len(data) - 5
    assert caught.value.status == 0xC000


ELEMENT = b"\x08\x00\x50\x11UI\x04\x001.2\x00"


@pytest.mark.parametrize(
    ("body", "offending"),
    [
        (sequence(0x00081140, item(ELEMENT), 12), 0xFFFEE000),
        (sequence(0x00081140, struct.pack("<HHI", 0xFFFE, 0xE000, 8) + ELEMENT), 0x00081150),
        (sequence(0x00081140, ITEM + ELEMENT + SEQUENCE_END), 0xFFFEE0DD),
        (sequence(0x00081140, ITEM + ELEMENT), 0x00100020),
        (sequence(0x00081140, ITEM + ELEMENT + ITEM_END[:6], 26) + b"\x00\x00", 0xFFFEE00D),
        (sequence(0x00081140, item(sequence(0x00081140, b"", 100))), 0x00081140),
        (sequence(0x00081140, item(undefined(0x00081140, b"")[:-8])), 0x00100020),
        (sequence(0x00081140, ELEMENT), 0x00081150),
        (undefined(0x00081140, ITEM_END), 0xFFFEE00D),
        (undefined(0x00081140, item(ELEMENT + ITEM_END)), 0xFFFEE00D),
        (undefined(0x00081140, ITEM + ELEMENT + item(b"")), 0xFFFEE000),
    ],
    ids=[
        "item beyond its sequence",
        "element beyond its item",
        "sequence delimiter in an item",
        "open item at the end of its sequence",
        "delimiter across the end of its sequence",
        "sequence beyond its item",
        "open sequence at the end of its item",
        "element among items",
        "item delimiter among items",
        "delimiter in an item of known length",
        "item in an item",
    ],
)
def test_broken_nesting_is_refused_with_the_element_at_fault(body: bytes, offending: int) -> None:
    following = DatasetEncoder(EXPLICIT).element(Element(0x00100020, "LO", "PAT-1")) + SEQUENCE_END
    with pytest.raises(UnreadableDataset) as caught:
        read(body + following)
    assert caught.value.offending_elements == (offending,)


@pytest.mark.parametrize("tag", [0x00000002, 0x00020010])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("nested", [False, True])
def test_command_and_file_meta_elements_are_no_part_of_a_data_set(
    tag: int, syntax: TransferSyntax, nested: bool
) -> None:
    element = Element(tag, "UI", "1.2")
    data = DatasetEncoder(syntax).encode([Element(0x00081140, "SQ", [[element]])] if nested else [element])
    with pytest.raises(UnreadableDataset, match="not allowed in a data set") as caught:
        read(data, syntax)
    assert caught.value.offending_elements == (tag,)


@pytest.mark.parametrize("lone", [item(b""), ITEM, ITEM_END, SEQUENCE_END])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_items_and_delimiters_outside_a_sequence_are_refused(lone: bytes, syntax: TransferSyntax) -> None:
    with pytest.raises(UnreadableDataset, match="outside any sequence"):
        read(lone, syntax)
    with pytest.raises(UnreadableDataset, match="outside any sequence"):
        read(dataset(syntax) + lone, syntax)


@pytest.mark.parametrize("vr", [b"\0\0", b"lo", b"L1", b"  ", b"\xc4\xd6", b"?O"])
def test_an_explicit_element_needs_two_capital_letters(vr: bytes) -> None:
    with pytest.raises(UnreadableDataset, match="no value representation"):
        read(struct.pack("<HH2sHI", 0x0010, 0x0020, vr, 0, 0))


def test_an_unknown_vr_has_the_long_form() -> None:
    data = struct.pack("<HH2sHI", 0x0010, 0x0020, b"ZZ", 0, 4) + b"abcd"
    element = read(data).header.get(0x00100020)
    assert element is not None
    assert (element.vr, element.value) == ("ZZ", b"abcd")


def test_a_delimiter_that_agrees_with_the_length_of_its_sequence_is_tolerated() -> None:
    data = sequence(0x00081140, item(ELEMENT) + SEQUENCE_END)
    assert len(read(data).header.sequence(0x00081140)) == 1


# UN and private elements


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG])
def test_un_of_undefined_length_holds_implicit_little_endian(syntax: TransferSyntax) -> None:
    content = struct.pack("<HHI", 0x0008, 0x1150, 4) + b"1.2\0"
    body = item(content) + ITEM + content + ITEM_END + SEQUENCE_END
    order = syntax.byte_order
    data = struct.pack(order + "HH2sHI", 0x0009, 0x1001, b"UN", 0, 0xFFFFFFFF) + body
    data += DatasetEncoder(syntax).element(Element(0x00100020, "LO", "PAT-1"))
    header = read(data, syntax, step=5).header
    assert [entry.raw(0x00081150) for entry in header.sequence(0x00091001)] == [b"1.2\0", b"1.2\0"]
    assert header.text(0x00100020) == "PAT-1"


def test_a_private_value_of_undefined_length_is_kept_with_its_items() -> None:
    data = undefined(0x00091001, item(b"") + item(b"abcd"), b"OB") + ELEMENT.replace(
        b"\x08\x00", b"\x10\x00", 1
    )
    element = read(data).header.get(0x00091001)
    assert element is not None
    assert element.value == item(b"") + item(b"abcd")


def test_a_sequence_of_known_length_is_checked_in_implicit_vr_where_the_dictionary_knows_it() -> None:
    broken = struct.pack("<HHI", 0x0008, 0x1140, 8) + b"notanite"
    private = struct.pack("<HHI", 0x0009, 0x1001, 8) + b"notanite"
    with pytest.raises(UnreadableDataset, match="where an item should be"):
        read(broken, IMPLICIT)
    assert read(private, IMPLICIT).header.raw(0x00091001) == b"notanite"


@pytest.mark.parametrize(("sop_class", "refused"), [(DICOS_CT_CLASS, True), (CT_CLASS, False)])
@pytest.mark.parametrize("step", [0, 1])
def test_a_dicos_object_is_read_by_the_dicos_dictionary(sop_class: str, refused: bool, step: int) -> None:
    # (4010,1011) is a sequence for both; the class decides only where dictionaries differ: (0028,0008).
    encoder = DatasetEncoder(IMPLICIT)
    data = encoder.encode([Element(0x00080016, "UI", sop_class), Element(0x00280008, "US", 7)])
    header = read(data, IMPLICIT, step=step).header
    assert header.is_dicos is refused
    assert header.vr(0x00280008) == ("US" if refused else "IS")


# Bounds


@pytest.mark.parametrize("known_length", [False, True])
@pytest.mark.parametrize(("depth", "fits"), [(64, True), (65, False), (300, False)])
def test_sequences_nest_as_deep_as_the_limit_says(known_length: bool, depth: int, fits: bool) -> None:
    body = b""
    for _ in range(depth):
        body = (
            sequence(0x00081140, item(body))
            if known_length
            else undefined(0x00081140, ITEM + body + ITEM_END)
        )
    if fits:
        assert 0x00081140 in read(body).header
        return
    with pytest.raises(UnreadableDataset, match="more than 64 sequences deep"):
        read(body)


def test_ten_thousand_levels_are_refused_at_once_and_without_recursion() -> None:
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + ITEM
    with pytest.raises(UnreadableDataset, match="sequences deep"):
        read(opening * 10_000)


@pytest.mark.parametrize("step", [0, 11])
def test_the_number_of_elements_is_bounded(step: int) -> None:
    encoder = DatasetEncoder(EXPLICIT)
    data = b"".join(encoder.element(Element(0x00091000 + number, "LO", b"")) for number in range(50))
    assert len(read(data, limits=TapLimits(max_elements=50), step=step).header) == 50
    with pytest.raises(UnreadableDataset, match="more than 49 elements"):
        read(data, limits=TapLimits(max_elements=49), step=step)


def test_items_count_as_elements() -> None:
    data = sequence(0x00081140, item(b"") * 50)
    with pytest.raises(UnreadableDataset, match="more than 50 elements"):
        read(data, limits=TapLimits(max_elements=50))
    assert read(data, limits=TapLimits(max_elements=51)).header_complete


def test_fragments_of_pixel_data_do_not_count() -> None:
    data = DatasetEncoder(EXPLICIT).fragments([b"ab"] * 100)
    assert read(data, limits=TapLimits(max_elements=10)).header_complete


@pytest.mark.parametrize("step", [0, 1, 1000])
def test_a_large_value_is_known_but_not_kept(step: int) -> None:
    encoder = DatasetEncoder(EXPLICIT)
    before, document = Element(0x00420010, "ST", "title"), Element(0x00420011, "OB", bytes(70_000))
    data = encoder.encode([before, document, Element(0x00420012, "LO", "application/pdf")])
    header = read(data, step=step).header
    element = header.get(0x00420011)
    assert element is not None
    assert element.value is None
    assert (element.offset_bytes, element.length_bytes) == (len(encoder.element(before)) + 12, 70_000)
    assert header.text(0x00420012) == "application/pdf"
    assert len(header.kept_bytes) == len(data) - 70_000


def test_a_value_of_the_limit_is_kept() -> None:
    data = DatasetEncoder(EXPLICIT).element(Element(0x00420011, "OB", bytes(65_536)))
    assert read(data).header.raw(0x00420011) == bytes(65_536)


@pytest.mark.parametrize("known_length", [False, True])
def test_a_huge_sequence_does_not_cost_the_attributes_behind_it(known_length: bool) -> None:
    encoder = DatasetEncoder(EXPLICIT)
    contour = encoder.element(Element(0x30060050, "DS", "1.0\\2.0\\3.0"))
    many = 1_000
    if known_length:
        big = sequence(0x30060039, item(contour) * many)
    else:
        big = undefined(0x30060039, (ITEM + contour + ITEM_END) * many)
    tail = encoder.element(Element(0x300E0002, "CS", "APPROVED"))
    limits = TapLimits(max_header_bytes=8_192)
    for step in (0, 997):
        header = read(big + tail, limits=limits, step=step).header
        assert header.text(0x300E0002) == "APPROVED"
        assert not header.truncated
        assert len(header.kept_bytes) <= 8_192
        kept = header.sequence(0x30060039)
        assert 100 < len(kept) < many
        assert all(entry.raw(0x30060050) == b"1.0\\2.0\\3.0 " for entry in kept[:-1])
        again = RawHeader.unpack(header.pack())
        assert facts(again) == facts(header)


def test_a_huge_sequence_at_the_end_of_the_header_is_cut_off_cleanly() -> None:
    contour = DatasetEncoder(EXPLICIT).element(Element(0x30060050, "DS", "1.0\\2.0\\3.0"))
    for length in range(600, 700):
        big = undefined(0x30060039, (ITEM + contour + ITEM_END) * 40)
        header = read(big, limits=TapLimits(max_header_bytes=length)).header
        assert len(header.sequence(0x30060039)) >= 8
        assert facts(RawHeader.unpack(header.pack())) == facts(header)


def test_values_are_left_out_before_elements_are() -> None:
    encoder = DatasetEncoder(EXPLICIT)
    data = b"".join(encoder.element(Element(0x00091000 + number, "LO", "v" * 60)) for number in range(60))
    header = read(data, limits=TapLimits(max_header_bytes=4_000)).header
    assert len(header.kept_bytes) <= 4_000
    assert header.truncated
    assert header.raw(0x00091000) == b"v" * 60
    assert any(element.value is None for element in header)
    assert len(header) < 60


def test_a_truncated_header_does_not_end_the_checking() -> None:
    encoder = DatasetEncoder(EXPLICIT)
    data = b"".join(encoder.element(Element(0x00091000 + number, "LO", "v" * 60)) for number in range(60))
    limits = TapLimits(max_header_bytes=1_000)
    assert read(data, limits=limits).header.truncated
    with pytest.raises(UnreadableDataset):
        read(data[:-1], limits=limits)


@pytest.mark.parametrize("step", [0, 65_537])
def test_the_number_of_remembered_elements_is_bounded(step: int) -> None:
    tags = [group << 16 | number for group in (0x0009, 0x000B) for number in range(0x1000, 0x2800)]
    data = b"".join(struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"LO", 0) for tag in tags)
    header = read(data, step=step).header
    assert len(tags) > 8_192
    assert len(header) == 8_192
    assert header.truncated
    fewer = read(data, step=step, limits=TapLimits(max_indexed_elements=300)).header
    assert (len(fewer), fewer.truncated) == (300, True)


def test_memory_does_not_follow_the_size_of_pixel_data() -> None:
    size = 256 * 1_048_576
    tap = HeaderTap(EXPLICIT)
    tap.feed(dataset(pixels=False) + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, size))
    chunk = memoryview(bytes(1_048_576))
    tracemalloc.start()
    try:
        for _ in range(256):
            tap.feed(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    tap.finish()
    assert peak < 65_536
    assert tap.offset_bytes == tap.dataset_bytes


def test_memory_is_bounded_when_the_header_never_ends() -> None:
    limits = TapLimits(max_header_bytes=262_144)
    tap = HeaderTap(EXPLICIT, limits)
    tap.feed(struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF))
    piece = item(b"") * 1_000
    tracemalloc.start()
    try:
        for _ in range(100):
            tap.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 262_144


# Pixel data


def test_encapsulated_pixel_data_is_walked_to_its_delimiter() -> None:
    encoder = DatasetEncoder(EXPLICIT)
    head = encoder.encode(elements())
    data = head + encoder.fragments([b"abcd", b"", b"efgh"], vr="OW")
    for step in (0, 1, 9):
        assert read(data, step=step).header.length_bytes == len(head)
    for end in range(len(head) + 1, len(data)):
        with pytest.raises(UnreadableDataset):
            read(data[:end])


@pytest.mark.parametrize("wrong", [ITEM, ITEM_END, ELEMENT], ids=["undefined", "item delimiter", "element"])
def test_only_fragments_of_known_length_lie_in_encapsulated_pixel_data(wrong: bytes) -> None:
    opening = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    with pytest.raises(UnreadableDataset, match="where a fragment should be"):
        read(opening + item(b"") + wrong + bytes(16))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_what_follows_pixel_data_is_walked_too(syntax: TransferSyntax) -> None:
    encoder = DatasetEncoder(syntax)
    signature = Element(0xFFFAFFFA, "SQ", [[Element(0x04000005, "US", 1)]], undefined_length=True)
    padding = Element(0xFFFCFFFC, "OB", bytes(10))
    boundary = len(dataset(syntax)) + len(encoder.element(signature))
    data = dataset(syntax) + encoder.element(signature) + encoder.element(padding)
    assert 0xFFFAFFFA not in read(data, syntax, step=3).header
    for end in range(len(dataset(syntax)) + 1, len(data)):
        if end != boundary:
            with pytest.raises(UnreadableDataset):
                read(data[:end], syntax)


# DICOS's lengths


def test_dicos_64_bit_lengths_of_their_own_transfer_syntax() -> None:
    encoder = DatasetEncoder(EXPLICIT)
    bitmap = struct.pack("<HH2sHQ", 0x4010, 0x1006, b"OB", 0, 6) + b"bitmap"
    palette = struct.pack("<HH2sHQ", 0x0028, 0x1201, b"OW", 0, 8) + bytes(8)
    patient = encoder.element(Element(0x00100020, "LO", "BAG-1"))
    pixels = struct.pack("<HH2sHQ", 0x7FE0, 0x0010, b"OW", 0, 32) + bytes(32)
    data = patient + palette + sequence(0x40101011, item(bitmap)) + pixels
    for step in (0, 1):
        header = read(data, LONG, step=step).header
        assert header.raw(0x00281201) == bytes(8)
        assert header.sequence(0x40101011)[0].raw(0x40101006) == b"bitmap"
    for end in range(len(data) - len(pixels) + 1, len(data)):
        with pytest.raises(UnreadableDataset):
            read(data[:end], LONG)
    with pytest.raises(UnreadableDataset):
        read(data + b"\0\0\0\0", LONG)


def test_pixel_data_beyond_four_gigabytes_is_followed() -> None:
    tap = HeaderTap(LONG)
    tap.feed(struct.pack("<HH2sHQ", 0x7FE0, 0x0010, b"OW", 0, 5 << 32))
    assert tap.offset_bytes == 16 + (5 << 32)
    with pytest.raises(UnreadableDataset, match="missing"):
        tap.finish()


def test_usual_lengths_are_tolerated_before_pixel_data_in_the_64_bit_transfer_syntax() -> None:
    palette = struct.pack("<HH2sHI", 0x0028, 0x1201, b"OW", 0, 8) + b"\1\2\3\4\5\6\7\x08"
    private = undefined(0x00291001, item(b"abcd"), b"OB")
    header = read(palette + private + dataset(EXPLICIT, pixels=False), LONG).header
    assert header.raw(0x00281201) == b"\1\2\3\4\5\6\7\x08"
    assert header.raw(0x00291001) == item(b"abcd")


def od(form: str, values: bytes) -> bytes:
    head = struct.pack("<HH", 0x7FE0, 0x0012)
    return {
        "conformant": head + b"OD" + struct.pack("<HI", 0, len(values)),
        "length right behind the VR": head + b"OD" + struct.pack("<Q", len(values)),
        "length behind reserved bytes": head + b"OD" + struct.pack("<HQ", 0, len(values)),
        "implicit": head + struct.pack("<I", len(values)),
        "implicit, 64 bits": head + struct.pack("<Q", len(values)),
    }[form] + values


OD_FORMS = ["conformant", "length right behind the VR", "length behind reserved bytes"]
DOUBLES = struct.pack("<8d", *range(8))


@pytest.mark.parametrize("syntax", [EXPLICIT, LONG])
@pytest.mark.parametrize("form", OD_FORMS)
@pytest.mark.parametrize("step", [0, 1, 5])
@pytest.mark.parametrize("values", [DOUBLES, b"\x01\x02\x03\x04\x05\x06\x07\x08" * 40])
def test_each_way_dicos_writes_od_ends_cleanly(
    syntax: TransferSyntax, form: str, step: int, values: bytes
) -> None:
    head = DatasetEncoder(EXPLICIT).encode(elements(DICOS_CT_CLASS)[:3])
    trailing = DatasetEncoder(EXPLICIT).element(Element(0xFFFCFFFC, "OB", bytes(6)))
    for tail in (b"", trailing) if syntax is EXPLICIT else (b"",):
        data = head + od(form, values) + tail
        assert read(data, syntax, step=step).header.length_bytes == len(head)


@pytest.mark.parametrize("form", OD_FORMS)
def test_cut_od_is_refused_unless_another_reading_ends_there(form: str) -> None:
    head = DatasetEncoder(EXPLICIT).encode(elements(DICOS_CT_CLASS)[:3])
    data = head + od(form, DOUBLES)
    readable = {cut for cut in range(1, 32) if _is_readable(data[:-cut], EXPLICIT)}
    # A 64-bit length behind reserved bytes, cut by four, is a conformant one: no byte tells them apart.
    assert readable == ({4} if form == "length behind reserved bytes" else set())


def _is_readable(data: bytes, syntax: str) -> bool:
    try:
        read(data, syntax)
    except UnreadableDataset:
        return False
    return True


@pytest.mark.parametrize(("form", "dicos"), [(form, dicos) for form in OD_FORMS for dicos in (False, True)])
def test_only_dicos_objects_may_write_od_their_own_way(form: str, dicos: bool) -> None:
    head = DatasetEncoder(EXPLICIT).encode(elements(DICOS_CT_CLASS if dicos else CT_CLASS)[:3])
    assert _is_readable(head + od(form, DOUBLES), EXPLICIT) is (dicos or form == "conformant")


def test_a_dicos_version_is_enough_to_be_a_dicos_object() -> None:
    head = DatasetEncoder(EXPLICIT).encode([Element(0x4010103A, "CS", "V03")])
    assert _is_readable(head + od(OD_FORMS[1], DOUBLES), EXPLICIT)


@pytest.mark.parametrize("form", ["implicit", "implicit, 64 bits"])
@pytest.mark.parametrize("step", [0, 1])
def test_each_way_dicos_writes_od_in_implicit_vr_ends_cleanly(form: str, step: int) -> None:
    head = DatasetEncoder(IMPLICIT).encode(elements(DICOS_CT_CLASS)[:3])
    data = head + od(form, DOUBLES)
    assert read(data, IMPLICIT, step=step).header.length_bytes == len(head)
    with pytest.raises(UnreadableDataset):
        read(data[:-2], IMPLICIT)


def _count_steps(tap: HeaderTap, data: bytes) -> int:
    return sum(1 for _ in tap.steps(data))


def test_a_value_is_one_step_however_long_and_small_elements_are_many() -> None:
    data = dataset(pixels=False) + DatasetEncoder().element(Element(0x7FE00010, "OW", bytes(1_000_000)))
    tap = HeaderTap(EXPLICIT.value)
    assert _count_steps(tap, data) <= 2
    tap.finish()
    items = undefined(0x00081140, item(b"") * 10_000)
    tap = HeaderTap(EXPLICIT.value)
    assert _count_steps(tap, items) >= len(items) // STEP_BYTES
    tap.finish()


def test_what_inflates_is_as_many_steps_as_if_it_had_come_so() -> None:
    items = undefined(0x00081140, item(b"") * 10_000)
    tap = HeaderTap(DEFLATED.value)
    data = deflate(items)
    assert len(data) < 1_000
    assert _count_steps(tap, data) >= len(items) // STEP_BYTES
    tap.finish()
