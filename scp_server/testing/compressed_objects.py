"""Small objects whose pixels are truly compressed, by the encoders of imagecodecs (in the test extra)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import imagecodecs
import numpy as np

from scp_server.testing.dataset_encoder import DatasetEncoder, Element, rle_frame
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.objects import CT_IMAGE_STORAGE

RLE, BASELINE = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50"
EXTENDED, LOSSLESS, LOSSLESS_SV1 = (f"1.2.840.10008.1.2.4.{number}" for number in (51, 57, 70))
LS, LS_NEAR, J2K, J2K_LOSSY = (f"1.2.840.10008.1.2.4.{number}" for number in (80, 81, 90, 91))
HTJ2K, HTJ2K_RPCL, HTJ2K_LOSSY = (f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203))

Pixels = np.ndarray[Any, Any]
"""One frame: rows, columns, and samples where there are three."""


def noise(*shape: int, bits: int = 8, seed: int = 0) -> Pixels:
    values = np.random.default_rng(seed).integers(0, 1 << bits, shape)
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def smooth(*shape: int, bits: int = 8) -> Pixels:
    """Slopes, another for each sample, that lossy compression changes little."""
    rows, columns = np.indices(shape[:2])
    planes = [(rows * 3 + columns * (sample + 1)) % (1 << bits) for sample in range(3)]
    values = np.stack(planes, -1) if len(shape) == 3 else planes[0]
    return (values * ((1 << bits) // 256)).astype(np.uint8 if bits <= 8 else np.uint16)


def encode(syntax: str, frame: Pixels, bits: int, **options: Any) -> bytes:
    """One frame in one of the transfer syntaxes above; `options` go to the encoder."""
    match syntax:
        case "1.2.840.10008.1.2.5":
            return rle_frame(frame.tobytes(), frame.itemsize)
        case _ if syntax in (HTJ2K, HTJ2K_RPCL, HTJ2K_LOSSY):
            return bytes(imagecodecs.htj2k_encode(frame, reversible=syntax != HTJ2K_LOSSY))
        case _ if syntax in (J2K, J2K_LOSSY):
            options = {"codecformat": "J2K", "bitspersample": bits, "reversible": syntax == J2K, **options}
            return bytes(imagecodecs.jpeg2k_encode(frame, 0 if syntax == J2K else 60, **options))
        case _ if syntax in (LS, LS_NEAR):
            return bytes(imagecodecs.jpegls_encode(frame, 2 if syntax == LS_NEAR else 0))
        case _ if syntax in (LOSSLESS, LOSSLESS_SV1):
            options = {"lossless": True, "predictor": 1, "bitspersample": bits, **options}
            if frame.ndim == 3:
                options = {"colorspace": "RGB", "outcolorspace": "RGB", **options}
            return bytes(imagecodecs.jpeg8_encode(frame, **options))
        case _:
            return bytes(imagecodecs.jpeg8_encode(frame, 98, bitspersample=bits, **options))


def description(
    frame: Pixels, frames: int, bits: int, photometric: str, signed: bool = False, uid: str = "1.2.3"
) -> list[Element]:
    """The elements before pixel data, such as decoding has to change among them."""
    samples = frame.shape[2] if frame.ndim == 3 else 1
    planar = [Element(0x00280006, "US", 1)] if samples > 1 else []
    return [
        Element(0x00080016, "UI", CT_IMAGE_STORAGE),
        Element(0x00080018, "UI", uid),
        Element(0x00081140, "SQ", [[Element(0x00081155, "UI", "1.2.4"), Element(0x00280010, "US", 7)]], True),
        Element(0x00280000, "UL", 1000),
        Element(0x00280002, "US", samples),
        Element(0x00280004, "CS", photometric),
        *planar,
        Element(0x00280008, "IS", str(frames)),
        Element(0x00280010, "US", frame.shape[0]),
        Element(0x00280011, "US", frame.shape[1]),
        Element(0x00280100, "US", frame.itemsize * 8),
        Element(0x00280101, "US", bits),
        Element(0x00280102, "US", bits - 1),
        Element(0x00280103, "US", int(signed)),
        Element(0x00281052, "DS", "-1024"),
    ]


def compressed(
    frames: Sequence[Pixels],
    encoded: Iterable[bytes],
    *,
    bits: int = 8,
    photometric: str = "MONOCHROME2",
    table: bytes = b"",
    extra: Sequence[Element] = (),
    signed: bool = False,
    uid: str = "1.2.3",
) -> bytes:
    """A data set with these frames as fragments, `encoded` one for each unless a test has other ideas."""
    encoder = DatasetEncoder()
    elements = [*description(frames[0], len(frames), bits, photometric, signed, uid), *extra]
    head = encoder.encode(sorted(elements, key=lambda element: element.tag))
    even = [piece + b"\0" * (len(piece) % 2) for piece in encoded]
    tail = encoder.element(Element(0xFFFCFFFC, "OB", b"\0\0"))
    return head + encoder.fragments(even, offset_table=table) + tail


def compressed_ct(
    syntax: str,
    frames: Sequence[Pixels],
    encoded: Iterable[bytes],
    *,
    study_instance_uid: str,
    bits: int = 8,
    photometric: str = "MONOCHROME2",
) -> EncodedObject:
    """An instance of a study with these frames, which a server takes."""
    pieces = list(encoded)
    instance, series = make_uid(f"compressed {syntax} {photometric} {pieces}"), make_uid("compressed series")
    names = [
        Element(0x00080060, "CS", "CT"),
        Element(0x0020000D, "UI", study_instance_uid),
        Element(0x0020000E, "UI", series),
    ]
    dataset = compressed(frames, pieces, bits=bits, photometric=photometric, extra=names, uid=instance)
    return EncodedObject(CT_IMAGE_STORAGE, instance, study_instance_uid, series, syntax, dataset)


def rle_colour_frame(frame: Pixels) -> bytes:
    """Three samples of 8 bits; the segments are those of 24-bit samples in the other order (PS3.5 G.2)."""
    return rle_frame(frame[..., ::-1].tobytes(), 3)
