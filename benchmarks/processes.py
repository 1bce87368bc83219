"""What a server's processes use, all of them together, as the kernel counts it (Linux)."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SAMPLE_SECONDS = 0.01


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; none when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("latin_1")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text[text.rindex(")") + 2 :].split()


def tree(pid: int) -> list[int]:
    """A process and what it started, and what those did."""
    found = [pid]
    for each in found:
        try:
            children = Path(f"/proc/{each}/task/{each}/children").read_text("ascii")
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += map(int, children.split())
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, of its children that run and of those that have ended.

    Exact for threads that live; of those that have ended, and of children that have, in steps of 10 ms.
    """
    seconds = 0.0
    for each in tree(pid):
        if fields := _stat(each):
            own, ended = sum(map(int, fields[11:13])), sum(map(int, fields[13:15]))
            seconds += max(own / _TICKS_PER_SECOND, _threads_seconds(each)) + ended / _TICKS_PER_SECOND
    return seconds


def _threads_seconds(pid: int) -> float:
    """CPU time of the threads that live; 0 where the kernel does not count that."""
    nanoseconds = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            nanoseconds += int(path.read_text("ascii").split()[0])
    return nanoseconds / 1e9


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its children; what they share is counted for each."""
    return sum(int(each[21]) * _PAGE_BYTES for each in map(_stat, tree(pid)) if each)


class PeakMemory:
    """Looks at the resident memory of a server, a hundred times a second unless told otherwise.

    A context manager. Looking costs some 20 microseconds for each process.
    """

    def __init__(self, pid: int, every_seconds: float = _SAMPLE_SECONDS) -> None:
        self._pid = pid
        self._every_seconds = every_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak memory", daemon=True)
        self.before_bytes = resident_bytes(pid)
        self.peak_bytes = self.before_bytes

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._every_seconds):
            self.peak_bytes = max(self.peak_bytes, resident_bytes(self._pid))
