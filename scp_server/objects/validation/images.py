"""Images: frames, bits and pixel data that must agree with one another (PS3.3 C.7.6.3, C.7.6.6; PS3.5 8)."""

from __future__ import annotations

from typing import Final, NamedTuple

from scp_server.objects.raw_header import AttributeSource
from scp_server.objects.validation.finding import Code, Findings, Path, keyword_of
from scp_server.objects.validation.pixel_values import PixelValue
from scp_server.objects.validation.steps import Budget, Steps
from scp_server.objects.validation.subject import Kind, Subject, coded
from scp_server.objects.vr import tag_text

_SAMPLES: Final = 0x00280002
_PHOTOMETRIC: Final = 0x00280004
_FRAMES: Final = 0x00280008
_ROWS: Final = 0x00280010
_COLUMNS: Final = 0x00280011
_BITS_ALLOCATED: Final = 0x00280100
_BITS_STORED: Final = 0x00280101
_HIGH_BIT: Final = 0x00280102
_FRAME_GROUPS: Final = 0x52009230
_PIXEL_DATA: Final = 0x7FE00010
_PIXEL_DATA_URLS: Final = (0x00287FE0, 0x00280121)
"""Pixel data that lies elsewhere (PS3.5 A.6)."""
_HALF_CHROMA: Final = frozenset(("YBR_FULL_422", "YBR_PARTIAL_422"))
"""Native pixels of these have two samples where three are stated (PS3.3 C.7.6.3.1.2)."""
_VIDEO: Final = tuple(f"1.2.840.10008.1.2.4.10{digit}" for digit in range(9))
"""MPEG-2, MPEG-4 and HEVC: one stream for all frames."""
_IMAGES: Final = frozenset((Kind.CT, Kind.DX, Kind.AIT2D, Kind.AIT3D))


class ImageSize(NamedTuple):
    """What an image says of its pixels; frames are 1 where nothing is said."""

    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int

    @property
    def native_bytes(self) -> int:
        """Length of all its pixels, not compressed and without padding."""
        bits = self.rows * self.columns * self.frames * self.samples * self.bits_allocated
        return -(-bits // 8)


def image_size(header: AttributeSource) -> ImageSize | None:
    """The size of an image; None where it is not stated, or makes no sense."""
    rows, columns = number(header, _ROWS), number(header, _COLUMNS)
    bits = number(header, _BITS_ALLOCATED)
    # Frames that are described are counted: there, one is no default.
    frames = number(header, _FRAMES) if _FRAMES in header or _FRAME_GROUPS in header else 1
    samples = number(header, _SAMPLES) if _SAMPLES in header else 1
    if rows is None or columns is None or bits is None or frames is None or samples is None:
        return None
    if min(rows, columns, bits, frames, samples) <= 0:
        return None
    return ImageSize(rows, columns, frames, samples, bits)


def number(source: AttributeSource, tag: int) -> int | None:
    """The first value of an element as an integer; None where it has none, or is none."""
    values = source.value(tag)
    return values[0] if values and isinstance(values[0], int) else None


def check_image(
    subject: Subject, pixels: tuple[PixelValue, ...] | None, findings: Findings, budget: Budget
) -> Steps:
    """Compare what an object says of its frames with what it has. `pixels` is None where not measured."""
    yield from _check_frames(subject, findings, budget)
    _check_bits(subject.header, findings)
    if pixels is None:
        return
    if not pixels:
        elsewhere = any(tag in subject.header for tag in _PIXEL_DATA_URLS)
        if subject.kind in _IMAGES and not elsewhere:
            findings.add(Code.NO_PIXEL_DATA, "The image has no pixel data.", Path(_PIXEL_DATA))
        return
    for value in pixels:
        _check_length(subject, value, findings)


def _check_frames(subject: Subject, findings: Findings, budget: Budget) -> Steps:
    """NumberOfFrames against the items of the Per-Frame Functional Groups Sequence."""
    header = subject.header
    frames = number(header, _FRAMES)
    if frames is None or not subject.is_whole(_FRAME_GROUPS):
        return
    items = 0
    for _ in header.items(_FRAME_GROUPS):
        items += 1
        if budget.spend():
            yield
    if items != frames:
        sentence = f"NumberOfFrames is {frames}, but {items} frames are described."
        findings.add(Code.FRAMES, sentence, Path(_FRAMES), header.vr(_FRAMES) or "")


def _check_bits(header: AttributeSource, findings: Findings) -> None:
    allocated, stored = number(header, _BITS_ALLOCATED), number(header, _BITS_STORED)
    high = number(header, _HIGH_BIT)
    if allocated is None or stored is None:
        return
    if not 0 < stored <= allocated:
        sentence = f"BitsStored is {stored} of {allocated} BitsAllocated."
        findings.add(Code.BITS, sentence, Path(_BITS_STORED), "US")
    elif high is not None and high != stored - 1:
        sentence = f"HighBit is {high} with {stored} BitsStored."
        findings.add(Code.BITS, sentence, Path(_HIGH_BIT), "US")


def _check_length(subject: Subject, value: PixelValue, findings: Findings) -> None:
    size = image_size(subject.header)
    path = Path(value.tag)
    name = f"{keyword_of(value.tag)} {tag_text(value.tag)}".strip()
    if size is None:
        return
    if value.fragments is not None:
        is_video = subject.header.transfer_syntax.uid.startswith(_VIDEO)
        if value.fragments < size.frames and not is_video:
            sentence = f"{name} has {value.fragments} fragments for {size.frames} frames."
            findings.add(Code.PIXEL_LENGTH, sentence, path)
        return
    if size.samples == 3 and coded(subject.header, _PHOTOMETRIC) in _HALF_CHROMA:
        size = size._replace(samples=2)
    expected = size.native_bytes
    if value.length_bytes not in (expected, expected + expected % 2):
        sentence = (
            f"{name} has {value.length_bytes} bytes; {size.rows} rows, {size.columns} columns, {size.frames} "
            f"frames and {size.samples} samples of {size.bits_allocated} bits are {expected}."
        )
        findings.add(Code.PIXEL_LENGTH, sentence, path)
