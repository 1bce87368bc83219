"""All satellites of a primary: started with it, watched, replaced when they die, asked together, and ended.

When one has died, what it left is dealt with before another takes its place: its part files go, and what it
had made visible without the index knowing is adopted, as a start does it (`recovery.py`). While that is not
done, whatever it wrote counts as in flight.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from scp_server.errors import ConfigurationError, SCPServerError
from scp_server.net.listener import BoundAddress
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import WorkerMeasures
from scp_server.observability.samples import Samples, added, growing
from scp_server.runtime.status import add_totals
from scp_server.runtime.workers.channel import Question
from scp_server.runtime.workers.messages import (
    Accept,
    AskStatus,
    Drain,
    Holding,
    Prepare,
    Pulse,
    TakeOver,
)
from scp_server.runtime.workers.patience import Patience
from scp_server.runtime.workers.shares import share_of
from scp_server.settings import Settings
from scp_server.storage.layout import arrival_id_in

log = get_logger(__name__)

START_SECONDS: Final = 60.0
"""How long a satellite may take to be prepared: Python's start on a busy machine, and opening the folder."""
LOOK_SECONDS: Final = 0.5
"""How long metrics and status wait for a satellite; after that they go with what it said last."""
_WRITER_BYTES: Final = 3
_SHARE_OF_CLOSING: Final = 0.7
"""Of the time for closing: what satellites may take, so that the primary can close after them."""

A = TypeVar("A")

_Failed = (OSError, TimeoutError, SCPServerError)


class Worker(Protocol):
    """A satellite that was started: see `WorkerProcess`."""

    samples: Samples

    @property
    def number(self) -> int: ...
    @property
    def writer(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def exit_code(self) -> int | None: ...
    async def ask(self, question: Question[A], seconds: float) -> A: ...
    async def watch(self, silence_seconds: float) -> str: ...
    def let_go(self) -> None: ...
    def kill(self) -> None: ...
    async def ended(self) -> None: ...


class Workers:
    """The satellites of one server; none where the setting `workers` is 1, and then all of this does nothing.

    `start` starts one of this number, which writes under this name; it may raise OSError. `recovered` is
    called with the name of a writer that has ended, and deals with what it left, or raises an SCPServerError.
    """

    def __init__(
        self,
        settings: Settings,
        start: Callable[[int, str], Awaitable[Worker]],
        recovered: Callable[[str], Awaitable[None]],
        measures: WorkerMeasures,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._start = start
        self._recovered = recovered
        self._measures = measures
        self._clock = clock
        self._pause = pause
        self._addresses: tuple[BoundAddress, ...] = ()
        self._used_names: set[str] = set()
        self._workers: dict[int, Worker] = {}
        self._processes: set[Worker] = set()
        """All that are not known to have ended."""
        self._left: set[str] = set()
        """Names of writers that have ended, and whose leavings are not dealt with."""
        self._keeping: list[asyncio.Task[None]] = []
        self._departed: Samples = {}
        self.departed_totals: dict[str, int] = {}
        """What status counted of those that have ended."""
        self._statuses: dict[Worker, dict[str, Any]] = {}

    # -- starting

    def new_name(self) -> str:
        """A name for a writer that nobody has had since the server started."""
        while (name := secrets.token_hex(_WRITER_BYTES)) in self._used_names:
            pass
        self._used_names.add(name)
        return name

    @property
    def running(self) -> int:
        """How many satellites accept associations."""
        return len(self._workers)

    @property
    def pids(self) -> list[int]:
        """Their process ids."""
        return [worker.pid for _, worker in sorted(self._workers.items())]

    async def start(self) -> None:
        """Start the processes, which import their modules meanwhile. Raises ConfigurationError."""
        try:
            for number in range(1, self._settings.workers):
                self._workers[number] = await self._process(number)
        except OSError as error:
            raise ConfigurationError(f"workers: cannot start a process: {error.strerror}") from error

    async def prepare(self, addresses: tuple[BoundAddress, ...]) -> None:
        """Have all of them build what they need, and bind. Raises ConfigurationError."""
        self._addresses = addresses
        await self._all_of_them(self._prepare)

    async def accept(self) -> None:
        """Have all accept, and watch them from now on. Raises ConfigurationError."""
        await self._all_of_them(self._accept)
        for worker in list(self._workers.values()):
            log.info("worker.started", number=worker.number, worker_pid=worker.pid)
            keeping = self._keep(worker)
            self._keeping.append(asyncio.create_task(keeping, name=f"worker.keep {worker.number}"))

    async def _all_of_them(self, step: Callable[[Worker], Awaitable[None]]) -> None:
        try:
            await asyncio.gather(*map(step, self._workers.values()))
        except _Failed as error:
            raise ConfigurationError(f"workers: one could not be started: {error or 'no answer'}") from error

    async def _process(self, number: int) -> Worker:
        worker = await self._start(number, self.new_name())
        self._processes.add(worker)
        return worker

    async def _prepare(self, worker: Worker) -> None:
        order = Prepare(
            share_of(self._settings, worker.number),
            worker.number,
            self._settings.workers,
            worker.writer,
            self._addresses,
        )
        await worker.ask(order, START_SECONDS)

    async def _accept(self, worker: Worker) -> None:
        await worker.ask(Accept(), self._settings.worker_silence_seconds)

    # -- watching

    async def _keep(self, worker: Worker) -> None:
        """Replace the worker of one number, again and again."""
        patience = Patience(self._clock)
        while True:
            reason = await worker.watch(self._settings.worker_silence_seconds)
            self._measures.lost += 1
            await self._bury(worker, reason)
            await self._deal_with(worker.writer, patience)
            worker = await self._replacement(worker.number, patience)

    async def _bury(self, worker: Worker, reason: str) -> None:
        self._workers.pop(worker.number, None)
        # In flight, whatever is asked, until it is dealt with.
        self._left.add(worker.writer)
        worker.kill()
        await worker.ended()
        self._processes.discard(worker)
        self._departed = added(self._departed, growing(worker.samples))
        last = self._statuses.pop(worker, {})
        self.departed_totals = add_totals(self.departed_totals, last.get("totals", {}))
        log.error(
            "worker.ended",
            number=worker.number,
            worker_pid=worker.pid,
            reason=reason,
            exit_code=worker.exit_code,
        )

    async def _deal_with(self, writer: str, patience: Patience) -> None:
        while True:
            # Those of its objects that the index does not know are orphans from here on.
            self._left.discard(writer)
            try:
                await self._recovered(writer)
            except Exception as error:  # whatever it is, what that one left must not be forgotten
                self._left.add(writer)
                defect = None if isinstance(error, SCPServerError) else error
                log.error("worker.not_recovered", error=str(error), exc_info=defect)
                await self._pause(patience.ended())
            else:
                return

    async def _replacement(self, number: int, patience: Patience) -> Worker:
        while True:
            await self._pause(patience.ended())
            patience.started()
            began = self._clock()
            worker: Worker | None = None
            try:
                worker = await self._process(number)
                await self._prepare(worker)
                await self._accept(worker)
            except _Failed as error:
                log.error("worker.not_started", number=number, error=str(error) or "no answer")
                if worker is not None:
                    await self._bury(worker, "not started")
                    await self._deal_with(worker.writer, patience)
                continue
            self._workers[number] = worker
            log.warning(
                "worker.restarted",
                number=number,
                worker_pid=worker.pid,
                seconds=round(self._clock() - began, 3),
            )
            return worker

    # -- asking all

    async def not_yet_indexed(self, locations: Sequence[str]) -> set[str]:
        """Those of `locations` that satellites made visible and do not know to be indexed, or may have.

        The name at the end of an arrival id says whom to ask. One that does not answer, or has died and left
        what nobody has looked at, may have any: what it wrote is in flight.
        """
        held: set[str] = set()
        by_writer: dict[str, list[str]] = {}
        living = {worker.writer: worker for worker in self._processes}
        for location in locations:
            writer = arrival_id_in(location)[-2 * _WRITER_BYTES :]
            if writer in self._left:
                held.add(location)
            elif writer in living:
                by_writer.setdefault(writer, []).append(location)
        for writer, theirs in by_writer.items():
            question = Holding(tuple(theirs))
            try:
                answer = await living[writer].ask(question, self._settings.worker_silence_seconds)
                held |= answer
            except _Failed:
                held.update(theirs)
        return held

    async def look(self) -> None:
        """Have `samples` tell this moment's numbers, of those that answer soon."""

        async def look_at(worker: Worker) -> None:
            with suppress(*_Failed):
                worker.samples = await worker.ask(Pulse(), LOOK_SECONDS)

        await asyncio.gather(*map(look_at, self._workers.values()))

    def samples(self) -> Samples:
        """What all satellites have counted, those that have ended too."""
        samples = self._departed
        for worker in self._workers.values():
            samples = added(samples, worker.samples)
        return samples

    async def statuses(self) -> list[dict[str, Any]]:
        """`process_status` of each satellite that answers soon; of another what it said last, if anything."""

        async def status_of(worker: Worker) -> None:
            with suppress(*_Failed):
                self._statuses[worker] = await worker.ask(AskStatus(), LOOK_SECONDS)

        workers = list(self._workers.values())
        await asyncio.gather(*map(status_of, workers))
        return [self._statuses[worker] for worker in workers if worker in self._statuses]

    async def reload(self, settings: Settings) -> None:
        """Have all take over their shares of other settings; one that cannot is replaced."""
        self._settings = settings

        async def take_over(worker: Worker) -> None:
            question: Question[None] = TakeOver(share_of(settings, worker.number))
            try:
                await worker.ask(question, settings.worker_silence_seconds)
            except _Failed as error:
                log.error("worker.not_reloaded", number=worker.number, error=str(error) or "no answer")
                worker.kill()

        await asyncio.gather(*map(take_over, list(self._workers.values())))

    # -- the end

    async def drain(self, seconds: float, close_seconds: float) -> bool:
        """End all as the primary ends; returns whether every operation ended by itself."""
        await self._watch_no_more()

        async def drain(worker: Worker) -> bool:
            try:
                clean = await worker.ask(Drain(seconds), seconds + _SHARE_OF_CLOSING * close_seconds)
            except _Failed as error:
                log.error("worker.not_drained", number=worker.number, error=str(error) or "no answer")
                return False
            worker.let_go()
            return clean

        return all(await asyncio.gather(*map(drain, list(self._workers.values()))))

    async def stop(self) -> None:
        """End whatever is left. A second time does nothing."""
        await self._watch_no_more()
        for worker in self._processes:
            worker.kill()
        for worker in tuple(self._processes):
            await worker.ended()
        self._processes.clear()
        self._workers.clear()

    async def _watch_no_more(self) -> None:
        keeping, self._keeping = self._keeping, []
        for task in keeping:
            task.cancel()
        if keeping:
            await asyncio.wait(keeping)
