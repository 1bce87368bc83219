"""File Meta Information: what we write is what PS3.10 7.1 asks, and what we read is bounded and named."""

from __future__ import annotations

import io
import struct

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_server.objects.part10 import (
    MAX_FILE_META_BYTES,
    FileMetaBytes,
    ReceivedDigest,
    dicos_version_value,
    file_meta,
    read_file_meta,
)

EXPLICIT = "1.2.840.10008.1.2.1"


def _meta(**changes: object) -> FileMetaBytes:
    arguments: dict[str, object] = {
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "sop_instance_uid": "1.2.3.4",
        "transfer_syntax_uid": EXPLICIT,
        "source_ae_title": "SCANNER",
        "sending_ae_title": "SCANNER",
        "receiving_ae_title": "ARCHIVE",
        "received_at_ns": 1_800_000_000_123_456_789,
        "arrival_id": "0123456789abcdef",
    }
    return file_meta(**(arguments | changes))  # type: ignore[arg-type]


def test_pydicom_reads_what_is_written() -> None:
    dataset = pydicom.dcmread(io.BytesIO(_meta().data))
    meta = dataset.file_meta
    assert meta.FileMetaInformationVersion == b"\x00\x01"
    assert meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert meta.MediaStorageSOPInstanceUID == "1.2.3.4"
    assert meta.TransferSyntaxUID == EXPLICIT
    assert meta.SourceApplicationEntityTitle == "SCANNER"
    assert meta.SendingApplicationEntityTitle == "SCANNER"
    assert meta.ReceivingApplicationEntityTitle == "ARCHIVE"
    tags = [int(element.tag) for element in meta]
    assert tags == sorted(tags)


def test_preamble_and_group_length_are_right() -> None:
    data = _meta().data
    assert data[:132] == bytes(128) + b"DICM"
    tag_vr_length, group_length = struct.unpack_from("<8sI", data, 132)
    assert tag_vr_length == b"\x02\x00\x00\x00UL\x04\x00"
    assert group_length == len(data) - 144
    assert len(data) % 2 == 0


def test_reading_gives_back_what_was_written() -> None:
    meta = read_file_meta(_meta().data + b"\x08\x00\x05\x00CS\x00\x00")
    assert meta.sop_instance_uid == "1.2.3.4"
    assert meta.transfer_syntax_uid == EXPLICIT
    assert meta.arrival_id == "0123456789abcdef"
    assert meta.received_at_ns == 1_800_000_000_123_456_789
    assert (meta.source_ae_title, meta.receiving_ae_title) == ("SCANNER", "ARCHIVE")
    assert meta.dataset_offset_bytes == len(_meta().data)


@pytest.mark.parametrize("arrival_id", ["0", "0123456789abcdef", "f" * 255])
def test_the_digest_of_what_was_received_is_read_back(arrival_id: str) -> None:
    for received in (ReceivedDigest("blake3", b"\x00" * 32), ReceivedDigest("sha256", b"d"), None):
        data = _meta(arrival_id=arrival_id, received_digest=received).data
        meta = read_file_meta(data)
        assert (meta.received_digest, meta.arrival_id) == (received, arrival_id)
        assert (meta.received_at_ns, len(data) % 2) == (1_800_000_000_123_456_789, 0)


@pytest.mark.parametrize("received", [None, ReceivedDigest("blake3", b"\x00" * 32)])
@pytest.mark.parametrize("titles", [("SCANNER", "ARCHIVE"), ("LANE", ""), ("", "")])
def test_in_a_file_of_dicos_ae_titles_are_in_the_record_alone(
    titles: tuple[str, str], received: ReceivedDigest | None
) -> None:
    sending, receiving = titles
    data = _meta(
        dicos_version="V03", sending_ae_title=sending, receiving_ae_title=receiving, received_digest=received
    ).data
    meta = read_file_meta(data)
    assert (meta.sending_ae_title, meta.receiving_ae_title, meta.received_digest) == (*titles, received)
    assert len(data) % 2 == 0
    elements = [int(element.tag) & 0xFFFF for element in pydicom.dcmread(io.BytesIO(data)).file_meta]
    assert elements == [
        0x0000,
        0x0001,
        0x0002,
        0x0003,
        0x0004,
        0x0010,
        0x0012,
        0x0013,
        0x0016,
        0x0100,
        0x0102,
    ]


def test_a_digest_that_cannot_be_recorded_is_refused() -> None:
    for received in (
        ReceivedDigest("", b"d"),
        ReceivedDigest("blake3", b""),
        ReceivedDigest("x", bytes(256)),
    ):
        with pytest.raises(ValueError, match="digest"):
            _meta(received_digest=received)


@given(st.binary(max_size=80))
def test_whatever_follows_the_arrival_id_harms_nothing(rest: bytes) -> None:
    whole = _meta(received_digest=ReceivedDigest("blake3", b"digest of 20 bytes..")).data
    at = whole.index(b"0123456789abcdef") + 16
    rest = rest.ljust(len(whole) - at, b"\0")[: len(whole) - at]
    meta = read_file_meta(whole[:at] + rest)
    assert meta.arrival_id == "0123456789abcdef"


def test_a_reserved_dicos_version_is_patched_in_place() -> None:
    reserved = _meta(reserve_dicos_version=True)
    known = _meta(dicos_version="V03")
    assert reserved.dicos_version_offset_bytes is not None
    assert known.dicos_version_offset_bytes == reserved.dicos_version_offset_bytes
    offset = reserved.dicos_version_offset_bytes
    value = dicos_version_value("V03")
    patched = reserved.data[:offset] + value + reserved.data[offset + len(value) :]
    assert patched == known.data
    assert read_file_meta(patched).dicos_version == "V03"


def test_without_dicos_there_is_no_dicos_version() -> None:
    assert _meta().dicos_version_offset_bytes is None
    assert b"\x02\x00\x04\x00CS" not in _meta().data


@pytest.mark.parametrize(
    ("version", "value"),
    [
        ("V03", b"V03 "),
        ("V02A", b"V02A"),
        (None, b"    "),
        ("", b"    "),
        ("V0300", b"    "),
        ("\u20ac", b"?   "),
    ],
)
def test_a_dicos_version_always_fills_four_bytes(version: str | None, value: bytes) -> None:
    assert dicos_version_value(version) == value


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_ae_title_is_written_safely(sending: str, receiving: str) -> None:
    data = _meta(sending_ae_title=sending, receiving_ae_title=receiving).data
    meta = read_file_meta(data)
    for title in (meta.sending_ae_title, meta.receiving_ae_title):
        assert len(title) <= 16
        assert all(" " <= character <= "~" and character != "\\" for character in title)
    assert meta.dataset_offset_bytes == len(data)


def test_an_ae_title_keeps_sixteen_characters_and_masks_the_rest() -> None:
    meta = read_file_meta(_meta(sending_ae_title="SC\u00e4N\\\n3456789012345678").data)
    assert meta.sending_ae_title == "SC?N??3456789012"


@given(st.text("0123456789abcdef", min_size=1, max_size=255), st.integers(0, 2**64 - 1))
def test_arrival_survives_the_file(arrival_id: str, received_at_ns: int) -> None:
    meta = read_file_meta(_meta(arrival_id=arrival_id, received_at_ns=received_at_ns).data)
    assert (meta.arrival_id, meta.received_at_ns) == (arrival_id, received_at_ns)


def test_without_an_arrival_id_there_is_no_record() -> None:
    meta = read_file_meta(_meta(arrival_id="").data)
    assert (meta.arrival_id, meta.received_at_ns) == (None, None)


def test_the_record_of_another_creator_is_not_ours() -> None:
    data = _meta().data
    other = data.replace(
        b"2.25.197610378532489170355148836284936407184", b"2.25.197610378532489170355148836284936407180"
    )
    assert other != data
    assert read_file_meta(other).arrival_id is None


@pytest.mark.parametrize(("name", "value"), [("sop_instance_uid", "1.2\u0661"), ("received_at_ns", -1)])
def test_what_cannot_be_written_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"UID|receive time"):
        _meta(**{name: value})


def test_a_missing_group_length_is_tolerated() -> None:
    data = _meta().data
    without = data[:132] + data[144:]
    meta = read_file_meta(without + b"\x08\x00\x05\x00CS\x00\x00")
    assert meta.dataset_offset_bytes == len(without)
    assert meta.arrival_id == "0123456789abcdef"


@pytest.mark.parametrize("length", [0, 4, 0xFFFFFFFF])
def test_a_wrong_group_length_is_tolerated(length: int) -> None:
    data = bytearray(_meta().data)
    data[140:144] = struct.pack("<I", length)
    assert read_file_meta(bytes(data)).dataset_offset_bytes == len(data)


@pytest.mark.parametrize("buffer", [b"", b"DICM", bytes(132), bytes(128) + b"dicm" + bytes(100)])
def test_no_part_10_file_is_named_as_such(buffer: bytes) -> None:
    with pytest.raises(ValueError, match="not a DICOM Part 10 file"):
        read_file_meta(buffer)


def test_cut_meta_information_is_refused_wherever_it_is_cut_inside_an_element() -> None:
    data = _meta().data
    boundaries = set()
    position = 132
    while position < len(data):
        boundaries.add(position)
        is_long = data[position + 4 : position + 6] == b"OB"
        length = struct.unpack_from("<I" if is_long else "<H", data, position + (8 if is_long else 6))[0]
        position += (12 if is_long else 8) + length
    assert position == len(data)
    for cut in range(133, len(data)):
        if cut not in boundaries:
            with pytest.raises(ValueError, match=r"cut|Transfer Syntax"):
                read_file_meta(data[:cut])


def test_a_missing_transfer_syntax_is_named() -> None:
    data = _meta(transfer_syntax_uid="").data
    with pytest.raises(ValueError, match=r"no Transfer Syntax UID \(0002,0010\)"):
        read_file_meta(data)


def test_an_element_without_a_known_vr_is_malformed() -> None:
    with pytest.raises(ValueError, match=r"malformed at \(0002,0010\)"):
        read_file_meta(bytes(128) + b"DICM\x02\x00\x10\x00\x00\x00\x10\x00" + bytes(16))


def test_an_element_beyond_the_bound_is_refused_by_its_length_alone() -> None:
    head = bytes(128) + b"DICM\x02\x00\x02\x01OB\x00\x00" + struct.pack("<I", MAX_FILE_META_BYTES)
    with pytest.raises(ValueError, match="ends beyond the first"):
        read_file_meta(head)


@given(st.binary(max_size=300))
def test_any_bytes_give_meta_information_or_a_value_error(tail: bytes) -> None:
    try:
        meta = read_file_meta(bytes(128) + b"DICM" + tail)
    except ValueError:
        return
    assert meta.transfer_syntax_uid
    assert meta.dataset_offset_bytes <= 132 + len(tail)
