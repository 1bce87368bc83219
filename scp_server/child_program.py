"""The child's side of `child_processes`: a program that answers jobs on its standard input, and ends in time.

A job is two lengths of 8 bytes (big endian), a description and a content. The answer is one byte that says
what it is, a length, and that. The program ends with its input, and with the process that started it,
whatever it is doing then.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

JOB: Final = struct.Struct(">QQ")
ANSWER: Final = struct.Struct(">BQ")
_PR_SET_PDEATHSIG: Final = 1


class Jobs:
    """The jobs of this process, one after another; each is to be answered before the next is asked for."""

    def __init__(self, memory_bytes: int, job_seconds: int) -> None:
        """Take the process over: bound its memory, and let nothing but answers reach standard output."""
        end_with_parent()
        with suppress(OSError):
            # Where the machine is out of memory, this is the process to end, and not the server.
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._job_seconds = job_seconds
        self._answers: BinaryIO = os.fdopen(os.dup(1), "wb")
        # A library that prints must not print into an answer.
        os.dup2(2, 1)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        jobs = sys.stdin.buffer
        while header := jobs.read(JOB.size):
            description_bytes, content_bytes = JOB.unpack(header)
            job = jobs.read(description_bytes), jobs.read(content_bytes)
            # Whoever asked stops us before; this is for where it is gone, and nothing told us so.
            signal.alarm(self._job_seconds)
            yield job
            signal.alarm(0)

    def answer(self, kind: int, content: bytes | memoryview) -> None:
        """Answer the job at hand."""
        self._answers.write(ANSWER.pack(kind, len(content)))
        self._answers.write(content)
        self._answers.flush()


def end_with_parent() -> None:
    """Have the kernel end this process when its parent ends, however that happens (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        raise SystemExit
