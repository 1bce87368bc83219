"""Processes for work that may crash, hang, or hold the interpreter's lock.

Each has its memory limited (`child_program`), and is killed with all that it started when a job takes too
long; the next job gets a new one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from scp_server.child_program import ANSWER, JOB
from scp_server.protocol.events import Buffer

_PIECE_BYTES = 4 << 20
"""Longest piece of an answer, and how much waits in this process before the other is made to wait."""


class ChildLost(Exception):
    """The process ended before it answered, or its answer makes no sense."""


class ChildTooSlow(Exception):
    """The process was killed: it took longer than it may."""


@dataclass(frozen=True, slots=True)
class ChildConfig:
    """`program` is a module that is run with the memory, the seconds after which it is to end itself, and
    `arguments`."""

    program: str
    arguments: tuple[str, ...] = ()
    processes: int = 1
    """Jobs at once."""
    job_seconds: float = 60.0
    """Longest a job may take, the start of a process included."""
    memory_bytes: int = 1 << 30
    """Address space of a process."""
    environment: Mapping[str, str] = field(default_factory=dict)


class ChildProcesses:
    """A bounded number of processes, started when they are needed and kept for the next job."""

    def __init__(self, config: ChildConfig) -> None:
        self._config = config
        self._room = asyncio.Semaphore(config.processes)
        self._idle: list[asyncio.subprocess.Process] = []

    async def ask(
        self, description: bytes, content: Buffer, max_answer_bytes: int, *, used_up: int | None = None
    ) -> tuple[int, list[bytes]]:
        """The answer to a job, its kind and its content in pieces. Waits while all processes have one.

        After an answer of the kind `used_up` the process is killed, not kept. Raises ChildLost or
        ChildTooSlow; cancelled, it has the process killed.
        """
        async with self._room:
            process = await self._waiting_process()
            is_reusable = False
            try:
                async with asyncio.timeout(self._config.job_seconds) as deadline:
                    process = process or await self._start()
                    kind, answer = await _ask(process, description, content, max_answer_bytes)
                is_reusable = kind != used_up
            except TimeoutError:
                if not deadline.expired():
                    raise
                raise ChildTooSlow(f"it took longer than {self._config.job_seconds:g} s") from None
            except (OSError, EOFError) as error:
                raise ChildLost(_end_of(process)) from error
            finally:
                if process is not None:
                    if is_reusable:
                        self._idle.append(process)
                    else:
                        _kill_what_it_started(process)
                        await _kill(process)
        return kind, answer

    async def close(self) -> None:
        """End the idle processes. No job may be under way."""
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                _kill_what_it_started(process)
            await _kill(process)

    async def _waiting_process(self) -> asyncio.subprocess.Process | None:
        """One that has no job, unless it has ended meanwhile: the next job is not to suffer for that."""
        process = self._idle.pop() if self._idle else None
        if process is None or process.returncode is None:
            return process
        await _kill(process)
        return None

    async def _start(self) -> asyncio.subprocess.Process:
        config = self._config
        return await asyncio.create_subprocess_exec(
            sys.executable,
            # Without the working directory on its path, which is no place for programs.
            "-P",
            "-m",
            config.program,
            str(config.memory_bytes),
            str(2 * int(config.job_seconds) + 1),
            *config.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_PIECE_BYTES,
            # Ctrl-C at a terminal is for the server alone; what it starts is killed with it. One thread, as
            # there is one job.
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **config.environment},
        )


async def _ask(
    process: asyncio.subprocess.Process, description: bytes, content: Buffer, max_answer_bytes: int
) -> tuple[int, list[bytes]]:
    """One job and its answer. Raises OSError or EOFError when the process ends instead."""
    if process.stdin is None or process.stdout is None:
        raise EOFError("a child without pipes")
    process.stdin.write(JOB.pack(len(description), len(content)) + description)
    process.stdin.write(content)
    await process.stdin.drain()
    kind, length = ANSWER.unpack(await process.stdout.readexactly(ANSWER.size))
    if length > max_answer_bytes:
        raise EOFError("an answer that is too long")
    pieces = []
    while length:
        pieces.append(await process.stdout.readexactly(min(length, _PIECE_BYTES)))
        length -= len(pieces[-1])
    return kind, pieces


def _end_of(process: asyncio.subprocess.Process | None) -> str:
    code = None if process is None else process.returncode
    if code is None:
        return "it ended, or made no sense"
    return f"it ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"


def _kill_what_it_started(process: asyncio.subprocess.Process) -> None:
    """Kill a process's group, which has its number, for its session is its own. Not long after its end: when
    nobody is left in the group, the number may come to be another's."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def kill_process(process: asyncio.subprocess.Process) -> None:
    """Kill a process, if it has not ended.

    `process.kill()` looks first whether it has, and where it has takes its exit code from the event loop,
    which then says 255.
    """
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End a process and all that is left of it. Cancelled, it has been killed all the same."""
    kill_process(process)
    # Reads what is left of an answer, too: a pipe that nobody reads is never closed.
    await process.communicate()
