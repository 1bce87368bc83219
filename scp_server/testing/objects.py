"""Factories of small, valid DICOM objects as bytes, and of large ones as a stream of chunks.

Everything follows from the arguments: the same call gives the same bytes, another `seed` another instance of
the same study and series.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from scp_server.testing.dataset_encoder import (
    PIXEL_DATA,
    DatasetEncoder,
    Element,
    TransferSyntax,
    deflate,
    rle_frame,
)
from scp_server.testing.encoded_object import FRAME_BYTES, FRAME_SIDE, EncodedObject, LargeObject, make_uid

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2.1"
BASIC_TEXT_SR_STORAGE = "1.2.840.10008.5.1.4.1.1.88.11"
ENCAPSULATED_PDF_STORAGE = "1.2.840.10008.5.1.4.1.1.104.1"
LARGEST_NATIVE_BYTES = 0xFFFFFFFE
"""A native value's length is an even 32-bit number below the one that means undefined (PS3.5 7.1.1)."""

_CODECS = {
    "": "ascii",
    "ISO_IR 100": "latin_1",
    "ISO_IR 192": "utf_8",
    "\\ISO 2022 IR 87": "iso2022_jp",
}
"""Python's codec for each Specific Character Set the factories know (PS3.3 C.12.1.1.2)."""


@dataclass(frozen=True, slots=True)
class Patient:
    """Who an object is about; `character_set` is the value of (0008,0005)."""

    name: str = "Doe^Jane"
    patient_id: str = "PAT-0001"
    birth_date: str = "19700102"
    sex: str = "F"
    character_set: str = ""

    @property
    def codec(self) -> str:
        """Python's codec for the character set. Raises KeyError for one the factories do not know."""
        return _CODECS[self.character_set]


PLAIN = Patient()
JAPANESE = Patient("Yamada^Tarou=山田^太郎=やまだ^たろう", "PAT-JP", character_set="\\ISO 2022 IR 87")
"""PS3.5 H.3.1's name, with escape sequences in the stream."""
UTF_8 = Patient("Wang^XiaoDong=王^小东", "PAT-中", character_set="ISO_IR 192")
LATIN = Patient("Buc^Jérôme", "PAT-FR", character_set="ISO_IR 100")


def ct_image(
    *,
    rows: int = 64,
    columns: int = 64,
    seed: int = 0,
    transfer_syntax: TransferSyntax = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN,
    patient: Patient = PLAIN,
    sop_instance_uid: str = "",
    study_instance_uid: str = "",
    series_instance_uid: str = "",
    private: bool = False,
    sequences: bool = False,
    undefined_length: bool = False,
    fragments: int = 1,
    extra: Iterable[Element] = (),
    pixels: bytes = b"",
) -> EncodedObject:
    """A CT slice of 16-bit pixels (PS3.3 A.3), noise unless `pixels` are given (row by row, little endian).

    `private` adds a private block, `sequences` nested ones, `undefined_length` writes those with delimiters.
    In RLE the pixels are truly encoded; in other encapsulated syntaxes they are `fragments` JPEG-like ones.
    """
    identity = _Identity.make("ct", seed, sop_instance_uid, study_instance_uid, series_instance_uid)
    elements = [
        *_common(CT_IMAGE_STORAGE, identity, patient, "CT", seed),
        Element(0x00080008, "CS", "ORIGINAL\\PRIMARY\\AXIAL"),
        Element(0x00180050, "DS", "1.25"),
        Element(0x00180060, "DS", "120"),
        Element(0x00200032, "DS", (-160, -160, seed)),
        Element(0x00200037, "DS", (1, 0, 0, 0, 1, 0)),
        Element(0x00200052, "UI", make_uid("frame of reference")),
        Element(0x00201040, "LO", ""),
        Element(0x00280030, "DS", "0.625\\0.625"),
        Element(0x00281052, "DS", "-1024"),
        Element(0x00281053, "DS", "1"),
        *_pixel_description(rows, columns),
        *extra,
    ]
    if private:
        elements += _private_block()
    if sequences:
        elements += _nested_sequences(undefined_length)
    pixels = pixels or random.Random(f"ct {seed}").randbytes(rows * columns * 2)
    return _encode(CT_IMAGE_STORAGE, identity, transfer_syntax, patient, elements, pixels, fragments)


def structured_report(
    *,
    seed: int = 0,
    transfer_syntax: TransferSyntax = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN,
    patient: Patient = PLAIN,
    sop_instance_uid: str = "",
    study_instance_uid: str = "",
    series_instance_uid: str = "",
    depth: int = 2,
    undefined_length: bool = False,
    text: str = "No finding.",
) -> EncodedObject:
    """A Basic Text SR, its content tree `depth` containers deep (PS3.3 A.35.1): no pixel data at all."""
    identity = _Identity.make("sr", seed, sop_instance_uid, study_instance_uid, series_instance_uid)
    content = [
        Element(0x0040A010, "CS", "CONTAINS"),
        Element(0x0040A040, "CS", "TEXT"),
        Element(0x0040A043, "SQ", [_code("121071", "DCM", "Finding")]),
        Element(0x0040A160, "UT", text),
    ]
    for _ in range(depth):
        content = [
            Element(0x0040A010, "CS", "CONTAINS"),
            Element(0x0040A040, "CS", "CONTAINER"),
            Element(0x0040A043, "SQ", [_code("121070", "DCM", "Findings")]),
            Element(0x0040A050, "CS", "SEPARATE"),
            Element(0x0040A730, "SQ", [content], undefined_length=undefined_length),
        ]
    elements = [
        *_common(BASIC_TEXT_SR_STORAGE, identity, patient, "SR", seed),
        Element(0x00081111, "SQ"),
        Element(0x0040A040, "CS", "CONTAINER"),
        Element(0x0040A043, "SQ", [_code("18748-4", "LN", "Diagnostic imaging report")]),
        Element(0x0040A050, "CS", "SEPARATE"),
        Element(0x0040A372, "SQ"),
        Element(0x0040A491, "CS", "COMPLETE"),
        Element(0x0040A493, "CS", "UNVERIFIED"),
        Element(0x0040A730, "SQ", [content], undefined_length=undefined_length),
    ]
    return _encode(BASIC_TEXT_SR_STORAGE, identity, transfer_syntax, patient, elements)


def encapsulated_pdf(
    *,
    document_bytes: int = 4096,
    seed: int = 0,
    transfer_syntax: TransferSyntax = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN,
    patient: Patient = PLAIN,
) -> EncodedObject:
    """An Encapsulated PDF (PS3.3 A.45.1): as large a value as wanted, in a group before pixel data's."""
    identity = _Identity.make("pdf", seed)
    document = b"%PDF-1.4\n" + random.Random(f"pdf {seed}").randbytes(max(0, document_bytes - 9))
    elements = [
        *_common(ENCAPSULATED_PDF_STORAGE, identity, patient, "DOC", seed),
        Element(0x00280301, "CS", "NO"),
        Element(0x0040A043, "SQ"),
        Element(0x00420010, "ST", "A document"),
        Element(0x00420011, "OB", document),
        Element(0x00420012, "LO", "application/pdf"),
    ]
    return _encode(ENCAPSULATED_PDF_STORAGE, identity, transfer_syntax, patient, elements)


def large_ct(total_bytes: int, *, seed: int = 0, encapsulated: bool = False) -> LargeObject:
    """A multi-frame CT of at least `total_bytes` of pixels, rounded up to whole frames of 512 KiB.

    Native pixels end at 4 GiB (raises ValueError); encapsulated ones, a fragment for each frame, do not.
    """
    frames = -(-total_bytes // FRAME_BYTES)
    identity = _Identity.make("large ct", seed)
    syntax = TransferSyntax.JPEG_2000_LOSSLESS if encapsulated else TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
    encoder = DatasetEncoder(syntax)
    elements = [
        *_common(ENHANCED_CT_IMAGE_STORAGE, identity, PLAIN, "CT", seed),
        Element(0x00280008, "IS", str(frames)),
        *_pixel_description(FRAME_SIDE, FRAME_SIDE),
    ]
    head, frame_prefix, tail = encoder.encode(elements), b"", b""
    if encapsulated:
        empty = encoder.fragments(())
        head, tail = head + empty[:-8], empty[-8:]
        frame_prefix = struct.pack("<HHI", 0xFFFE, 0xE000, FRAME_BYTES)
    elif frames * FRAME_BYTES > LARGEST_NATIVE_BYTES:
        raise ValueError(f"{total_bytes} bytes of native pixels do not fit a 32-bit length")
    else:
        head += encoder.header(PIXEL_DATA, "OW", frames * FRAME_BYTES)
    return LargeObject(
        ENHANCED_CT_IMAGE_STORAGE,
        identity.sop_instance_uid,
        identity.study_instance_uid,
        identity.series_instance_uid,
        syntax.value,
        frames,
        head,
        frame_prefix,
        tail,
    )


@dataclass(frozen=True, slots=True)
class _Identity:
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str

    @classmethod
    def make(cls, kind: str, seed: int, instance: str = "", study: str = "", series: str = "") -> _Identity:
        return cls(
            instance or make_uid(f"{kind} instance {seed}"),
            study or make_uid("study"),
            series or make_uid(f"{kind} series"),
        )


def _encode(
    sop_class_uid: str,
    identity: _Identity,
    syntax: TransferSyntax,
    patient: Patient,
    elements: list[Element],
    pixels: bytes = b"",
    fragments: int = 1,
) -> EncodedObject:
    encoder = DatasetEncoder(syntax, patient.codec)
    dataset = encoder.encode(elements)
    if pixels and syntax.is_encapsulated:
        if syntax is TransferSyntax.RLE_LOSSLESS:
            dataset += encoder.fragments([rle_frame(pixels, 2)])
        else:
            dataset += encoder.fragments(jpeg_like_fragments(pixels, fragments))
    elif pixels:
        dataset += encoder.element(Element(PIXEL_DATA, "OW", pixels))
    if syntax is TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        dataset = deflate(dataset)
    return EncodedObject(
        sop_class_uid,
        identity.sop_instance_uid,
        identity.study_instance_uid,
        identity.series_instance_uid,
        syntax.value,
        dataset,
    )


def jpeg_like_fragments(content: bytes, count: int) -> list[bytes]:
    """`content` between the markers of a JPEG stream, cut into `count` fragments of even length."""
    stream = b"\xff\xd8" + content + b"\xff\xd9"
    stream += b"\0" * (len(stream) % 2)
    step = max(2, -(-len(stream) // count // 2) * 2)
    return [stream[start : start + step] for start in range(0, len(stream), step)]


def _common(
    sop_class_uid: str, identity: _Identity, patient: Patient, modality: str, seed: int
) -> list[Element]:
    elements = [
        Element(0x00080016, "UI", sop_class_uid),
        Element(0x00080018, "UI", identity.sop_instance_uid),
        Element(0x00080020, "DA", "20261120"),
        Element(0x00080023, "DA", "20261120"),
        Element(0x00080030, "TM", "101112"),
        Element(0x00080033, "TM", "101113.5"),
        Element(0x00080050, "SH", "ACC-1"),
        Element(0x00080060, "CS", modality),
        Element(0x00080070, "LO", "ACME"),
        Element(0x00080090, "PN", ""),
        Element(0x00081030, "LO", "A study"),
        Element(0x00100010, "PN", patient.name),
        Element(0x00100020, "LO", patient.patient_id),
        Element(0x00100030, "DA", patient.birth_date),
        Element(0x00100040, "CS", patient.sex),
        Element(0x0020000D, "UI", identity.study_instance_uid),
        Element(0x0020000E, "UI", identity.series_instance_uid),
        Element(0x00200010, "SH", "STUDY-1"),
        Element(0x00200011, "IS", "1"),
        Element(0x00200013, "IS", str(seed + 1)),
    ]
    if patient.character_set:
        elements.append(Element(0x00080005, "CS", patient.character_set))
    return elements


def _pixel_description(rows: int, columns: int) -> list[Element]:
    return [
        Element(0x00280002, "US", 1),
        Element(0x00280004, "CS", "MONOCHROME2"),
        Element(0x00280010, "US", rows),
        Element(0x00280011, "US", columns),
        Element(0x00280100, "US", 16),
        Element(0x00280101, "US", 16),
        Element(0x00280102, "US", 15),
        Element(0x00280103, "US", 0),
    ]


def _private_block() -> list[Element]:
    return [
        Element(0x00090010, "LO", "SCP TEST KIT"),
        Element(0x00091001, "LO", "private text"),
        Element(0x00091002, "UN", b"\1\2\3\4"),
        Element(0x00091003, "SQ", [[Element(0x00091004, "DS", "1.5")]]),
    ]


def _nested_sequences(undefined_length: bool) -> list[Element]:
    reference = [
        Element(0x00081150, "UI", CT_IMAGE_STORAGE),
        Element(0x00081155, "UI", make_uid("referenced instance")),
    ]
    purpose = Element(0x0040A170, "SQ", [_code("121311", "DCM", "Localizer")], undefined_length)
    return [
        Element(0x00081110, "SQ"),
        Element(0x00081140, "SQ", [[*reference, purpose], reference], undefined_length),
        Element(0x00081032, "SQ", [_code("CTHEAD", "99SCP", "CT of the head")], undefined_length),
    ]


def _code(value: str, scheme: str, meaning: str) -> list[Element]:
    return [
        Element(0x00080100, "SH", value),
        Element(0x00080102, "SH", scheme),
        Element(0x00080104, "LO", meaning),
    ]
