"""The program of a process that decodes frames: jobs on its standard input, answers on standard output.

A job is two lengths of 8 bytes (big endian), a JSON description and the encoded frame. The answer is one
byte, 0 for pixels and 1 for a text that says what was wrong, a length, and that. It ends with its input, and
with the process that started it, whatever it is doing then.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from scp_server.errors import CannotTranscode
from scp_server.objects.frame_codecs import decode_frame
from scp_server.objects.pixel_format import PixelFormat
from scp_server.services.parent_process import end_with_parent

JOB: Final = struct.Struct(">QQ")
ANSWER: Final = struct.Struct(">BQ")
PIXELS, REFUSAL = 0, 1


def main(memory_bytes: int, frame_seconds: int) -> None:
    """Answer jobs until there are no more. A job that takes far too long ends the process."""
    end_with_parent()
    with suppress(OSError):
        # Where the machine is out of memory, this is the process to end, and not the server.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    # A library that prints must not print into an answer.
    os.dup2(2, 1)
    jobs = sys.stdin.buffer
    while header := jobs.read(JOB.size):
        description_bytes, frame_bytes = JOB.unpack(header)
        description, frame = jobs.read(description_bytes), jobs.read(frame_bytes)
        # The server stops us before; this is for where it is gone, and nothing told us so.
        signal.alarm(frame_seconds)
        _answer(answers, description, frame)
        signal.alarm(0)


def _answer(answers: BinaryIO, description: bytes, frame: bytes) -> None:
    try:
        kind, content = PIXELS, decode_frame(PixelFormat.from_json(json.loads(description)), frame)
    except CannotTranscode as refusal:
        kind, content = REFUSAL, str(refusal).encode()
    except Exception as error:  # a decoder's own, of whatever type
        kind, content = REFUSAL, f"{type(error).__name__}: {error}"[:200].encode()
    answers.write(ANSWER.pack(kind, len(content)))
    answers.write(content)
    answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
