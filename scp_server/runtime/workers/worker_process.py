"""One satellite, seen from the primary: its process, what is asked of it, and how it ends."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from scp_server.child_processes import kill_process
from scp_server.errors import SCPServerError
from scp_server.index.store import SqlIndex
from scp_server.observability.samples import Samples
from scp_server.runtime.workers.channel import Channel, ChannelEnded, Question
from scp_server.runtime.workers.desk import Desk
from scp_server.runtime.workers.messages import Pulse
from scp_server.runtime.workers.remote_writer import serve_writer

PROGRAM: Final = "scp_server.runtime.workers.satellite"
PULSE_SECONDS: Final = 2.0
"""Between one question whether it is alive and the next."""

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Inheritance:
    """Descriptors that every satellite is given: the shared counts, the data folder's lock, and the listening
    socket where the primary inherited one, else -1."""

    prunes: int
    lock: int
    listening: int = -1


class WorkerProcess:
    """A satellite that was started. Its arrival ids end in `writer`."""

    def __init__(
        self,
        number: int,
        writer: str,
        process: asyncio.subprocess.Process,
        channel: Channel,
        desk: Desk,
        serving: asyncio.Task[None],
    ) -> None:
        self.number = number
        self.writer = writer
        self.samples: Samples = {}
        """What it had counted when it was asked last."""
        self._process = process
        self._channel = channel
        self._desk = desk
        self._serving = serving

    @classmethod
    async def start(
        cls, number: int, writer: str, desk: Desk, index: SqlIndex, inheritance: Inheritance
    ) -> Self:
        """Start the process; it waits to be prepared. Raises OSError."""
        control, control_there = socket.socketpair()
        writing, writing_there = socket.socketpair()
        passed = [
            control_there.fileno(),
            writing_there.fileno(),
            inheritance.prunes,
            inheritance.lock,
            inheritance.listening,
        ]
        try:
            with control_there, writing_there:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    # Without the working directory on its path, which is no place for programs.
                    "-P",
                    "-m",
                    PROGRAM,
                    *map(str, passed),
                    pass_fds=[each for each in passed if each >= 0],
                    stdin=asyncio.subprocess.DEVNULL,
                )
        except BaseException:
            control.close()
            writing.close()
            raise
        channel = await Channel.over(control, desk.answer, desk.hear)
        serving = asyncio.create_task(serve_writer(writing, index), name=f"worker.index {number}")
        return cls(number, writer, process, channel, desk, serving)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended: negative is a signal; None while it runs."""
        return self._process.returncode

    async def ask(self, question: Question[A], seconds: float) -> A:
        """Ask it. Raises what it raises, ChannelEnded, or TimeoutError."""
        async with asyncio.timeout(seconds):
            return await self._channel.ask(question)

    async def watch(self, silence_seconds: float) -> str:
        """Until it has ended, or says nothing for so long; returns which: `ended` or `silent`."""
        try:
            while True:
                self.samples = await self.ask(Pulse(), silence_seconds)
                with suppress(TimeoutError):
                    async with asyncio.timeout(PULSE_SECONDS):
                        await self._channel.ended.wait()
        except (ChannelEnded, SCPServerError):
            return "ended"
        except TimeoutError:
            return "silent"

    def let_go(self) -> None:
        """It has been drained and may end."""
        self._channel.close()

    def kill(self) -> None:
        """End it now. Nothing where it has ended."""
        kill_process(self._process)

    async def ended(self) -> None:
        """Wait until the process is gone, and whatever it asked of the index before that is done."""
        await self._process.wait()
        self._channel.close()
        await asyncio.wait((self._serving,))
        self._desk.leave()
