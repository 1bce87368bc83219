"""Deflated data sets inflate in bounded steps, and end where their stream does."""

from __future__ import annotations

import random
import struct
import zlib

import pytest

from scp_server.errors import UnreadableDataset
from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.inflate import STEP_BYTES, BoundedInflate

DEFLATED = "1.2.840.10008.1.2.1.99"
GRACE_BYTES = 1_048_576


def raw_deflate(data: bytes, level: int = 6) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def inflate(data: bytes, step: int, max_ratio: int = 200, max_bytes: int = 0) -> bytes:
    stream = BoundedInflate(max_ratio, max_bytes, GRACE_BYTES)
    found = b"".join(
        part for start in range(0, len(data), step) for part in stream.feed(data[start : start + step])
    )
    stream.finish()
    return found


@pytest.mark.parametrize("step", [1, 1000, 10_000_000])
@pytest.mark.parametrize("size", [0, 1, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 300_000])
@pytest.mark.parametrize("repetitive", [True, False])
def test_a_stream_inflates_to_what_was_deflated(step: int, size: int, repetitive: bool) -> None:
    data = b"a" * size if repetitive else random.Random(size).randbytes(size)
    if step == 1:
        data = data[:70_000]
    assert inflate(raw_deflate(data), step) == data


def test_no_step_is_longer_than_the_bound() -> None:
    stream = BoundedInflate(max_ratio=10_000, max_bytes=0, grace_bytes=GRACE_BYTES)
    steps = [len(part) for part in stream.feed(raw_deflate(bytes(20 * 1_048_576)))]
    assert sum(steps) == 20 * 1_048_576
    assert max(steps) <= STEP_BYTES


@pytest.mark.parametrize("trailer", [b"", b"\0"])
@pytest.mark.parametrize("step", [1, 1000])
def test_one_nul_may_follow(trailer: bytes, step: int) -> None:
    assert inflate(raw_deflate(b"data") + trailer, step) == b"data"


@pytest.mark.parametrize("padding", [b"", b"\0"])
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_right_gzip_trailer_may_follow(padding: bytes, step: int) -> None:
    trailer = struct.pack("<II", zlib.crc32(b"data"), 4)
    assert inflate(raw_deflate(b"data") + trailer + padding, step) == b"data"


@pytest.mark.parametrize(
    "trailer",
    [b"\1", b"\0\0", struct.pack("<II", zlib.crc32(b"data") ^ 1, 4), bytes(8), bytes(100), b"\1" * 10**6],
)
@pytest.mark.parametrize("step", [1000, 10_000_000])
def test_anything_else_behind_the_stream_is_refused(trailer: bytes, step: int) -> None:
    with pytest.raises(UnreadableDataset, match="bytes after"):
        inflate(raw_deflate(b"data") + trailer, step)


def test_a_cut_stream_is_refused() -> None:
    data = raw_deflate(b"some data to deflate")
    for end in range(len(data)):
        with pytest.raises(UnreadableDataset, match="cut"):
            inflate(data[:end], 7)


def test_what_is_no_deflate_stream_is_refused() -> None:
    with pytest.raises(UnreadableDataset, match="not a deflate stream"):
        inflate(b"\xff" * 100, 100)


def test_a_bomb_is_refused_soon_after_the_grace() -> None:
    bomb = raw_deflate(bytes(64 * 1_048_576))
    assert len(bomb) * 900 < 64 * 1_048_576
    stream = BoundedInflate(max_ratio=200, max_bytes=0, grace_bytes=GRACE_BYTES)
    with pytest.raises(UnreadableDataset, match="more than 200 to 1") as caught:
        list(stream.feed(bomb))
    assert caught.value.status == 0xC000
    assert GRACE_BYTES <= stream.inflated_bytes <= 200 * len(bomb)


def test_the_ratio_counts_from_the_end_of_the_grace_on() -> None:
    deflated = raw_deflate(bytes(100_000))
    for grace_bytes, refused in ((100_000, False), (99_999, True), (0, True)):
        stream = BoundedInflate(max_ratio=2, max_bytes=0, grace_bytes=grace_bytes)
        if refused:
            with pytest.raises(UnreadableDataset, match="more than 2 to 1"):
                list(stream.feed(deflated))
        else:
            assert len(b"".join(stream.feed(deflated))) == 100_000


def test_short_runs_may_deflate_beyond_the_ratio() -> None:
    data = bytes(GRACE_BYTES)
    deflated = raw_deflate(data)
    assert len(data) > 200 * len(deflated)
    assert inflate(deflated, 10_000_000) == data


def test_the_inflated_size_is_bounded_where_it_is_set() -> None:
    data = random.Random(1).randbytes(100_000)
    assert inflate(raw_deflate(data), 1000, max_bytes=100_000) == data
    with pytest.raises(UnreadableDataset, match="more than 99999 bytes"):
        inflate(raw_deflate(data), 1000, max_bytes=99_999)


def test_the_tap_passes_its_limits_on() -> None:
    value = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 2_000_000) + bytes(2_000_000)
    with pytest.raises(UnreadableDataset, match="more than 200 to 1"):
        HeaderTap(DEFLATED).feed(raw_deflate(value))
    tap = HeaderTap(DEFLATED, TapLimits(max_inflate_ratio=2_000))
    tap.feed(raw_deflate(value))
    tap.finish()
    assert tap.dataset_bytes == len(raw_deflate(value))
    assert tap.offset_bytes == len(value)
    with pytest.raises(UnreadableDataset, match="more than 1000 bytes"):
        HeaderTap(DEFLATED, TapLimits(max_inflated_bytes=1_000)).feed(raw_deflate(value))
