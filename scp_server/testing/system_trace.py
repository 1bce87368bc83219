"""What `strace` wrote about a process, read back as system calls with their beginning and their end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

TRACED_CALLS = (
    *("openat", "close", "write", "writev", "pwrite64", "pwritev", "ftruncate", "fallocate"),
    *("fsync", "fdatasync", "syncfs", "mkdir", "rename", "renameat2", "unlink", "rmdir", "link", "symlink"),
    *("sendto", "sendmsg", "copy_file_range", "sendfile", "dup", "dup2", "dup3"),
)
"""Whatever changes files, or sends."""


def strace_command(output: Path) -> list[str]:
    """What to put before a command to trace it: all threads, every byte, and the process stays our child."""
    options = ["--daemonize=grandchild", "--follow-forks", "--seccomp-bpf", "-yy", "-xx", "-s", "16777216"]
    return [
        "strace",
        *options,
        "-e",
        "signal=none",
        "-e",
        f"trace={','.join((*TRACED_CALLS, *_CLONES))}",
        "-o",
        str(output),
    ]


class Moment(Enum):
    """Of a call: other threads' calls may lie in between."""

    BEGINS = auto()
    ENDS = auto()


@dataclass(frozen=True, slots=True)
class Call:
    """A system call. `text` is all that was written of it; `result` is 0 until it has ended.

    Descriptors are those of its `process`, named by the id of its first thread.
    """

    thread: str
    name: str
    text: str
    result: int = 0
    process: str = ""

    @property
    def strings(self) -> list[bytes]:
        """The quoted arguments, in order."""
        return [bytes.fromhex(text.replace("\\x", "")) for text in _QUOTED.findall(self.text)]

    @property
    def descriptor(self) -> int:
        """The first argument, where that is a descriptor."""
        return int(self._descriptor[1])

    @property
    def target(self) -> str:
        """What that descriptor leads to: a path, or `TCP:[...]`."""
        return self._descriptor[2] or _decoded(self._descriptor[3] or "")

    @property
    def opened_path(self) -> str:
        """The path that the result leads to; empty for a device."""
        found = _RESULT_PATH.search(self.text)
        return _decoded(found[1]) if found else ""

    @property
    def numbers(self) -> list[int]:
        """The arguments that are plain numbers, in order."""
        return [int(text) for text in _NUMBER.findall(self.text)]

    @property
    def _descriptor(self) -> re.Match[str]:
        found = _DESCRIPTOR.match(self.text)
        if found is None:
            raise ValueError(f"{self.name} has no descriptor: {self.text[:200]}")
        return found


_HEX = r"(?:\\x[0-9a-f]{2})*"
_QUOTED = re.compile(rf'"({_HEX})"')
_DEVICE = r"(?:<[a-z]+ [0-9:]+>)?"
_DESCRIPTOR = re.compile(rf"(-?\d+)(?:<(?:(TCP\S*\])|({_HEX}){_DEVICE})>)?")
_RESULT_PATH = re.compile(rf"= \d+<({_HEX})>$")
_NUMBER = re.compile(r", (\d+)(?=[,)])")
_LINE = re.compile(r"(\d+) +(?:([\w?]+)\(|<\.\.\. ([\w?]+) resumed>)(.*)$", re.DOTALL)
_RESULT = re.compile(r"\) += (-?\d+)")
_UNFINISHED = " <unfinished ...>"
_UNSEEN = (_UNFINISHED, " <unavailable>")
_CLONES = ("clone", "clone3", "fork", "vfork")
_NEW_THREAD = "CLONE_THREAD"


def read_trace(lines: Iterable[str]) -> Iterator[tuple[Moment, Call]]:
    """The calls of all threads, each twice, in the order in which they began and ended.

    Raises ValueError for a line that is not understood.
    """
    begun: dict[str, Call] = {}
    processes: dict[str, str] = {}
    killed: set[str] = set()
    for line in (line.rstrip("\n") for line in lines):
        if " +++ " in line or " --- " in line:
            continue
        found = _LINE.match(line)
        if found is None:
            raise ValueError(f"not understood: {line[:200]}")
        thread, name, _, text = found.groups()
        if name and name not in _CLONES and text.startswith(_UNSEEN):
            # Killed just as it began the call: strace came too late to see more of it than that.
            killed.add(thread)
        if thread in killed:
            continue
        if thread not in processes:
            processes[thread] = _process_of(thread, begun.values(), next(iter(processes.values()), thread))
        process = processes[thread]
        started = Call(thread, name, text.removesuffix(_UNFINISHED), process=process)
        call = started if name else begun.pop(thread)
        if name and name not in _CLONES:
            yield Moment.BEGINS, call
        if text.endswith(_UNFINISHED):
            begun[thread] = call
            continue
        whole = text if name else call.text + text
        found_result = _RESULT.search(whole)
        result = int(found_result[1]) if found_result else -1
        if call.name not in _CLONES:
            yield Moment.ENDS, Call(thread, call.name, whole, result, process)
        elif result > 0:
            processes[str(result)] = process if _NEW_THREAD in whole else str(result)


def _process_of(thread: str, begun: Iterable[Call], first: str) -> str:
    """Of a thread that was not seen before: whoever is making one at this moment says whether it is one of
    its own or a process; where nobody is, it is of the `first` process."""
    for call in begun:
        if call.name in _CLONES:
            return call.process if _NEW_THREAD in call.text else thread
    return first


def _decoded(text: str) -> str:
    return bytes.fromhex(text.replace("\\x", "")).decode("utf-8", "surrogateescape")
