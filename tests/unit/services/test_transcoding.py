"""Sending compressed objects decoded: exact pixels, true descriptions, and decoders that misbehave."""

from __future__ import annotations

import asyncio
import os
import struct
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from pydicom import dcmread

from scp_server.errors import CannotTranscode
from scp_server.objects import frame_codecs
from scp_server.objects.decompression import EncodedFrame
from scp_server.objects.pixel_format import Codec, PixelFormat
from scp_server.objects.reencoding import REENCODING_BYTES, UNCOMPRESSED
from scp_server.objects.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN_64,
    IMPLICIT_VR_LITTLE_ENDIAN,
    transfer_syntax,
)
from scp_server.observability.measures import RetrieveMeasures
from scp_server.services.query_retrieve.frame_decoders import DecodingConfig, FrameDecoders
from scp_server.services.query_retrieve.transcoding import Transcoder
from scp_server.testing.compressed_objects import (
    compressed,
    description,
    encode,
    noise,
    rle_colour_frame,
    smooth,
)
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax, deflate, rle_frame
from scp_server.testing.dicos_objects import dicos_ct, dicos_dx
from scp_server.testing.objects import CT_IMAGE_STORAGE, ct_image

ELE, ILE = EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
DEFLATED = DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
RLE, BASELINE = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50"
EXTENDED, LOSSLESS, LOSSLESS_SV1 = (f"1.2.840.10008.1.2.4.{number}" for number in (51, 57, 70))
LS, LS_NEAR, J2K, J2K_LOSSY = (f"1.2.840.10008.1.2.4.{number}" for number in (80, 81, 90, 91))
HTJ2K, HTJ2K_RPCL, HTJ2K_LOSSY = (f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203))
MAX_FRAME_BYTES = 1 << 20

Pixels = np.ndarray[Any, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def transcoder() -> AsyncIterator[Transcoder]:
    found = Transcoder(DecodingConfig(processes=2, max_frame_bytes=MAX_FRAME_BYTES))
    yield found
    await found.close()


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def cut(dataset: bytes, step: int = 0) -> AsyncIterator[bytes]:
    step = step or len(dataset)
    for start in range(0, len(dataset), step):
        yield dataset[start : start + step]


async def transcoded(
    found: Transcoder, dataset: bytes, stored: str, target: str = ELE, step: int = 0
) -> bytes:
    pieces = await found.start(cut(dataset, step), stored, target, len(dataset))
    return b"".join([piece async for piece in pieces])


def read(dataset: bytes, syntax: str = ELE) -> Any:
    """The data set as pydicom reads it from a file."""
    encoder = DatasetEncoder()
    meta = encoder.encode([Element(0x00020002, "UI", CT_IMAGE_STORAGE), Element(0x00020010, "UI", syntax)])
    prefix = bytes(128) + b"DICM" + encoder.element(Element(0x00020000, "UL", len(meta))) + meta
    return dcmread(BytesIO(prefix + dataset))


GRAY = [
    (RLE, 8), (RLE, 16), (LOSSLESS_SV1, 8), (LOSSLESS_SV1, 12), (LOSSLESS_SV1, 16), (LOSSLESS, 16),
    (LS, 8), (LS, 16), (J2K, 8), (J2K, 12), (J2K, 16), (HTJ2K, 8), (HTJ2K, 16), (HTJ2K_RPCL, 16),
]  # fmt: skip


@pytest.mark.parametrize(("syntax", "bits"), GRAY)
async def test_lossless_pixels_are_exact(transcoder: Transcoder, syntax: str, bits: int) -> None:
    frames = [noise(13, 9, bits=bits, seed=seed) for seed in range(3)]
    options = {"predictor": 6} if syntax == LOSSLESS else {}
    stored = compressed(frames, [encode(syntax, each, bits, **options) for each in frames], bits=bits)
    for target in UNCOMPRESSED:
        sent = await transcoded(transcoder, stored, syntax, target)
        if target == EXPLICIT_VR_LITTLE_ENDIAN_64:
            assert struct.pack("<Q", sum(each.nbytes for each in frames) + (bits == 8)) in sent
            continue
        found = read(sent, target)
        assert np.array_equal(found.pixel_array, np.stack(frames))
        assert found.PhotometricInterpretation == "MONOCHROME2"
        assert (found.BitsStored, found.RescaleIntercept) == (bits, -1024)
        assert found[0x00081140].value[0].Rows == 7
        assert 0x00280000 not in found
        assert 0xFFFCFFFC in found
        is_words = bits > 8 or transfer_syntax(target).implicit_vr
        assert ("OW" if is_words else "OB") == found["PixelData"].VR


COLOURS = [
    (RLE, "RGB", "RGB"), (RLE, "YBR_FULL", "YBR_FULL"), (LOSSLESS_SV1, "RGB", "RGB"),
    (LOSSLESS_SV1, "YBR_FULL", "YBR_FULL"), (LS, "RGB", "RGB"), (LS, "YBR_FULL", "YBR_FULL"),
    (J2K, "YBR_RCT", "RGB"), (J2K, "RGB", "RGB"), (HTJ2K, "YBR_RCT", "RGB"),
]  # fmt: skip


@pytest.mark.parametrize(("syntax", "before", "after"), COLOURS)
async def test_lossless_colour_is_exact_and_told_as_it_is(
    transcoder: Transcoder, syntax: str, before: str, after: str
) -> None:
    frames = [noise(7, 5, 3, seed=seed) for seed in range(2)]
    options = {"mct": before == "YBR_RCT"} if syntax == J2K else {}
    encoded = [
        rle_colour_frame(each) if syntax == RLE else encode(syntax, each, 8, **options) for each in frames
    ]
    stored = compressed(frames, encoded, photometric=before)
    found = read(await transcoded(transcoder, stored, syntax))
    assert found.PhotometricInterpretation == after
    assert found.PlanarConfiguration == 0
    assert found.PixelData == b"".join(each.tobytes() for each in frames)
    assert "LossyImageCompression" not in found


@pytest.mark.parametrize(
    ("syntax", "before", "bits", "options"),
    [
        (BASELINE, "MONOCHROME2", 8, {}),
        (EXTENDED, "MONOCHROME2", 12, {}),
        (BASELINE, "YBR_FULL_422", 8, {"subsampling": "422"}),
        (BASELINE, "YBR_FULL", 8, {"subsampling": "444"}),
        (BASELINE, "RGB", 8, {"colorspace": "RGB", "outcolorspace": "RGB"}),
        (LS_NEAR, "MONOCHROME2", 8, {}),
        (J2K_LOSSY, "YBR_ICT", 8, {"mct": True}),
        (J2K_LOSSY, "MONOCHROME2", 16, {}),
    ],
)
async def test_lossy_pixels_are_near_and_stay_marked(
    transcoder: Transcoder, syntax: str, before: str, bits: int, options: dict[str, Any]
) -> None:
    frame = smooth(32, 48, bits=bits) if before == "MONOCHROME2" else smooth(32, 48, 3)
    marks = [Element(0x00282110, "CS", "01"), Element(0x00282112, "DS", "12.5")]
    for extra in (marks, marks[1:], [Element(0x00282110, "CS", "00"), *marks[1:]]):
        stored = compressed(
            [frame], [encode(syntax, frame, bits, **options)], bits=bits, photometric=before, extra=extra
        )
        if extra is not marks and syntax not in (BASELINE, EXTENDED):
            with pytest.raises(CannotTranscode, match="lossy compression that the data set does not tell of"):
                await transcoded(transcoder, stored, syntax)
            continue
        found = read(await transcoded(transcoder, stored, syntax))
        difference = np.abs(found.pixel_array.astype(int) - frame.astype(int))
        assert difference.mean() < (1 << bits) / 100
        assert found.PhotometricInterpretation == (before if before == "MONOCHROME2" else "RGB")
        assert found.LossyImageCompressionRatio == 12.5
        assert found.LossyImageCompression == "01"
        assert [each.tag for each in found] == sorted(each.tag for each in found)


@pytest.mark.parametrize(("syntax", "made_as"), [(LS_NEAR, LS), (J2K_LOSSY, J2K), (HTJ2K_LOSSY, HTJ2K)])
async def test_what_lost_nothing_is_not_called_lossy(
    transcoder: Transcoder, syntax: str, made_as: str
) -> None:
    frame = noise(9, 9)
    for extra in ([], [Element(0x00282110, "CS", "00")]):
        stored = compressed([frame], [encode(made_as, frame, 8)], extra=extra)
        found = read(await transcoded(transcoder, stored, syntax))
        assert np.array_equal(found.pixel_array, frame)
        assert found.get("LossyImageCompression") == ("00" if extra else None)


async def test_signed_pixels_keep_their_sign(transcoder: Transcoder) -> None:
    values = noise(6, 6, bits=12).astype(np.int16) - 2048
    for syntax, frame in (
        (J2K, values),
        (LOSSLESS_SV1, (values & 0xFFF).astype(np.uint16)),
        (LS, values.view(np.uint16)),
    ):
        stored = compressed([frame], [encode(syntax, frame, 12)], bits=12, signed=True)
        found = read(await transcoded(transcoder, stored, syntax))
        assert np.array_equal(found.pixel_array, values)


async def test_dicos_frames_of_vr_ow_behind_an_empty_table_are_decoded(transcoder: Transcoder) -> None:
    for make in (dicos_ct, dicos_dx):
        stored = make(transfer_syntax=TransferSyntax.RLE_LOSSLESS)
        for step in (0, 1):
            sent = await transcoded(transcoder, stored.dataset, stored.transfer_syntax_uid, step=step)
            assert sent == make(transfer_syntax=TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN).dataset


async def test_fragments_make_frames_by_table_or_by_how_streams_begin(transcoder: Transcoder) -> None:
    frames = [noise(10, 10, seed=seed) for seed in range(3)]
    encoded = [encode(LS, each, 8) for each in frames]
    pieces: list[bytes] = []
    starts: list[int] = []
    position = 0
    for each in encoded:
        starts.append(position)
        even = each + b"\0" * (len(each) % 2)
        for piece in (even[:20], even[20:60], even[60:]):
            pieces.append(piece)
            position += 8 + len(piece)
    extended = [
        Element(0x7FE00001, "OV", struct.pack("<3Q", *starts)),
        Element(0x7FE00002, "OV", struct.pack("<3Q", *map(len, encoded))),
    ]
    plain = compressed(frames, pieces)
    for stored in (
        plain,
        compressed(frames, pieces, table=struct.pack("<3I", *starts)),
        compressed(frames, pieces, extra=extended),
    ):
        for step in (0, 1, 7):
            found = read(await transcoded(transcoder, stored, LS, step=step))
            assert np.array_equal(found.pixel_array, np.stack(frames))
            assert "ExtendedOffsetTable" not in found
    wrong = compressed(frames, pieces, table=struct.pack("<3I", 0, starts[1] + 2, starts[2]))
    with pytest.raises(CannotTranscode):
        await transcoded(transcoder, wrong, LS)


@pytest.mark.parametrize(
    ("syntax", "photometric", "made_of"),
    [
        (BASELINE, "RGB", {"colorspace": "RGB", "outcolorspace": "YCBCR"}),
        (BASELINE, "YBR_FULL_422", {"colorspace": "RGB", "outcolorspace": "RGB"}),
        (BASELINE, "YBR_PARTIAL_420", {}),
        (J2K, "YBR_RCT", {"mct": False}),
        (J2K, "YBR_FULL", {"mct": True}),
        (J2K, "YBR_FULL_422", {}),
        (LS, "YBR_RCT", {}),
        (LS, "MONOCHROME2", {}),
    ],
)
async def test_colours_that_nobody_can_be_sure_of_are_refused(
    transcoder: Transcoder, syntax: str, photometric: str, made_of: dict[str, Any]
) -> None:
    frame = smooth(16, 16, 3)
    stored = compressed([frame], [encode(syntax, frame, 8, **made_of)], photometric=photometric)
    with pytest.raises(CannotTranscode):
        await transcoder.start(cut(stored), syntax, ELE, len(stored))


async def test_what_contradicts_its_data_set_is_refused_before_anything_is_sent(
    transcoder: Transcoder,
) -> None:
    frame = noise(8, 8)
    good = encode(LS, frame, 8)
    for stored, syntax, what in (
        (compressed([noise(8, 9)], [good]), LS, "shape"),
        (compressed([frame], [good]), BASELINE, "not JPEG"),
        (compressed([frame], [good]), J2K, "codestream"),
        (compressed([frame], [good[:30]]), LS, "frame 0"),
        (compressed([frame], [b"\xff\xd8" + bytes(40)]), LS, "frame header"),
        (compressed([frame], [bytes(40)]), RLE, "header"),
        (compressed([frame], [encode(LS, noise(8, 8, bits=16), 16)]), LS, "16 bits in cells of 8"),
        (compressed([noise(1024, 1025)], [good]), LS, "longer than allowed"),
    ):
        with pytest.raises(CannotTranscode, match=what):
            await transcoder.start(cut(stored), syntax, ELE, len(stored))


@pytest.mark.parametrize("encoded", [1, 3])
async def test_another_number_of_frames_than_announced_is_an_error(
    transcoder: Transcoder, encoded: int
) -> None:
    frames = [noise(8, 8, seed=seed) for seed in range(3)]
    stored = compressed(frames[:2], [encode(LS, each, 8) for each in frames[:encoded]])
    with pytest.raises(CannotTranscode, match="frames"):
        await transcoded(transcoder, stored, LS)


async def test_damage_behind_the_first_frame_ends_the_pieces(transcoder: Transcoder) -> None:
    frames = [noise(8, 8, seed=seed) for seed in range(2)]
    stored = compressed(frames, [encode(LS, frames[0], 8), b"\xff\xd8" + bytes(60)])
    pieces = await transcoder.start(cut(stored, 100), LS, ELE, len(stored))
    with pytest.raises(CannotTranscode, match="frame 1"):
        _ = [piece async for piece in pieces]
    cut_off = compressed(frames, [encode(LS, each, 8) for each in frames])[:-30]
    with pytest.raises(CannotTranscode, match="cut"):
        await transcoded(transcoder, cut_off, LS, step=100)


async def test_an_unread_rest_is_closed_without_a_trace(transcoder: Transcoder) -> None:
    frames = [noise(8, 8, seed=seed) for seed in range(2)]
    stored = compressed(frames, [encode(LS, each, 8) for each in frames])
    pieces = await transcoder.start(cut(stored, 64), LS, ELE, len(stored))
    await anext(pieces)
    await pieces.aclose()


async def test_targets_are_what_is_possible_now(
    transcoder: Transcoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert transcoder.targets(ELE, 1000) == UNCOMPRESSED[1:]
    assert transcoder.targets(EXPLICIT_VR_LITTLE_ENDIAN_64, 5 << 30) == ()
    assert transcoder.targets(LS, 1000) == transcoder.targets(RLE, 1000) == UNCOMPRESSED
    assert transcoder.targets("1.2.840.10008.1.2.4.100", 1000) == ()
    assert transcoder.missing is None
    monkeypatch.setattr(frame_codecs, "find_spec", lambda name: None)
    without = Transcoder(DecodingConfig())
    assert without.targets(LS, 1000) == ()
    assert without.targets(RLE, 1000) == UNCOMPRESSED
    assert "scp-server[codecs]" in (without.missing or "")
    with pytest.raises(CannotTranscode, match="JPEG-LS cannot be decoded: the extra `codecs`"):
        await without.start(cut(b""), LS, ELE, 0)
    with pytest.raises(CannotTranscode, match="cannot be sent in"):
        await transcoder.start(cut(b""), "1.2.840.10008.1.2.4.100", ELE, 0)
    with pytest.raises(CannotTranscode, match="nothing can be sent in"):
        await transcoder.start(cut(b""), ELE, LS, 0)


@pytest.mark.parametrize("target", UNCOMPRESSED)
async def test_uncompressed_objects_are_reencoded(transcoder: Transcoder, target: str) -> None:
    stored = ct_image(transfer_syntax=TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN)
    if target == stored.transfer_syntax_uid:
        target = ELE
    sent = await transcoded(transcoder, stored.dataset, stored.transfer_syntax_uid, target, step=100)
    wanted = ct_image(transfer_syntax=TransferSyntax(target)).dataset
    if TransferSyntax(target) is TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        sent, wanted = (zlib.decompress(each, -zlib.MAX_WBITS) for each in (sent, wanted))
    assert sent == wanted
    damaged = stored.dataset[:-1]
    with pytest.raises(CannotTranscode, match="cut"):
        await transcoded(transcoder, damaged, stored.transfer_syntax_uid, target)


async def test_what_deflates_a_thousandfold_comes_in_small_pieces(transcoder: Transcoder) -> None:
    document = DatasetEncoder().element(Element(0x00420011, "OB", bytes(64 << 20)))
    stored = deflate(document)
    assert len(document) > 900 * len(stored)
    sent = 0
    tracemalloc.start()
    try:
        async for piece in await transcoder.start(cut(stored), DEFLATED, ILE, len(stored)):
            sent += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent == (64 << 20) + 8
    assert peak < REENCODING_BYTES


@pytest.mark.parametrize("source", [ELE, DEFLATED])
async def test_many_tiny_elements_leave_others_their_turn(transcoder: Transcoder, source: str) -> None:
    elements = DatasetEncoder().encode(
        [Element(0x00091000 + number % 60_000, "LO") for number in range(60_000)]
    )
    stored = deflate(elements) if source == DEFLATED else elements
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(count_turns())
    sent = await transcoded(transcoder, stored, source, ILE)
    others.cancel()
    assert len(sent) == 8 * 60_000
    # A turn takes no more than two milliseconds of a quarter of a second, and a step.
    assert turns > 20


@pytest.fixture
def misbehaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for programs that are run in place of the decoder."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


FRAME = EncodedFrame(3, PixelFormat(Codec.RLE, 2, 2, 1, 8, 8, 7, False, "MONOCHROME2"), b"frame")


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("import os; os.abort()", "ended at frame 3"),
        ("import signal; signal.pause()", "not decoded within"),
        ("import sys; sys.stdin.buffer.read(16); sys.stdout.buffer.write(b'x' * 100)", "ended at frame 3"),
        ("raise SystemExit", "ended at frame 3"),
    ],
)
async def test_a_decoder_that_crashes_or_hangs_costs_its_frame_alone(
    misbehaving: Path, program: str, what: str
) -> None:
    (misbehaving / "misbehaving_decoder.py").write_text(program)
    seconds = 0.5 if "pause" in program else 30
    measures = RetrieveMeasures()
    decoders = FrameDecoders(DecodingConfig(frame_seconds=seconds), "misbehaving_decoder", measures)
    for _ in range(2):
        with pytest.raises(CannotTranscode, match=what):
            await decoders.decode(FRAME)
    assert measures.decoders_lost == 2
    await decoders.close()


async def test_a_cancelled_decoding_leaves_no_process(misbehaving: Path) -> None:
    fifo = misbehaving / "go"
    os.mkfifo(fifo)
    (misbehaving / "misbehaving_decoder.py").write_text(
        f"import os, signal\nwith open({str(fifo)!r}, 'w') as go: go.write(str(os.getpid()))\nsignal.pause()"
    )
    decoders = FrameDecoders(DecodingConfig(frame_seconds=60), "misbehaving_decoder")
    decoding = asyncio.create_task(decoders.decode(FRAME))
    process_id = int(await asyncio.to_thread(fifo.read_text))
    decoding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await decoding
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)
    await decoders.close()


async def test_no_more_frames_are_decoded_at_once_than_processes(misbehaving: Path) -> None:
    fifo = misbehaving / "go"
    os.mkfifo(fifo)
    (misbehaving / "misbehaving_decoder.py").write_text(
        f"with open({str(fifo)!r}, 'w') as go: go.write('started ')"
    )
    decoders = FrameDecoders(DecodingConfig(processes=1), "misbehaving_decoder")
    decodings = [asyncio.create_task(decoders.decode(FRAME)) for _ in range(2)]
    assert await asyncio.to_thread(fifo.read_text) == "started "
    await asyncio.wait(decodings, return_when=asyncio.FIRST_COMPLETED)
    assert sorted(decoding.done() for decoding in decodings) == [False, True]
    assert await asyncio.to_thread(fifo.read_text) == "started "
    results = await asyncio.gather(*decodings, return_exceptions=True)
    assert all(isinstance(result, CannotTranscode) for result in results)


async def test_more_objects_than_allowed_wait_until_another_is_sent() -> None:
    found = Transcoder(DecodingConfig(max_objects=1))
    stored = ct_image(transfer_syntax=TransferSyntax.RLE_LOSSLESS).dataset
    first = await found.start(cut(stored), RLE, ELE, len(stored))
    second = asyncio.create_task(found.start(cut(stored), RLE, ELE, len(stored)))
    sent = b"".join([piece async for piece in first])
    assert not second.done()
    assert b"".join([piece async for piece in await second]) == sent == ct_image().dataset
    await found.close()


async def test_memory_of_decoders_is_limited() -> None:
    decoders = FrameDecoders(DecodingConfig(memory_bytes=512 << 20))
    large = PixelFormat(Codec.RLE, 65535, 65535, 1, 8, 8, 7, False, "MONOCHROME2")
    segment = b"\x81\x00" * 128
    with pytest.raises(CannotTranscode, match="MemoryError"):
        await decoders.decode(EncodedFrame(0, large, struct.pack("<16I", 1, 64, *[0] * 14) + segment))
    small = PixelFormat(Codec.RLE, 8, 16, 1, 8, 8, 7, False, "MONOCHROME2")
    frame = EncodedFrame(1, small, rle_frame(bytes(128), 1))
    assert await decoders.decode(frame) == [bytes(128)]
    await decoders.close()


async def test_a_decoder_that_ended_between_two_jobs_is_replaced() -> None:
    decoders = FrameDecoders(DecodingConfig())
    small = PixelFormat(Codec.RLE, 8, 16, 1, 8, 8, 7, False, "MONOCHROME2")
    frame = EncodedFrame(1, small, rle_frame(bytes(128), 1))
    for _ in range(2):
        assert await decoders.decode(frame) == [bytes(128)]
        (idle,) = decoders._processes._idle
        idle.kill()
        await idle.wait()
    await decoders.close()


async def test_an_answer_that_is_too_long_costs_its_frame_and_leaves_no_process(misbehaving: Path) -> None:
    (misbehaving / "misbehaving_decoder.py").write_text(
        "import os\nos.write(1, bytes(3) + b'x' * 6)\nwhile True: os.write(1, bytes(1 << 20))"
    )
    decoders = FrameDecoders(DecodingConfig(frame_seconds=30), "misbehaving_decoder")
    with pytest.raises(CannotTranscode, match="ended at frame 3"):
        await decoders.decode(FRAME)
    await decoders.close()


async def test_a_program_in_the_working_directory_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    decoders = FrameDecoders(DecodingConfig())
    small = PixelFormat(Codec.RLE, 8, 16, 1, 8, 8, 7, False, "MONOCHROME2")
    assert await decoders.decode(EncodedFrame(1, small, rle_frame(bytes(128), 1))) == [bytes(128)]
    await decoders.close()


async def test_many_frames_stream_through_in_constant_memory(transcoder: Transcoder) -> None:
    frame = smooth(512, 512, bits=16)
    encoded = rle_frame(frame.tobytes(), 2)
    frames = 256
    encoder = DatasetEncoder()
    head = encoder.encode(description(frame, frames, 16, "MONOCHROME2"))
    empty = encoder.fragments(())

    async def dataset() -> AsyncIterator[bytes]:
        yield head + empty[:-8]
        for _ in range(frames):
            yield struct.pack("<HHI", 0xFFFE, 0xE000, len(encoded)) + encoded
        yield empty[-8:]

    sent = 0
    tracemalloc.start()
    try:
        async for piece in await transcoder.start(dataset(), RLE, ELE, 1 << 28):
            sent += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent > frames * frame.nbytes
    assert peak < 32 << 20


async def test_an_object_that_is_decoded_holds_at_most_four_times_the_longest_frame() -> None:
    rows, columns, longest = 4_096, 3_000, 24 << 20
    runs = b"".join(b"\x7f" + bytes(range(128)) for _ in range(rows * columns // 128))
    encoded = struct.pack("<16I", 2, 64, 64 + len(runs), *[0] * 13) + runs + runs
    frame = np.zeros((rows, columns), np.uint16)
    encoder = DatasetEncoder()
    head, empty = encoder.encode(description(frame, 3, 16, "MONOCHROME2")), encoder.fragments(())

    async def dataset() -> AsyncIterator[bytes]:
        yield head + empty[:-8]
        for _ in range(3):
            yield struct.pack("<HHI", 0xFFFE, 0xE000, len(encoded))
            for start in range(0, len(encoded), 1 << 18):
                yield encoded[start : start + (1 << 18)]
        yield empty[-8:]

    assert frame.nbytes < len(encoded) < longest
    found = Transcoder(DecodingConfig(max_frame_bytes=longest))
    sent = 0
    tracemalloc.start()
    try:
        async for piece in await found.start(dataset(), RLE, EXPLICIT_VR_BIG_ENDIAN, 1 << 28):
            sent += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await found.close()
    assert sent > 3 * frame.nbytes
    assert 2 * longest < peak < 4 * longest
