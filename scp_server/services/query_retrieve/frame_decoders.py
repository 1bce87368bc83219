"""Processes that decode frames, since a decoder may crash, hang, or hold the interpreter's lock.

Each has its memory limited and is killed when a frame takes too long; the next frame gets a new one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from scp_server.child_processes import ChildConfig, ChildLost, ChildProcesses, ChildTooSlow
from scp_server.errors import CannotTranscode
from scp_server.objects.decompression import EncodedFrame
from scp_server.observability.measures import RetrieveMeasures
from scp_server.services.query_retrieve.decoder_process import PIXELS

_MAX_REFUSAL_BYTES = 4_096
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
        self._processes = ChildProcesses(
            ChildConfig(
                program=program,
                processes=config.processes,
                job_seconds=config.frame_seconds,
                memory_bytes=config.memory_bytes,
            )
        )

    async def decode(self, frame: EncodedFrame) -> list[bytes]:
        """The frame's pixels, in pieces. Raises CannotTranscode, also for a decoder that crashed or hung."""
        description = json.dumps(frame.pixel_format.as_json()).encode()
        most_bytes = max(frame.pixel_format.frame_bytes, _MAX_REFUSAL_BYTES)
        try:
            kind, content = await self._processes.ask(description, frame.data, most_bytes)
        except ChildTooSlow:
            self._measures.decoders_lost += 1
            raise CannotTranscode(
                f"frame {frame.number} was not decoded within {self._config.frame_seconds} s"
            ) from None
        except ChildLost as error:
            self._measures.decoders_lost += 1
            raise CannotTranscode(f"the decoder ended at frame {frame.number}") from error
        if kind != PIXELS:
            raise CannotTranscode(f"frame {frame.number}: {b''.join(content).decode(errors='replace')}")
        size = sum(map(len, content))
        if size != frame.pixel_format.frame_bytes:
            raise CannotTranscode(f"frame {frame.number} decodes to {size} bytes")
        return content

    async def close(self) -> None:
        """End the idle processes. Nothing may be decoding."""
        await self._processes.close()
