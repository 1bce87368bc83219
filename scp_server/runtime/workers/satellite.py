"""The program of a satellite: a process that accepts associations for the primary that started it.

It has its own event loop, storage and readers of the index, and asks the primary for what only one process
can know. It ends with the primary, whatever happens to that, and when the connection to it breaks. Signals
are the primary's business: who ends or reloads the server sends them there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack
from typing import Any, Final

from scp_server import __version__
from scp_server.child_program import end_with_parent
from scp_server.errors import ConfigurationError, SCPServerError
from scp_server.net.listener import Listener, bind_again
from scp_server.objects.dictionary import sequence_tags
from scp_server.observability.logs import configure_logging, get_logger
from scp_server.observability.loop_lag import LoopLag
from scp_server.observability.measures import Measures
from scp_server.observability.metrics import Metrics
from scp_server.observability.rates import Rates
from scp_server.runtime.acceptor import Acceptor
from scp_server.runtime.build import (
    build_callbacks,
    build_index,
    build_quarantine,
    build_storage,
    build_validator,
)
from scp_server.runtime.loop import collector_at_ease, loop_factory
from scp_server.runtime.sight import levels_of
from scp_server.runtime.status import process_status
from scp_server.runtime.workers.channel import Channel, Notice, Question
from scp_server.runtime.workers.facades import RemoteDeletions, RemoteGrants, RemoteRoom
from scp_server.runtime.workers.messages import (
    Accept,
    AskStatus,
    Drain,
    Holding,
    Prepare,
    Pulse,
    TakeOver,
)
from scp_server.runtime.workers.remote_writer import RemoteWriter
from scp_server.services.storage import ArrivalClock
from scp_server.storage.pruning import PruneCounts

log = get_logger(__name__)

EXIT_ABANDONED: Final = 1


class Satellite:
    """One process's server, driven by what the primary asks over `control`."""

    def __init__(self, control: socket.socket, index: socket.socket, prunes: int, inherited: int) -> None:
        self._control = control
        self._index_connection = index
        self._prunes_descriptor = prunes
        self._inherited = inherited
        self._worker: _Worker | None = None
        self._channel: Channel | None = None
        self._drained = False

    async def run(self) -> int:
        """Serve until the primary says so, or is gone. Returns the exit code."""
        self._channel = await Channel.over(self._control, self._answer, self._hear)
        await self._channel.ended.wait()
        if self._drained:
            return 0
        log.error("worker.abandoned")
        if self._worker is not None:
            await self._worker.abort()
        return EXIT_ABANDONED

    def _hear(self, notice: Notice) -> None:
        raise TypeError(f"a satellite is not told {type(notice).__name__}")

    async def _answer(self, question: Question[Any]) -> object:
        if isinstance(question, Prepare):
            if self._channel is None or self._worker is not None:
                raise SCPServerError("a worker is prepared once")
            worker = _Worker(
                question, self._channel, self._index_connection, self._prunes_descriptor, self._inherited
            )
            await worker.prepare()
            self._worker = worker
            return None
        worker_ = self._worker
        if worker_ is None:
            raise SCPServerError("the worker is not prepared")
        if isinstance(question, Drain):
            clean = await worker_.drain(question.seconds)
            self._drained = True
            return clean
        return await worker_.answer(question)


class _Worker:
    """What a satellite is made of, once it knows its settings."""

    def __init__(
        self, order: Prepare, channel: Channel, index: socket.socket, prunes: int, inherited: int
    ) -> None:
        settings = order.settings
        self._settings = settings
        self._number = order.number
        self._log()
        self._addresses = order.addresses
        self._inherited = inherited
        self._measures = measures = Measures()
        self._prunes = PruneCounts(order.workers, order.number, prunes)
        self._storage = build_storage(settings, writer=order.writer, prunes=self._prunes)
        # The primary counts what its index does for all.
        self._index = build_index(settings, writer=RemoteWriter(index, channel.close_from_thread))
        self._quarantine = build_quarantine(settings, self._storage, measures, RemoteRoom(channel))
        self._callbacks = build_callbacks(settings, measures)
        self._acceptor = Acceptor(
            settings,
            self._storage,
            self._index,
            measures,
            self._quarantine,
            RemoteDeletions(channel),
            self._callbacks,
            ArrivalClock(order.writer),
            RemoteGrants(channel),
            validator=build_validator(settings, measures),
        )
        self._manager = self._acceptor.manager
        self._rates = Rates(measures.operations, time.monotonic)
        self._lag = LoopLag(measures.loop_lag, tick=self._rates.note)
        self._metrics = Metrics(measures, lambda: levels_of(self._manager), __version__)
        self._listener: Listener | None = None
        self._stack = ExitStack()

    def _log(self) -> None:
        log_settings = self._settings.log
        configure_logging(log_settings.format, log_settings.level, worker=self._number)

    async def prepare(self) -> None:
        """Open everything, and bind."""
        await asyncio.to_thread(sequence_tags, True)
        self._prunes.open()
        await self._storage.open()
        await self._quarantine.open()
        await self._index.open()
        await self._callbacks.start()
        try:
            if self._addresses:
                bound = bind_again(self._addresses)
            else:
                bound = [socket.socket(fileno=self._inherited)]
                bound[0].setblocking(False)
        except OSError as error:
            raise ConfigurationError(f"listen: a worker cannot listen too: {error.strerror}") from error
        listen = self._settings.listen
        self._listener = Listener(self._manager, listen.host, listen.port, bound)

    async def answer(self, question: Question[Any]) -> object:
        """What the primary asks while associations come and go."""
        if isinstance(question, Pulse):
            return self._metrics.samples()
        if isinstance(question, Holding):
            return await self._storage.not_yet_indexed(question.locations)
        if isinstance(question, AskStatus):
            return process_status(self._manager, self._rates)
        if isinstance(question, TakeOver):
            self._acceptor.reload(question.settings)
            self._settings = question.settings
            self._log()
            return None
        if isinstance(question, Accept):
            if self._listener is None:
                raise SCPServerError("the worker is not prepared")
            await self._listener.start()
            self._lag.start()
            self._stack.enter_context(collector_at_ease())
            return None
        raise TypeError(f"a satellite is not asked {type(question).__name__}")

    async def drain(self, seconds: float) -> bool:
        """End as a whole server does."""
        if self._listener is not None:
            await self._listener.stop()
        clean = await self._manager.drain(seconds)
        self._lag.stop()
        await self._callbacks.close()
        await self._acceptor.destinations.close()
        await self._acceptor.transcoder.close()
        await self._index.close()
        await self._quarantine.close()
        await self._storage.close()
        return clean

    async def abort(self) -> None:
        """Nobody can make anything safe any more: abort every association."""
        if self._listener is not None:
            await self._listener.stop()
        await self._manager.drain(0)


def main(descriptors: list[int]) -> None:
    """`descriptors`: control, index, the shared counts, the data folder's lock, and the listening socket that
    the primary inherited, or -1."""
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control, index, prunes, lock, inherited = descriptors
    for descriptor in (control, index, prunes, lock, inherited):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    satellite = Satellite(socket.socket(fileno=control), socket.socket(fileno=index), prunes, inherited)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        code = runner.run(satellite.run())
    # Threads that wait for a disk, or for an index that is gone, would keep the process.
    os._exit(code)


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]])
