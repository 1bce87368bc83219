from __future__ import annotations

import json
import math
import struct
from io import BytesIO
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from scp_server.errors import UnreadableDataset
from scp_server.objects.match import Match
from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.objects import JAPANESE, LATIN, UTF_8, Patient, ct_image, structured_report


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    if vr in (b"SQ", b"UN", b"OB", b"OW", b"UV", b"UT"):
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def item(*elements: bytes) -> bytes:
    data = b"".join(elements)
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(data)) + data


def match(*elements: bytes, implicit: bool = False) -> Match:
    return Match(b"".join(elements), IMPLICIT_VR_LITTLE_ENDIAN if implicit else EXPLICIT_VR_LITTLE_ENDIAN)


@pytest.mark.parametrize("patient", [Patient(), JAPANESE, LATIN, UTF_8], ids=lambda one: one.character_set)
@pytest.mark.parametrize(
    "syntax", [TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN]
)
def test_json_says_what_pydicoms_says(patient: Patient, syntax: TransferSyntax) -> None:
    for stored in (
        ct_image(patient=patient, transfer_syntax=syntax, sequences=True, rows=4, columns=4),
        structured_report(patient=patient, depth=5),
    ):
        ours = Match(stored.dataset, stored.transfer_syntax_uid).to_json()
        theirs = dcmread(BytesIO(stored.part10())).to_json_dict()
        assert json.loads(json.dumps(ours)).keys() == theirs.keys()
        for tag, entry in theirs.items():
            if tag != "00080005":
                assert _comparable(ours[tag]) == _comparable(entry), tag


def _comparable(entry: Any) -> Any:
    """Without the differences that F.2.5 leaves open: no Value, or an empty one; 1 or 1.0."""
    if isinstance(entry, dict):
        return {key: _comparable(value) for key, value in entry.items() if value not in ([], None, "", {})}
    if isinstance(entry, list):
        return [_comparable(value) for value in entry]
    return entry


def test_json_of_every_kind_of_value() -> None:
    document = match(
        element(0x00080005, b"CS", b"ISO_IR 100"),
        element(0x00080018, b"UI", b"1.2.3\0"),
        element(0x00080061, b"CS", b"CT\\MR "),
        element(0x00081030, b"LO", "Schädel ".encode("latin-1")),
        element(0x00081060, b"PN", b"A^B=\xc4=\\C "),
        element(0x00081115, b"SQ", item(element(0x0020000E, b"UI", b"1.2"))),
        element(0x00100030, b"DA", b""),
        element(0x00180050, b"DS", b"1.5\\x\\"),
        element(0x00200013, b"IS", b" 12 "),
        element(0x00280009, b"AT", b"\x18\x00\x63\x10"),
        element(0x00280010, b"US", b"\x00\x02"),
        element(0x00289520, b"FD", struct.pack("<3d", math.inf, math.nan, 0.5)),
        element(0x00291010, b"OB", b"\0\1"),
        element(0x00291011, b"UN", b"ab"),
        element(0x40000010, b"LT", b" a\\b "),
    ).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
        "00080018": {"vr": "UI", "Value": ["1.2.3"]},
        "00080061": {"vr": "CS", "Value": ["CT", "MR"]},
        "00081030": {"vr": "LO", "Value": ["Schädel"]},
        "00081060": {
            "vr": "PN",
            "Value": [{"Alphabetic": "A^B", "Ideographic": "Ä"}, {"Alphabetic": "C"}],
        },
        "00081115": {"vr": "SQ", "Value": [{"0020000E": {"vr": "UI", "Value": ["1.2"]}}]},
        "00100030": {"vr": "DA"},
        "00180050": {"vr": "DS", "Value": [1.5, "x", None]},
        "00200013": {"vr": "IS", "Value": [12]},
        "00280009": {"vr": "AT", "Value": ["00181063"]},
        "00280010": {"vr": "US", "Value": [512]},
        "00289520": {"vr": "FD", "Value": ["Infinity", "NaN", 0.5]},
        "00291010": {"vr": "OB", "InlineBinary": "AAE="},
        "00291011": {"vr": "UN", "InlineBinary": "YWI="},
        "40000010": {"vr": "LT", "Value": [" a\\b"]},
    }


def test_attributes_that_pydicom_does_not_know_keep_the_vr_of_the_stream() -> None:
    found = match(element(0x40101011, b"SQ", item(element(0x40101012, b"CS", b"EXPLOSIVE "))))
    dataset = found.to_dataset()
    assert isinstance(dataset, Dataset)
    assert dataset[0x4010, 0x1011].VR == "SQ"
    assert dataset[0x4010, 0x1011].value[0][0x4010, 0x1012].value == "EXPLOSIVE"


def test_implicit_vr_on_a_dicos_association_is_read_by_dicos() -> None:
    data = struct.pack("<HHI", 0x4010, 0x1011, 8) + item()
    assert Match(data, IMPLICIT_VR_LITTLE_ENDIAN, is_dicos=True).to_json()["40101011"]["vr"] == "SQ"


def test_sequences_of_any_depth_are_read_without_a_recursion() -> None:
    data = element(0x00100020, b"LO", b"x ")
    for _ in range(300):
        data = element(0x00081115, b"SQ", item(data))
    document: Any = match(data).to_json()
    depth = 0
    while "Value" in document.get("00081115", {}):
        (document,) = document["00081115"]["Value"]
        depth += 1
    assert depth == 64


WHOLE = element(0x00081115, b"SQ", item(element(0x0020000E, b"UI", b"1.2 "))) + element(
    0x00100020, b"LO", b"x "
)


@pytest.mark.parametrize("length", [length for length in range(1, len(WHOLE)) if length != len(WHOLE) - 10])
def test_a_match_that_is_cut_cannot_be_read(length: int) -> None:
    with pytest.raises(UnreadableDataset):
        match(WHOLE[:length]).attributes()


@given(st.binary(max_size=200), st.booleans())
@example(WHOLE[:-1], False)
def test_whatever_a_peer_sends_is_read_or_refused(data: bytes, implicit: bool) -> None:
    try:
        document = match(data, implicit=implicit).to_json()
    except UnreadableDataset:
        return
    assert json.dumps(document, allow_nan=False)
