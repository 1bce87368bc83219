"""Sending objects in another transfer syntax than they are stored in: `Transcoding` of interfaces.py."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing

from scp_server.errors import CannotTranscode, UnreadableDataset
from scp_server.objects.decompression import DECODED, Decompressor, EncodedFrame
from scp_server.objects.frame_codecs import MISSING_EXTRA, is_available
from scp_server.objects.pixel_format import CODECS, Codec
from scp_server.objects.reencoding import UNCOMPRESSED, Reencoder, is_reencodable, reencoder
from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN
from scp_server.observability.measures import RetrieveMeasures
from scp_server.protocol.events import Buffer
from scp_server.services.loop_share import LoopShare
from scp_server.services.query_retrieve.frame_decoders import DecodingConfig, FrameDecoders

_HELD_BYTES = 4 << 20
"""Most that waits for the first frame's decoding before it is sent all the same."""


class Transcoder:
    """Re-encodes uncompressed objects in this process, and has compressed ones decoded in others."""

    def __init__(self, config: DecodingConfig, measures: RetrieveMeasures | None = None) -> None:
        self.config = config
        self._decoders = FrameDecoders(config, measures=measures)
        self._room = asyncio.Semaphore(config.max_objects)
        self._share = LoopShare()
        self._codecs = frozenset(filter(is_available, Codec))

    @property
    def missing(self) -> str | None:
        """What is not installed, to be told at start-up; None where everything is there."""
        return None if self._codecs.issuperset(Codec) else MISSING_EXTRA

    def targets(self, stored_transfer_syntax: str, dataset_bytes: int) -> tuple[str, ...]:
        codec = CODECS.get(stored_transfer_syntax)
        if codec is not None:
            return UNCOMPRESSED if codec in self._codecs else ()
        return tuple(
            target
            for target in UNCOMPRESSED
            if target != stored_transfer_syntax
            and is_reencodable(stored_transfer_syntax, target, dataset_bytes)
        )

    async def start(
        self, dataset: AsyncIterable[Buffer], stored: str, target: str, dataset_bytes: int
    ) -> AsyncGenerator[bytes, None]:
        codec = CODECS.get(stored)
        if codec is not None and codec not in self._codecs:
            raise CannotTranscode(f"{codec} cannot be decoded: {MISSING_EXTRA}")
        if target not in UNCOMPRESSED:
            raise CannotTranscode(f"nothing can be sent in {target} but what is stored in it")
        if codec is not None:
            pieces = _guarded(self._decompressed(dataset, stored, target))
        else:
            found = reencoder(stored, target, dataset_bytes)
            if found is None:
                raise CannotTranscode(f"what is stored in {stored} cannot be sent in {target}")
            pieces = _guarded(self._reencoded(dataset, found))
        # The first, empty piece says that it goes.
        await anext(pieces)
        return pieces

    async def close(self) -> None:
        """End the decoding processes. Nothing may be under way."""
        await self._decoders.close()

    async def _decompressed(
        self, dataset: AsyncIterable[Buffer], stored: str, target: str
    ) -> AsyncGenerator[bytes, None]:
        """An empty piece once the first frame is decoded, then the pieces."""
        held: list[bytes] | None = []
        async with self._room, aclosing(self._steps(dataset, stored, target)) as steps:
            async for pieces, is_frame in steps:
                if held is not None:
                    held += pieces
                    if not is_frame and sum(map(len, held)) < _HELD_BYTES:
                        continue
                    yield b""
                    pieces, held = held, None  # noqa: PLW2901
                for piece in pieces:
                    yield piece
        if held is not None:
            yield b""
            for piece in held:
                yield piece

    async def _steps(
        self, dataset: AsyncIterable[Buffer], stored: str, target: str
    ) -> AsyncGenerator[tuple[list[bytes], bool], None]:
        """What follows from each part of the data set, and whether that was a frame."""
        first = target if target in DECODED else EXPLICIT_VR_LITTLE_ENDIAN
        further = None if first == target else reencoder(first, target)
        decompressor = Decompressor(stored, first, self.config.max_frame_bytes)
        async with aclosing(_with_end(dataset)) as chunks:
            async for chunk in chunks:
                if chunk is None:
                    parts = decompressor.finish()
                else:
                    parts = await self._share.run(decompressor.feeding(chunk))
                # Frames and pieces of them are let go as soon as they have been handed on.
                while parts:
                    is_frame = isinstance(parts[0], EncodedFrame)
                    decoded = await self._decoded(parts.pop(0))
                    while decoded:
                        piece = decoded.pop(0)
                        pieces = [piece] if further is None else await self._share.run(further.feeding(piece))
                        yield pieces, is_frame
        if further is not None:
            yield further.finish(), False

    async def _decoded(self, part: bytes | EncodedFrame) -> list[bytes]:
        return await self._decoders.decode(part) if isinstance(part, EncodedFrame) else [part]

    async def _reencoded(
        self, dataset: AsyncIterable[Buffer], found: Reencoder
    ) -> AsyncGenerator[bytes, None]:
        """An empty piece once there is a first one, then the pieces."""
        has_begun = False
        async with aclosing(_with_end(dataset, found.chunk_bytes)) as chunks:
            async for chunk in chunks:
                pieces = found.finish() if chunk is None else await self._share.run(found.feeding(chunk))
                if not has_begun and (pieces or chunk is None):
                    has_begun = True
                    yield b""
                for piece in pieces:
                    yield piece


async def _guarded(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The pieces, damage told as what it means to whoever wants them."""
    async with aclosing(pieces):
        try:
            async for piece in pieces:
                yield piece
        except UnreadableDataset as damage:
            raise CannotTranscode(str(damage)) from damage


async def _with_end(
    dataset: AsyncIterable[Buffer], most_bytes: int = sys.maxsize
) -> AsyncGenerator[Buffer | None, None]:
    """The chunks, none longer than told, and None behind the last. A generator is closed with this one."""
    try:
        async for chunk in dataset:
            for start in range(0, len(chunk), most_bytes):
                yield chunk if len(chunk) <= most_bytes else memoryview(chunk)[start : start + most_bytes]
        yield None
    finally:
        if isinstance(dataset, AsyncGenerator):
            await dataset.aclose()
