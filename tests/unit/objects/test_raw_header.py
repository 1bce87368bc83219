"""The kept header: any attribute can be read from it, and what was packed comes back or is refused."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.raw_elements import Gap
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.uids import transfer_syntax
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax

EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
IMPLICIT = TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN
BIG = TransferSyntax.EXPLICIT_VR_BIG_ENDIAN
SYNTAXES = [EXPLICIT, IMPLICIT, BIG]
DICOS_CT_CLASS = "1.2.840.10008.5.1.4.1.1.501.1"


def header_of(
    elements: list[Element],
    syntax: TransferSyntax = EXPLICIT,
    codec: str = "ascii",
    limits: TapLimits | None = None,
) -> RawHeader:
    tap = HeaderTap(syntax, limits or TapLimits())
    tap.feed(DatasetEncoder(syntax, codec).encode(elements))
    tap.finish()
    return tap.header


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    ("element", "values"),
    [
        (Element(0x00280010, "US", 512), [512]),
        (Element(0x00281041, "SS", -1), [-1]),
        (Element(0x00189073, "FD", 1.5), [1.5]),
        (Element(0x40101017, "FL", 0.25), [0.25]),
        (Element(0x00200013, "IS", "17"), [17]),
        (Element(0x00200013, "IS", "1\\2 "), [1, 2]),
        (Element(0x00200013, "IS", "1A"), ["1A"]),
        (Element(0x00280030, "DS", "0.5\\0.25"), [0.5, 0.25]),
        (Element(0x00280030, "DS", "wide"), ["wide"]),
        (Element(0x00080008, "CS", "ORIGINAL\\PRIMARY"), ["ORIGINAL", "PRIMARY"]),
        (Element(0x00204000, "LT", "a\\b "), ["a\\b"]),
        (Element(0x00080018, "UI", "1.2.3"), ["1.2.3"]),
        (Element(0x00280009, "AT", [0x00181063, 0x00280010]), [0x00181063, 0x00280010]),
        (Element(0x00100020, "LO", ""), []),
        (Element(0x00420011, "OB", b"ab"), []),
        (Element(0x00200013, "IS", "9" * 30), ["9" * 30]),
    ],
)
def test_values_are_decoded_by_their_vr(
    syntax: TransferSyntax, element: Element, values: list[object]
) -> None:
    header = header_of([element], syntax)
    assert header.value(element.tag) == values
    assert header.vr(element.tag) == element.vr


def test_an_absent_element_is_none_or_empty_everywhere() -> None:
    header = header_of([])
    assert header.get(0x00100020) is None
    assert header.raw(0x00100020) is None
    assert header.vr(0x00100020) is None
    assert header.text(0x00100020) is None
    assert header.value(0x00100020) == []
    assert header.sequence(0x00081140) == []
    assert header.stream_vr(0x00100020) == b""
    assert 0x00100020 not in header


def test_text_uses_the_character_set_of_the_item_or_of_what_is_around_it() -> None:
    plain = [Element(0x00100010, "PN", "J\u00e9".encode("latin-1"))]
    own = [Element(0x00080005, "CS", "ISO_IR 192"), Element(0x00100010, "PN", "J\u00e9".encode())]
    header = header_of([Element(0x00080005, "CS", "ISO_IR 100"), Element(0x00081140, "SQ", [plain, own])])
    assert [item.text(0x00100010) for item in header.sequence(0x00081140)] == ["J\u00e9", "J\u00e9"]
    assert header.specific_character_set == b"ISO_IR 100"


def test_offsets_and_lengths_are_those_in_the_data_set() -> None:
    data = DatasetEncoder(EXPLICIT).encode(
        [Element(0x00100010, "PN", "Doe"), Element(0x00100020, "LO", "ID")]
    )
    element = header_of([Element(0x00100010, "PN", "Doe"), Element(0x00100020, "LO", "ID")]).get(0x00100020)
    assert element is not None
    assert data[element.offset_bytes : element.offset_bytes + element.length_bytes] == element.value == b"ID"


def test_in_implicit_vr_dicos_objects_have_the_dicos_vrs() -> None:
    elements = [Element(0x00080016, "UI", DICOS_CT_CLASS), Element(0x00280008, "US", 7)]
    dicos = header_of([*elements, Element(0x00080118, "CS", "LOWER_LEFT")], IMPLICIT)
    assert dicos.value(0x00280008) == [7]
    assert dicos.vr(0x00080118) == "CS"
    dicom = header_of(
        [Element(0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.2"), Element(0x00280008, "IS", "7")], IMPLICIT
    )
    assert dicom.value(0x00280008) == [7]


def test_the_vr_in_the_stream_is_believed() -> None:
    assert header_of([Element(0x00280008, "US", 7)]).value(0x00280008) == [7]
    assert header_of([Element(0x00280008, "IS", "7")]).value(0x00280008) == [7]


# Packing


def nested(syntax: TransferSyntax) -> list[Element]:
    code = [Element(0x00080100, "SH", "T-D1100"), Element(0x00420011, "OB", bytes(200))]
    concept = [Element(0x0040A168, "SQ", [code], undefined_length=True), Element(0x0040A040, "CS", "CODE")]
    return [
        Element(0x00080016, "UI", DICOS_CT_CLASS),
        Element(0x00080018, "UI", "0728.13"),
        Element(0x00081140, "SQ", [concept, concept]),
        Element(0x00100020, "LO", "BAG-1"),
        Element(0x0040A730, "SQ", [concept, []], undefined_length=True),
        Element(0x00420011, "OB", bytes(500)),
        Element(0x4010103A, "CS", "V03"),
    ]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "limits",
    [
        TapLimits(),
        TapLimits(max_value_bytes=100),
        TapLimits(max_value_bytes=100, max_header_bytes=600),
        TapLimits(max_header_bytes=300),
    ],
)
def test_a_packed_header_comes_back_whole(syntax: TransferSyntax, limits: TapLimits) -> None:
    header = header_of(nested(syntax), syntax, limits=limits)
    again = RawHeader.unpack(header.pack())
    assert again.transfer_syntax == header.transfer_syntax
    assert list(again) == list(header)
    assert (again.gaps, again.truncated, again.is_dicos) == (header.gaps, header.truncated, header.is_dicos)
    assert again.length_bytes == header.length_bytes
    for tag in (0x00081140, 0x0040A730):
        assert [list(item) for item in again.sequence(tag)] == [list(item) for item in header.sequence(tag)]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_large_values_inside_sequences_are_gaps(syntax: TransferSyntax) -> None:
    header = header_of(nested(syntax), syntax, limits=TapLimits(max_value_bytes=100))
    data = DatasetEncoder(syntax).encode(nested(syntax))
    assert [gap.length_bytes for gap in header.gaps] == [200, 200, 200, 500]
    for gap in header.gaps:
        assert data[gap.offset_bytes : gap.offset_bytes + gap.length_bytes] == bytes(gap.length_bytes)
    for tag, count in ((0x00081140, 2), (0x0040A730, 2)):
        items = header.sequence(tag)
        assert len(items) == count
        code = items[0].sequence(0x0040A168)[0]
        assert code.text(0x00080100) == "T-D1100"
        value = code.get(0x00420011)
        assert value is not None
        assert (value.value, value.length_bytes) == (None, 200)
        assert items[0].text(0x0040A040) == "CODE"
    assert header.text(0x4010103A) == "V03"


def test_packing_compresses() -> None:
    header = header_of([Element(0x00091000 + number, "LO", "the same value") for number in range(100)])
    assert len(header.pack()) * 4 < len(header.kept_bytes)


@given(st.data())
def test_a_damaged_packed_header_is_refused_or_read_but_never_more(data: st.DataObject) -> None:
    packed = bytearray(header_of(nested(EXPLICIT), limits=TapLimits(max_value_bytes=100)).pack())
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    packed = packed[: data.draw(st.integers(0, len(packed)))]
    _read_everything(bytes(packed))


@given(st.data())
def test_a_damaged_body_is_refused_or_read_but_never_more(data: st.DataObject) -> None:
    header = header_of(nested(EXPLICIT), limits=TapLimits(max_value_bytes=100))
    body = bytearray(zlib.decompress(header.pack()[4:]))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    _read_everything(b"SRH\x01" + zlib.compress(bytes(body)))


def _read_everything(packed: bytes) -> None:
    try:
        header = RawHeader.unpack(packed)
    except ValueError:
        return
    for element in header:
        header.value(element.tag)
        for item in header.items(element.tag):
            for inner in item:
                item.value(inner.tag)
                item.sequence(inner.tag)


def test_unpacking_is_bounded() -> None:
    bomb = b"SRH\x01" + zlib.compress(bytes(64 * 1_048_576))
    with pytest.raises(ValueError, match="more than 1000000 bytes"):
        RawHeader.unpack(bomb, max_bytes=1_000_000)


@pytest.mark.parametrize(
    "packed",
    [b"", b"SRH\x02" + zlib.compress(bytes(7)), b"SRH\x01", b"SRH\x01abc", b"SRH\x01" + zlib.compress(b"")],
)
def test_what_is_no_packed_header_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="packed header"):
        RawHeader.unpack(packed)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_cut_or_extended_packed_header_is_refused(cut: int) -> None:
    packed = header_of(nested(EXPLICIT)).pack()
    for damaged in (packed[:-cut], packed + bytes(cut)):
        with pytest.raises(ValueError, match="packed header"):
            RawHeader.unpack(damaged)


@pytest.mark.parametrize("gap", [Gap(0, 0), Gap(99, 1), Gap(1 << 63, 1)])
def test_impossible_gaps_are_refused(gap: Gap) -> None:
    raw = DatasetEncoder(EXPLICIT).element(Element(0x00100020, "LO", "ID"))
    good = RawHeader(transfer_syntax(EXPLICIT), raw)
    body = zlib.decompress(good.pack()[4:])
    uid = EXPLICIT.encode()
    assert body == struct.pack("<BHI", 0, len(uid), 0) + uid + raw
    damaged = struct.pack("<BHI", 0, len(uid), 1) + uid + struct.pack("<QQ", *gap) + raw
    with pytest.raises(ValueError, match="gap"):
        RawHeader.unpack(b"SRH\x01" + zlib.compress(damaged))


def test_a_gap_that_no_element_ends_with_is_refused_at_once() -> None:
    raw = b"".join(DatasetEncoder(EXPLICIT).element(Element(0x00100020 + n, "LO", "ID")) for n in range(3))
    uid = EXPLICIT.encode()
    gap = struct.pack("<QQ", 12, 1 << 60)
    damaged = struct.pack("<BHI", 0, len(uid), 1) + uid + gap + raw
    with pytest.raises(ValueError, match="was not kept"):
        RawHeader.unpack(b"SRH\x01" + zlib.compress(damaged))


# pydicom


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_pydicom_gets_the_same_values(syntax: TransferSyntax) -> None:
    text = "J\u00e9r\u00f4me"
    reference = [Element(0x00081155, "UI", "1.2.3"), Element(0x00100010, "PN", text)]
    dataset = header_of(
        [
            Element(0x00080005, "CS", "ISO_IR 100"),
            Element(0x00081140, "SQ", [reference, reference]),
            Element(0x00100010, "PN", text),
            Element(0x00280010, "US", 512),
            Element(0x00280030, "DS", "0.5\\0.25"),
        ],
        syntax,
        "latin-1",
    ).to_pydicom()
    assert dataset.PatientName == text
    assert dataset.Rows == 512
    assert list(dataset.PixelSpacing) == [0.5, 0.25]
    assert [str(item.PatientName) for item in dataset.ReferencedImageSequence] == [text, text]
    assert dataset.ReferencedImageSequence[1].ReferencedSOPInstanceUID == "1.2.3"


def test_pydicom_gets_the_dicos_vrs() -> None:
    elements = [
        Element(0x00080016, "UI", DICOS_CT_CLASS),
        Element(0x00280008, "US", 7),
        Element(0x43000902, "FL", 0.5),
    ]
    dataset = header_of(elements, IMPLICIT).to_pydicom()
    assert dataset[0x00280008].VR == "US"
    assert dataset[0x00280008].value == 7
    assert dataset[0x43000902].value == 0.5


def test_pydicom_does_not_get_what_was_not_kept() -> None:
    dataset = header_of(nested(EXPLICIT), limits=TapLimits(max_value_bytes=100)).to_pydicom()
    assert 0x00420011 not in dataset
    assert 0x00420011 not in dataset[0x00081140].value[0][0x0040A168].value[0]
    assert dataset[0x00081140].value[0][0x0040A168].value[0].CodeValue == "T-D1100"
