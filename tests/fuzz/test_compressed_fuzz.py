"""Damaged compressed objects: an error or other pixels, never anything else."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scp_server.errors import CannotTranscode, UnreadableDataset
from scp_server.objects.decompression import Decompressor, EncodedFrame
from scp_server.objects.frame_codecs import decode_frame, read_codestream, read_jpeg
from scp_server.objects.pixel_format import CODECS, PixelFormat
from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN as ELE
from scp_server.testing.compressed_objects import J2K, LOSSLESS_SV1, LS, RLE, compressed, encode, noise

MAX_FRAME_BYTES = 1 << 20
SMALL = {
    syntax: compressed(
        [noise(4, 4, bits=bits)] * 2, [encode(syntax, noise(4, 4, bits=bits), bits)] * 2, bits=bits
    )
    for syntax, bits in ((RLE, 16), (LS, 8), (LOSSLESS_SV1, 8), (J2K, 8))
}


def outputs(stored: bytes, syntax: str, step: int) -> list[bytes | EncodedFrame]:
    found = Decompressor(syntax, ELE, MAX_FRAME_BYTES)
    parts: list[bytes | EncodedFrame] = []
    for start in range(0, len(stored), step):
        parts += found.feed(stored[start : start + step])
    return parts + found.finish()


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    syntax=st.sampled_from(sorted(SMALL)),
    damages=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=6),
    step=st.integers(1, 400),
)
def test_damaged_compressed_objects_are_errors_and_nothing_else(
    syntax: str, damages: list[tuple[int, int]], step: int
) -> None:
    stored = bytearray(SMALL[syntax])
    for position, byte in damages:
        stored[position % len(stored)] = byte
    try:
        parts = outputs(bytes(stored), syntax, step)
    except (UnreadableDataset, CannotTranscode):
        return
    assert sum(isinstance(part, EncodedFrame) for part in parts) in (0, 1, 2)


@settings(deadline=None, max_examples=150)
@given(
    damages=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
    length=st.integers(0, 400),
    syntax=st.sampled_from([RLE, LS, J2K]),
)
def test_damaged_headers_of_frames_are_refused_or_read(
    damages: list[tuple[int, int]], length: int, syntax: str
) -> None:
    frame = bytearray(encode(syntax, noise(4, 4), 8)[:length])
    for position, byte in damages:
        if frame:
            frame[position % len(frame)] = byte
    pixel_format = PixelFormat(CODECS[syntax], 4, 4, 1, 8, 8, 7, False, "MONOCHROME2")
    try:
        if syntax == RLE:
            assert len(decode_frame(pixel_format, bytes(frame))) == 16
        elif syntax == J2K:
            read_codestream(bytes(frame))
        else:
            read_jpeg(bytes(frame))
    except CannotTranscode:
        pass
