"""The DICOS factories' objects are read by the real toolkit, and say to pydicom what they should."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import (
    DICOS_CT_IMAGE_STORAGE,
    DICOS_VERSION,
    TWO_THREATS,
    dicos_ct,
    dicos_dx,
    dicos_tdr,
    large_dicos_ct,
    make_dicos_uid,
    two_section_ct,
)
from scp_server.testing.encoded_object import FRAME_BYTES, EncodedObject

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")

EXPLICIT_64 = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64
RLE = TransferSyntax.RLE_LOSSLESS

READ_WITH_TOOLKIT = """
import json, sys
from pyDICOS import CT, DX, TDR, ErrorLog, Filename
reader = {"CT": CT, "DX": DX, "TDR": TDR}[sys.argv[1]]()
log = ErrorLog()
read = reader.Read(Filename(sys.argv[2]), log, None)
print(json.dumps({"read": bool(read), "log": log.GetErrorLog().Get()}), flush=True)
"""
"""The toolkit may end its process on what it does not understand, so each object gets its own."""

READABLE: list[tuple[str, str, EncodedObject]] = [
    ("CT", "explicit", dicos_ct()),
    ("CT", "explicit64", dicos_ct(transfer_syntax=EXPLICIT_64)),
    ("CT", "rle", dicos_ct(transfer_syntax=RLE)),
    ("CT", "implicit", dicos_ct(transfer_syntax=TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN)),
    ("DX", "explicit", dicos_dx()),
    ("DX", "rle", dicos_dx(transfer_syntax=RLE)),
    ("TDR", "alarm", dicos_tdr()),
    ("TDR", "clear", dicos_tdr(decision="CLEAR")),
    ("TDR", "operator-alarm", dicos_tdr(tdr_type="OPERATOR")),
    ("TDR", "operator-clear", dicos_tdr(tdr_type="OPERATOR", decision="CLEAR", threats=TWO_THREATS[:0])),
]


def read(encoded: EncodedObject) -> pydicom.FileDataset:
    return pydicom.dcmread(io.BytesIO(encoded.part10()))


@pytest.mark.interop
@pytest.mark.parametrize(("kind", "name", "encoded"), READABLE, ids=[f"{k}-{n}" for k, n, _ in READABLE])
def test_real_toolkit_reads_it_without_an_error(
    kind: str,
    name: str,
    encoded: EncodedObject,
    tmp_path: Path,
    require_peer: Callable[[str, object], None],
) -> None:
    require_peer("the DICOS toolkit (pydicos)", importlib.util.find_spec("pyDICOS"))
    path = tmp_path / f"{name}.dcs"
    path.write_bytes(encoded.part10())
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_TOOLKIT, kind, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"TZ": "UTC"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer == {"read": True, "log": ""}


def test_uids_are_of_no_root_and_have_leading_zeros() -> None:
    for seed in range(50):
        uid = make_dicos_uid(f"any {seed}")
        assert uid.startswith("0")
        assert not uid.startswith("0.")
        assert len(uid) <= 64
        assert all(part.isdigit() for part in uid.split("."))
    assert len({make_dicos_uid(str(seed)) for seed in range(50)}) == 50


@pytest.mark.parametrize("encoded", [dicos_ct(), dicos_dx(), dicos_tdr()], ids=["ct", "dx", "tdr"])
def test_version_stands_in_file_meta_and_data_set(encoded: EncodedObject) -> None:
    dataset = read(encoded)
    assert dataset.file_meta[0x00020004].value == dataset[0x4010103A].value == DICOS_VERSION
    assert "PatientName" not in dataset


def test_number_of_frames_is_us_and_image_origin_cs() -> None:
    dataset = read(dicos_ct(frames=7))
    assert (dataset[0x00280008].VR, dataset[0x00280008].value) == ("US", 7)
    assert (dataset[0x00080118].VR, dataset[0x00080118].value) == ("CS", "MACHINE")
    assert len(dataset[0x52009230].value) == 7


def test_64_bit_syntax_differs_by_the_length_field_only() -> None:
    plain, wide = dicos_ct().dataset, dicos_ct(transfer_syntax=EXPLICIT_64).dataset
    pixels = 4 * 16 * 16 * 2
    assert wide[-pixels:] == plain[-pixels:]
    assert wide[: -pixels - 16] == plain[: -pixels - 12]
    assert struct.unpack("<HH2sHQ", wide[-pixels - 16 : -pixels]) == (0x7FE0, 0x0010, b"OW", 0, pixels)


def test_encapsulated_pixels_are_ow_with_a_fragment_for_each_frame() -> None:
    dataset = read(dicos_ct(frames=3, transfer_syntax=TransferSyntax.JPEG_LOSSLESS))
    assert dataset["PixelData"].VR == "OW"
    assert dataset["PixelData"].is_undefined_length
    assert len(list(pydicom.encaps.generate_fragments(dataset.PixelData))) == 1 + 3


def test_sections_share_their_uid_and_differ_in_bytes() -> None:
    first, second = two_section_ct()
    assert first.sop_instance_uid == second.sop_instance_uid
    assert first.series_instance_uid == second.series_instance_uid
    assert len(first.dataset) != len(second.dataset)
    assert two_section_ct(seed=1)[0].sop_instance_uid != first.sop_instance_uid


def test_report_refers_to_its_image_and_counts_its_threats() -> None:
    image = dicos_ct(seed=5)
    dataset = read(dicos_tdr(image))
    reference = dataset.ReferencedStudySequence[0]
    assert reference.ReferencedSOPInstanceUID == image.sop_instance_uid
    assert reference.ReferencedSOPClassUID == DICOS_CT_IMAGE_STORAGE
    assert (dataset.NumberOfTotalObjects, dataset.NumberOfAlarmObjects) == (2, 2)
    assert [item.ATDAssessmentSequence[0].ThreatCategory for item in dataset.ThreatSequence] == [
        "EXPLOSIVE",
        "PI",
    ]
    assert dataset.StudyInstanceUID == image.study_instance_uid


def test_large_object_declares_its_length_in_64_bits() -> None:
    large = large_dicos_ct(5 << 30)
    chunks = large.chunks()
    head = next(chunks)
    assert struct.unpack("<Q", head[-8:])[0] == large.frames * FRAME_BYTES >= 5 << 30
    assert len(next(chunks)) == FRAME_BYTES
