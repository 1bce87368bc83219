"""The factories' objects are read by an independent reader, pydicom, as what they say they are."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import pydicom
import pytest
from pydicom.encaps import generate_fragments

from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.encoded_object import FRAME_BYTES, EncodedObject
from scp_server.testing.objects import (
    JAPANESE,
    LATIN,
    PLAIN,
    UTF_8,
    Patient,
    ct_image,
    encapsulated_pdf,
    large_ct,
    structured_report,
)

NATIVE = [
    TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.EXPLICIT_VR_BIG_ENDIAN,
]
MEDICAL = [syntax for syntax in TransferSyntax if syntax is not TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64]


def read(encoded: EncodedObject) -> pydicom.FileDataset:
    return pydicom.dcmread(io.BytesIO(encoded.part10()))


@pytest.mark.parametrize("syntax", MEDICAL)
def test_pydicom_reads_the_same_identity_in_every_transfer_syntax(syntax: TransferSyntax) -> None:
    encoded = ct_image(transfer_syntax=syntax, sequences=True, private=True)
    dataset = read(encoded)
    assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == encoded.sop_class_uid
    assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID == encoded.sop_instance_uid
    assert dataset.StudyInstanceUID == encoded.study_instance_uid
    assert dataset.SeriesInstanceUID == encoded.series_instance_uid
    assert dataset.file_meta.TransferSyntaxUID == encoded.transfer_syntax_uid == syntax
    assert len(encoded.dataset) % 2 == 0


def test_pixels_are_the_same_in_every_syntax_that_keeps_them() -> None:
    explicit = read(ct_image(rows=8, columns=6)).pixel_array
    assert explicit.shape == (8, 6)
    assert len(set(explicit.flatten().tolist())) > 40
    for syntax in (*NATIVE, TransferSyntax.RLE_LOSSLESS):
        assert (read(ct_image(rows=8, columns=6, transfer_syntax=syntax)).pixel_array == explicit).all(), (
            syntax
        )


@pytest.mark.parametrize("count", [1, 3])
def test_encapsulated_pixels_lie_in_as_many_fragments_as_asked_for(count: int) -> None:
    dataset = read(ct_image(transfer_syntax=TransferSyntax.JPEG_LOSSLESS, fragments=count))
    fragments = list(generate_fragments(dataset.PixelData))[1:]
    assert len(fragments) == count
    assert all(len(fragment) % 2 == 0 for fragment in fragments)
    joined = b"".join(fragments)
    assert (joined[:2], joined[-2:]) == (b"\xff\xd8", b"\xff\xd9")


@pytest.mark.parametrize("patient", [PLAIN, LATIN, UTF_8, JAPANESE])
def test_patient_text_survives_its_character_set(patient: Patient) -> None:
    dataset = read(ct_image(patient=patient))
    assert str(dataset.PatientName) == patient.name
    if patient.character_set != JAPANESE.character_set:
        assert dataset.PatientID == patient.patient_id


def test_japanese_name_uses_escape_sequences() -> None:
    assert b"=\x1b$B;3ED\x1b(B^" in ct_image(patient=JAPANESE).dataset


@pytest.mark.parametrize("undefined_length", [False, True])
@pytest.mark.parametrize("syntax", NATIVE)
def test_sequences_nest_with_defined_and_undefined_length(
    syntax: TransferSyntax, undefined_length: bool
) -> None:
    dataset = read(ct_image(transfer_syntax=syntax, sequences=True, undefined_length=undefined_length))
    assert len(dataset.ReferencedStudySequence) == 0
    assert [len(item) for item in dataset.ReferencedImageSequence] == [3, 2]
    purpose = dataset.ReferencedImageSequence[0].PurposeOfReferenceCodeSequence[0]
    assert purpose.CodeMeaning == "Localizer"
    assert dataset["ReferencedImageSequence"].is_undefined_length is undefined_length


def test_private_block_has_its_creator() -> None:
    dataset = read(ct_image(private=True))
    block = dataset.private_block(0x0009, "SCP TEST KIT")
    assert block[0x01].value == "private text"
    assert block[0x02].value == b"\1\2\3\4"
    assert block[0x03].value[0][0x00091004].value == 1.5


def test_same_arguments_same_bytes_and_another_seed_another_instance_of_the_series() -> None:
    assert ct_image(seed=3) == ct_image(seed=3)
    first, second = ct_image(seed=3), ct_image(seed=4)
    assert first.sop_instance_uid != second.sop_instance_uid
    assert first.dataset != second.dataset
    assert first.series_instance_uid == second.series_instance_uid


def test_uids_are_taken_as_given() -> None:
    encoded = ct_image(sop_instance_uid="1.2.3", study_instance_uid="1.2", series_instance_uid="1.2.9")
    dataset = read(encoded)
    assert (dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID) == (
        "1.2.3",
        "1.2",
        "1.2.9",
    )


def test_structured_report_nests_as_deep_as_asked_for() -> None:
    encoded = structured_report(depth=5, undefined_length=True, text="Nodule.")
    node = read(encoded)
    depth = 0
    while "ContentSequence" in node:
        node = node.ContentSequence[0]
        depth += 1
    assert depth == 6
    assert node.TextValue == "Nodule."


def test_encapsulated_pdf_holds_the_whole_document_before_any_pixel_group() -> None:
    dataset = read(encapsulated_pdf(document_bytes=3_000_000))
    assert len(dataset.EncapsulatedDocument) == 3_000_000
    assert dataset.EncapsulatedDocument.startswith(b"%PDF-")


@pytest.mark.parametrize("encapsulated", [False, True])
def test_large_object_is_whole_frames_each_with_its_number(encapsulated: bool) -> None:
    large = large_ct(3 * FRAME_BYTES - 1, encapsulated=encapsulated)
    whole = b"".join(large)
    assert len(whole) == large.size_bytes
    assert whole == b"".join(large.chunks())
    encoded = EncodedObject(
        large.sop_class_uid,
        large.sop_instance_uid,
        large.study_instance_uid,
        large.series_instance_uid,
        large.transfer_syntax_uid,
        whole,
    )
    dataset = read(encoded)
    assert dataset.NumberOfFrames == 3
    pixels = dataset.PixelData
    frames = list(generate_fragments(pixels))[1:] if encapsulated else _frames(pixels)
    assert [struct.unpack("<Q", frame[:8])[0] for frame in frames] == [0, 1, 2]


def test_large_object_is_never_whole_in_memory() -> None:
    large = large_ct(1 << 40, encapsulated=True)
    assert large.size_bytes > 1 << 40
    chunks = large.chunks()
    assert max(len(next(chunks)) for _ in range(3)) <= FRAME_BYTES + 1024


def test_native_object_of_more_than_32_bits_is_refused() -> None:
    large_ct(0xFFFFFFFF - FRAME_BYTES)
    with pytest.raises(ValueError, match="32-bit"):
        large_ct(1 << 32)


def _frames(pixels: bytes) -> list[bytes]:
    return [pixels[start : start + FRAME_BYTES] for start in range(0, len(pixels), FRAME_BYTES)]


@pytest.mark.parametrize("factory", [ct_image, structured_report, encapsulated_pdf])
def test_file_meta_group_length_ends_where_the_data_set_begins(factory: Callable[[], EncodedObject]) -> None:
    encoded = factory()
    part10 = encoded.part10()
    length = struct.unpack_from("<I", part10, 140)[0]
    assert part10[144 + length :] == encoded.dataset
