"""Re-encoding between the uncompressed transfer syntaxes: same elements, same values, cut anywhere."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
import warnings
from functools import partial
from io import BytesIO

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.filereader import read_dataset

from scp_server.errors import CannotTranscode, UnreadableDataset
from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.raw_header import AttributeSource, RawHeader
from scp_server.objects.reencoding import UNCOMPRESSED, reencoder
from scp_server.objects.uids import transfer_syntax
from scp_server.objects.vr import little_endian_words
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax, Value, deflate
from scp_server.testing.dicos_objects import (
    DICOS_CT_IMAGE_STORAGE,
    dicos_ct,
    dicos_dx,
    dicos_tdr,
    large_dicos_ct,
)
from scp_server.testing.objects import JAPANESE, ct_image, encapsulated_pdf, structured_report

NATIVE = [TransferSyntax(uid) for uid in UNCOMPRESSED]
PAIRS = list(itertools.product(NATIVE, NATIVE))
ELE, ILE = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN
EBE, LONG = TransferSyntax.EXPLICIT_VR_BIG_ENDIAN, TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64
DEFLATED = TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
DICTIONARY_VRS = {
    0x00080008: "CS", 0x00080018: "UI", 0x00080020: "DA", 0x00091001: "UN", 0x00100010: "PN",
    0x00189073: "FD", 0x00209057: "UL", 0x00280009: "AT", 0x00280010: "US", 0x00281201: "OW",
    0x0040A160: "UT", 0x00420011: "OB", 0x00660016: "OF", 0x00660129: "OL", 0x7FE00001: "OV",
}  # fmt: skip


def reencoded(dataset: bytes, source: str, target: str, step: int = 0) -> bytes:
    found = reencoder(source, target, len(dataset))
    assert found is not None
    step = step or len(dataset) or 1
    pieces: list[bytes] = []
    for start in range(0, len(dataset), step):
        pieces += found.feed(dataset[start : start + step])
    return b"".join([*pieces, *found.finish()])


def header(dataset: bytes, syntax: str) -> RawHeader:
    tap = HeaderTap(syntax, TapLimits(max_value_bytes=1 << 22))
    tap.feed(dataset)
    tap.finish()
    return tap.header


def elements(source: AttributeSource) -> list[object]:
    """Tags, VRs and values, sequences item by item; words in little endian, group lengths left out."""
    found: list[object] = []
    for element in source:
        if not element.tag & 0xFFFF:
            continue
        if element.vr == "SQ":
            found.append((element.tag, [elements(item) for item in source.items(element.tag)]))
        else:
            value = little_endian_words(element.vr, element.value or b"", source.little_endian)
            found.append((element.tag, element.vr, value))
    return found


def pydicom_dataset(dataset: bytes, syntax: str) -> pydicom.Dataset:
    """The data set as pydicom reads it, which does not know DICOS's 64-bit lengths."""
    if syntax == LONG:
        dataset, syntax = reencoded(dataset, LONG, ELE), ELE
    kind = transfer_syntax(syntax)
    if kind.deflated:
        import zlib

        dataset = zlib.decompress(dataset, -zlib.MAX_WBITS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read_dataset(BytesIO(dataset), kind.implicit_vr, kind.little_endian)
        for element in found.iterall():
            if element.VR in WORDS and element.value and not kind.little_endian:
                # pydicom leaves the bytes of words as they are.
                element.value = little_endian_words(element.VR, element.value, little_endian=False)
        return found


def plain(dataset: pydicom.Dataset) -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(dataset.to_json_dict())


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_an_object_in_another_transfer_syntax_is_the_one_the_test_kit_writes_in_it(
    source: TransferSyntax, target: TransferSyntax
) -> None:
    for make in (
        partial(ct_image, sequences=True, undefined_length=True),
        partial(structured_report, undefined_length=True, patient=JAPANESE),
        encapsulated_pdf,
        dicos_dx,
    ):
        stored, wanted = make(transfer_syntax=source), make(transfer_syntax=target)
        sent = reencoded(stored.dataset, source, target)
        assert elements(header(sent, target)) == elements(header(wanted.dataset, target))
        assert plain(pydicom_dataset(sent, target)) == plain(pydicom_dataset(wanted.dataset, target))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_dicos_objects_keep_the_vrs_of_their_own_dictionary(
    source: TransferSyntax, target: TransferSyntax
) -> None:
    for make in (dicos_ct, dicos_dx, dicos_tdr):
        stored, wanted = make(transfer_syntax=source), make(transfer_syntax=target)
        sent = reencoded(stored.dataset, source, target)
        assert elements(header(sent, target)) == elements(header(wanted.dataset, target))
        back = reencoded(sent, target, source)
        assert elements(header(back, source)) == elements(header(stored.dataset, source))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_where_the_data_set_is_cut_makes_no_difference(
    source: TransferSyntax, target: TransferSyntax
) -> None:
    stored = ct_image(transfer_syntax=source, rows=4, columns=5, sequences=True, private=True).dataset
    whole = reencoded(stored, source, target)
    for step in (1, 2, 3, 5, 7, 11, 13):
        assert reencoded(stored, source, target, step) == whole
    for cut in range(0, len(stored), 1 if len(stored) < 1500 else 3):
        found = reencoder(source, target, len(stored))
        assert found is not None
        pieces = found.feed(stored[:cut]) + found.feed(stored[cut:]) + found.finish()
        assert b"".join(pieces) == whole


VALUES: dict[str, st.SearchStrategy[Value]] = {
    "CS": st.text("ABC 01", max_size=16), "PN": st.text("abc^=", max_size=64), "DA": st.just("20260102"),
    "UI": st.just("1.2.3"), "UT": st.text("xyz\\", max_size=300),
    "US": st.lists(st.integers(0, 0xFFFF), max_size=5), "UL": st.lists(st.integers(0, 1 << 31), max_size=5),
    "AT": st.lists(st.integers(0, 0xFFFFFFFF), max_size=3),
    "FD": st.lists(st.floats(allow_nan=False), max_size=4),
}  # fmt: skip
WORDS = {"OW": 2, "OF": 4, "OL": 4, "OV": 8, "OB": 2, "UN": 2}


@st.composite
def element_lists(draw: st.DrawFn, depth: int = 2) -> list[Element]:
    tags = draw(st.sets(st.sampled_from(sorted(DICTIONARY_VRS)), max_size=6))
    found = []
    for tag in tags:
        vr = DICTIONARY_VRS[tag]
        if vr in WORDS:
            size = WORDS[vr] * draw(st.integers(0, 9))
            found.append(Element(tag, vr, draw(st.binary(min_size=size, max_size=size))))
        else:
            found.append(Element(tag, vr, draw(VALUES[vr])))
    if depth and draw(st.booleans()):
        items: list[list[Element]] = draw(st.lists(element_lists(depth - 1), max_size=3))
        found.append(Element(0x00081140, "SQ", items, draw(st.booleans())))
    return found


@settings(deadline=None, max_examples=60)
@given(
    content=element_lists(),
    pair=st.sampled_from(PAIRS),
    step=st.integers(1, 40),
)
def test_there_and_back_gives_the_same_elements_and_values(
    content: list[Element], pair: tuple[TransferSyntax, TransferSyntax], step: int
) -> None:
    source, target = pair
    stored = DatasetEncoder(source).encode(content)
    stored = deflate(stored) if source is DEFLATED else stored
    sent = reencoded(stored, source, target, step)
    back = reencoded(sent, target, source, step)
    assert elements(header(back, source)) == elements(header(stored, source))
    assert plain(pydicom_dataset(sent, target)) == plain(pydicom_dataset(stored, source))


def test_private_elements_are_unknown_behind_implicit_vr_and_keep_their_bytes() -> None:
    private = [Element(0x00091002, "US", [1, 2]), Element(0x00090010, "LO", "SCP TEST KIT")]
    stored = DatasetEncoder(EBE).encode(private)
    back = reencoded(reencoded(stored, EBE, ILE), ILE, EBE)
    assert elements(header(back, EBE)) == [
        (0x00090010, "LO", b"SCP TEST KIT"),
        (0x00091002, "UN", b"\1\0\2\0"),
    ]


def test_a_sequence_of_vr_un_stays_un_and_is_implicit_little_endian_inside() -> None:
    inside = DatasetEncoder(ILE).element(
        Element(0x00091010, "SQ", [[Element(0x00100010, "PN", "A^B"), Element(0x00280010, "US", 3)]], True)
    )[8:]
    for source, target in ((ELE, EBE), (EBE, ELE), (ELE, ILE), (ILE, EBE), (LONG, EBE)):
        stored = DatasetEncoder(source).header(0x00091010, "UN", 0xFFFFFFFF) + inside
        sent = reencoded(stored, source, target, 1)
        assert sent == DatasetEncoder(target).header(0x00091010, "UN", 0xFFFFFFFF) + inside


def test_a_value_too_long_for_its_vr_becomes_un_and_comes_back() -> None:
    stored = DatasetEncoder(ILE).element(Element(0x30060050, "DS", "1.25\\" * 14_000))
    for target in (ELE, EBE, LONG):
        sent = reencoded(stored, ILE, target)
        assert header(sent, target).vr(0x30060050) == "UN"
        assert reencoded(sent, target, ILE) == stored


def test_signed_pixels_make_alternatives_signed() -> None:
    for representation, vr in ((0, "US"), (1, "SS")):
        stored = DatasetEncoder(ILE).encode(
            [Element(0x00280103, "US", representation), Element(0x00280120, "US", 0x8000)]
        )
        sent = reencoded(stored, ILE, EBE)
        assert header(sent, EBE).vr(0x00280120) == vr
        assert pydicom_dataset(sent, EBE).PixelPaddingValue in (0x8000, -0x8000)


def test_group_lengths_go_where_they_would_be_wrong_and_stay_where_they_are_right() -> None:
    content = [Element(0x00080000, "UL", 12), Element(0x00080060, "CS", "CT")]
    stored = DatasetEncoder(ELE).encode(content)
    assert 0x00080000 in header(reencoded(stored, ELE, EBE), EBE)
    assert header(reencoded(stored, ELE, ILE), ILE).tags() == [0x00080060]


def test_native_pixels_above_4_gib_cannot_leave_64_bit_lengths() -> None:
    large = large_dicos_ct(5 << 30)
    assert reencoder(LONG, ELE, large.size_bytes) is None
    found = reencoder(LONG, ELE)
    assert found is not None
    with pytest.raises(CannotTranscode, match="4 GiB"):
        found.feed(large.head)


def _od_object(header_bytes: bytes, value: bytes) -> bytes:
    head = DatasetEncoder(ELE).encode(
        [Element(0x00080016, "UI", DICOS_CT_IMAGE_STORAGE + ".2"), Element(0x00280010, "US", 2)]
    )
    return head + header_bytes + value


@pytest.mark.parametrize("target", [EBE, ILE, LONG])
def test_the_three_lengths_of_dicos_64_bit_pixels_become_the_standards(target: TransferSyntax) -> None:
    value = bytes(range(256)) * 1024
    tag_and_vr = bytes.fromhex("e07f1200") + b"OD"
    standard = _od_object(tag_and_vr + struct.pack("<HI", 0, len(value)), value)
    wanted = reencoded(standard, ELE, target)
    for form in (struct.pack("<Q", len(value)), struct.pack("<HQ", 0, len(value))):
        for step in (0, 1 << 10, 1):
            assert reencoded(_od_object(tag_and_vr + form, value), ELE, target, step) == wanted
    unknown = reencoder(ELE, target)
    assert unknown is not None
    with pytest.raises(CannotTranscode, match="length is not known"):
        unknown.feed(standard)


@pytest.mark.parametrize("vr", ["OB", "OW", "OF", "OL", "OD", "OV"])
def test_64_bit_lengths_come_and_go(vr: str) -> None:
    content = [
        Element(0x00280010, "US", 2),
        Element(0x7FE00010 if vr in "OBOW" else 0x7FE00013, vr, bytes(range(64))),
    ]
    item = [Element(0x00420011, "OB", b"1234")]
    in_item = [Element(0x00081140, "SQ", [item])]
    stored = DatasetEncoder(ELE).encode(in_item + content)
    sent = reencoded(stored, ELE, LONG, 3)
    assert sent == DatasetEncoder(LONG).encode(
        [Element(0x00081140, "SQ", [item], undefined_length=True), *content]
    )
    assert elements(header(reencoded(sent, LONG, ELE), ELE)) == elements(header(stored, ELE))


def test_a_vr_nobody_knows_keeps_its_byte_order() -> None:
    stored = struct.pack("<HH2sHI", 0x0009, 0x1001, b"QQ", 0, 4) + b"1234"
    assert reencoded(stored, ELE, ILE) == struct.pack("<HHI", 0x0009, 0x1001, 4) + b"1234"
    found = reencoder(ELE, EBE)
    assert found is not None
    with pytest.raises(CannotTranscode, match="unknown VR QQ"):
        found.feed(stored)


def test_only_the_uncompressed_transfer_syntaxes_are_reencoded() -> None:
    assert reencoder("1.2.840.113619.5.2", ELE) is None
    assert reencoder(ELE, TransferSyntax.JPEG_BASELINE) is None
    assert reencoder(TransferSyntax.RLE_LOSSLESS, ELE) is None
    found = reencoder(ELE, EBE)
    assert found is not None
    with pytest.raises(CannotTranscode, match="encapsulated"):
        found.feed(DatasetEncoder(ELE).fragments([b"12"]))


@pytest.mark.parametrize(("source", "target"), [(ELE, ILE), (ILE, EBE), (EBE, LONG), (DEFLATED, ILE)])
def test_a_data_set_that_is_cut_is_refused(source: TransferSyntax, target: TransferSyntax) -> None:
    stored = ct_image(transfer_syntax=source, rows=8, columns=8, sequences=True).dataset
    for length in (len(stored) - 3, len(stored) // 2 + 1, 300):
        with pytest.raises(UnreadableDataset):
            reencoded(stored[:length], source, target)


@settings(deadline=None, max_examples=300)
@given(
    pair=st.sampled_from(PAIRS),
    damages=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
    step=st.integers(1, 500),
)
def test_damage_is_an_error_or_another_data_set_but_nothing_else(
    pair: tuple[TransferSyntax, TransferSyntax], damages: list[tuple[int, int]], step: int
) -> None:
    source, target = pair
    stored = bytearray(
        ct_image(transfer_syntax=source, rows=2, columns=2, sequences=True, undefined_length=True).dataset
    )
    for position, byte in damages:
        stored[position % len(stored)] = byte
    try:
        sent = reencoded(bytes(stored), source, target, step)
    except (UnreadableDataset, CannotTranscode):
        return
    assert len(sent) < 10 * len(stored) + 100_000


@pytest.mark.parametrize("target", [EBE, ILE, ELE])
def test_a_large_value_streams_through_in_constant_memory(target: TransferSyntax) -> None:
    large = large_dicos_ct(256 << 20)
    found = reencoder(LONG, target, large.size_bytes)
    assert found is not None
    sent = 0
    tracemalloc.start()
    try:
        for chunk in large.chunks():
            sent += sum(map(len, found.feed(chunk)))
        sent += sum(map(len, found.finish()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent > 256 << 20
    assert peak < 16 << 20
