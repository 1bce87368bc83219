"""Processes that decode frames, since a decoder may crash, hang, or hold the interpreter's lock.

Each has its memory limited and is killed when a frame takes too long; the next frame gets a new one.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass

from scp_server.errors import CannotTranscode
from scp_server.objects.decompression import EncodedFrame
from scp_server.observability.measures import RetrieveMeasures
from scp_server.services.query_retrieve.decoder_process import ANSWER, JOB, PIXELS

_PIECE_BYTES = 4 << 20
"""Longest piece of decoded pixels, and how much waits in this process before the other is made to wait."""
_PROGRAM = "scp_server.services.query_retrieve.decoder_process"


@dataclass(frozen=True, slots=True)
class DecodingConfig:
    """Bounds of decoding, each a setting."""

    processes: int = 1
    """Frames decoded at once."""
    frame_seconds: float = 60.0
    """Longest a frame may take, the start of a process included."""
    memory_bytes: int = 2 << 30
    """Address space of a process."""
    max_objects: int = 4
    """Objects whose frames wait, are decoded or are being sent at once."""
    max_frame_bytes: int = 128 << 20
    """Longest frame, encoded or decoded."""


class FrameDecoders:
    """A bounded number of decoding processes, started when they are needed and kept for the next frame."""

    def __init__(
        self, config: DecodingConfig, program: str = _PROGRAM, measures: RetrieveMeasures | None = None
    ) -> None:
        self._config = config
        self._measures = measures or RetrieveMeasures()
        self._program = program
        self._room = asyncio.Semaphore(config.processes)
        self._idle: list[asyncio.subprocess.Process] = []

    async def decode(self, frame: EncodedFrame) -> list[bytes]:
        """The frame's pixels, in pieces. Raises CannotTranscode, also for a decoder that crashed or hung."""
        async with self._room:
            process = await self._waiting_process()
            is_reusable = False
            try:
                async with asyncio.timeout(self._config.frame_seconds):
                    process = process or await self._start()
                    kind, content = await _ask(process, frame)
                is_reusable = True
            except TimeoutError:
                self._measures.decoders_lost += 1
                raise CannotTranscode(
                    f"frame {frame.number} was not decoded within {self._config.frame_seconds} s"
                ) from None
            except (OSError, EOFError) as error:
                self._measures.decoders_lost += 1
                raise CannotTranscode(f"the decoder ended at frame {frame.number}") from error
            finally:
                if process is not None:
                    if is_reusable:
                        self._idle.append(process)
                    else:
                        await _kill(process)
        if kind != PIXELS:
            raise CannotTranscode(f"frame {frame.number}: {b''.join(content).decode(errors='replace')}")
        size = sum(map(len, content))
        if size != frame.pixel_format.frame_bytes:
            raise CannotTranscode(f"frame {frame.number} decodes to {size} bytes")
        return content

    async def close(self) -> None:
        """End the idle processes. Nothing may be decoding."""
        while self._idle:
            await _kill(self._idle.pop())

    async def _waiting_process(self) -> asyncio.subprocess.Process | None:
        """One that has no job, unless it has ended meanwhile: the next job is not to suffer for that."""
        process = self._idle.pop() if self._idle else None
        if process is None or process.returncode is None:
            return process
        await _kill(process)
        return None

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            # Without the working directory on its path, which is no place for programs.
            "-P",
            "-m",
            self._program,
            str(self._config.memory_bytes),
            str(2 * int(self._config.frame_seconds) + 1),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_PIECE_BYTES,
            # Ctrl-C at a terminal is for the server alone; one thread, as there is one frame.
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )


async def _ask(process: asyncio.subprocess.Process, frame: EncodedFrame) -> tuple[int, list[bytes]]:
    """One job and its answer. Raises OSError or EOFError when the process ends instead."""
    if process.stdin is None or process.stdout is None:
        raise EOFError("a decoder without pipes")
    description = json.dumps(frame.pixel_format.as_json()).encode()
    process.stdin.write(JOB.pack(len(description), len(frame.data)) + description)
    process.stdin.write(frame.data)
    await process.stdin.drain()
    kind, length = ANSWER.unpack(await process.stdout.readexactly(ANSWER.size))
    if length > max(frame.pixel_format.frame_bytes, 4096):
        raise EOFError("an answer that is too long")
    content = []
    while length:
        content.append(await process.stdout.readexactly(min(length, _PIECE_BYTES)))
        length -= len(content[-1])
    return kind, content


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End a process and all that is left of it. Cancelled, it has been killed all the same."""
    if process.returncode is None:
        process.kill()
    # Reads what is left of an answer, too: a pipe that nobody reads is never closed.
    await process.communicate()
