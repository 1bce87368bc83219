"""The program of a process that decodes frames: see `child_program` for its jobs and answers.

A job's description is the frame's pixel format in JSON, its content the encoded frame. The answer is pixels,
or a text that says what was wrong.
"""

from __future__ import annotations

import json
import sys

from scp_server.child_program import Jobs
from scp_server.errors import CannotTranscode
from scp_server.objects.frame_codecs import decode_frame
from scp_server.objects.pixel_format import PixelFormat

PIXELS, REFUSAL = 0, 1


def main(memory_bytes: int, frame_seconds: int) -> None:
    """Answer jobs until there are no more. A job that takes far too long ends the process."""
    jobs = Jobs(memory_bytes, frame_seconds)
    for description, frame in jobs:
        jobs.answer(*_decoded(description, frame))


def _decoded(description: bytes, frame: bytes) -> tuple[int, bytes]:
    try:
        return PIXELS, decode_frame(PixelFormat.from_json(json.loads(description)), frame)
    except CannotTranscode as refusal:
        return REFUSAL, str(refusal).encode()
    except Exception as error:  # a decoder's own, of whatever type
        return REFUSAL, f"{type(error).__name__}: {error}"[:200].encode()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
