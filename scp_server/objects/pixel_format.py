"""What the pixels of an object are (PS3.3 C.7.6.3), and what they are after decoding (PS3.5 8.2, A.4)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from scp_server.errors import CannotTranscode
from scp_server.objects.uids import (
    JPEG_2000_LOSSLESS,
    JPEG_BASELINE_8_BIT,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
)


class Codec(StrEnum):
    """The ways of compressing frames that can be undone."""

    RLE = "RLE"
    JPEG = "JPEG"
    """The lossy processes, 8 and 12 bit."""
    JPEG_LOSSLESS = "JPEG lossless"
    JPEG_LS = "JPEG-LS"
    JPEG_2000 = "JPEG 2000"
    """High-throughput JPEG 2000 too: its streams say so."""


CODECS: Final = {
    RLE_LOSSLESS: Codec.RLE,
    JPEG_BASELINE_8_BIT: Codec.JPEG,
    "1.2.840.10008.1.2.4.51": Codec.JPEG,
    "1.2.840.10008.1.2.4.57": Codec.JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1: Codec.JPEG_LOSSLESS,
    JPEG_LS_LOSSLESS: Codec.JPEG_LS,
    "1.2.840.10008.1.2.4.81": Codec.JPEG_LS,
    JPEG_2000_LOSSLESS: Codec.JPEG_2000,
    "1.2.840.10008.1.2.4.91": Codec.JPEG_2000,
    "1.2.840.10008.1.2.4.201": Codec.JPEG_2000,
    "1.2.840.10008.1.2.4.202": Codec.JPEG_2000,
    "1.2.840.10008.1.2.4.203": Codec.JPEG_2000,
}
"""By transfer syntax: all that can be decoded."""

_ONE_SAMPLE: Final = frozenset(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"))
_DECODED: Final = {
    Codec.RLE: {"RGB": "RGB", "YBR_FULL": "YBR_FULL"},
    # A lossy JPEG stream's colour is converted to RGB as it is decoded, and its chroma filled up.
    Codec.JPEG: {"RGB": "RGB", "YBR_FULL": "RGB", "YBR_FULL_422": "RGB"},
    Codec.JPEG_LOSSLESS: {"RGB": "RGB", "YBR_FULL": "YBR_FULL"},
    Codec.JPEG_LS: {"RGB": "RGB", "YBR_FULL": "YBR_FULL"},
    # The multiple component transformation is a part of the stream, and undone with it (PS3.5 8.2.4).
    Codec.JPEG_2000: {"RGB": "RGB", "YBR_FULL": "YBR_FULL", "YBR_ICT": "RGB", "YBR_RCT": "RGB"},
}
"""Photometric interpretation of three samples after decoding, by the one before. Others are refused."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How one frame is described by its data set. Raises CannotTranscode for what cannot be decoded.

    Decoded pixels are little endian, in cells of `bits_allocated`, colour by pixel (planar configuration 0).
    """

    codec: Codec
    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    photometric_interpretation: str
    says_lossy: bool = False
    """Whether the data set says that a lossy compression took place, (0028,2110)."""

    def __post_init__(self) -> None:
        if not (self.rows > 0 and self.columns > 0):
            raise CannotTranscode(f"an image of {self.rows} rows and {self.columns} columns")
        if self.bits_allocated not in ((8, 16, 32) if self.codec is Codec.RLE else (8, 16)):
            raise CannotTranscode(f"{self.bits_allocated} bits allocated in {self.codec}")
        if not 0 < self.bits_stored <= self.bits_allocated:
            raise CannotTranscode(f"{self.bits_stored} bits stored of {self.bits_allocated} allocated")
        if self.codec is not Codec.RLE and self.high_bit != self.bits_stored - 1:
            raise CannotTranscode(f"high bit {self.high_bit} with {self.bits_stored} bits stored")
        if self.decoded_photometric_interpretation is None:
            raise CannotTranscode(
                f"{self.photometric_interpretation} with {self.samples_per_pixel} samples in {self.codec}"
            )

    @property
    def decoded_photometric_interpretation(self) -> str | None:
        """(0028,0004) of the decoded pixels; None for a combination that is not known."""
        before = self.photometric_interpretation
        if self.samples_per_pixel == 1:
            return before if before in _ONE_SAMPLE else None
        return _DECODED[self.codec].get(before) if self.samples_per_pixel == 3 else None

    @property
    def sample_bytes(self) -> int:
        return self.bits_allocated // 8

    @property
    def frame_bytes(self) -> int:
        """Length of a decoded frame."""
        return self.rows * self.columns * self.samples_per_pixel * self.sample_bytes

    def as_json(self) -> dict[str, str | int | bool]:
        """What `from_json` reads in another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, str | int | bool]) -> PixelFormat:
        """Raises CannotTranscode, KeyError and ValueError for what `as_json` did not make."""
        return cls(**{**values, "codec": Codec(values["codec"])})  # type: ignore[arg-type]
