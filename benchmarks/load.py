"""The load generator: one process for each association, every status checked, every answer timed.

A `Work` says what is done over and over: store objects, ask for echoes, associate. Senders associate first
and begin together; what is measured lies between, without the time to associate and to release.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Event
from typing import Protocol

from benchmarks.peers import Address, Peer
from benchmarks.processes import PeakMemory, cpu_seconds
from benchmarks.raw_association import RawAssociation
from benchmarks.sent_objects import CONTEXT_ID, OBJECTS, StoreMessage
from scp_server.testing.objects import large_ct
from scp_server.testing.wire import (
    PDV,
    VERIFICATION,
    Control,
    ProposedContext,
    c_echo_rq,
    c_store_rq,
    p_data_tf,
)

ASSOCIATE_SECONDS = 10.0
"""How long senders are waited for before it is begun without those that have no association."""
END_SECONDS = 600.0
"""How long after the end the last answer may come: longer than a `RawAssociation` waits, and 10 GiB take."""
MEMORY_EVERY_SECONDS = 0.05
IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
ECHO = p_data_tf(PDV(CONTEXT_ID, Control.COMMAND | Control.LAST, c_echo_rq(1)))

Perform = Callable[[int], int]
"""Do it for the time `number`; returns the status."""


class Work(Protocol):
    """What one sender does."""

    def performer(self, address: Address, sender: int) -> AbstractContextManager[Perform]:
        """Prepare; what comes of it is called over and over. Raises OSError."""
        ...


@contextmanager
def associated(address: Address, sop_class_uid: str, transfer_syntax_uid: str) -> Iterator[RawAssociation]:
    """An association of one context. Raises ConnectionError when it was not accepted, OSError."""
    contexts = [ProposedContext(CONTEXT_ID, sop_class_uid, [transfer_syntax_uid])]
    with RawAssociation(address, contexts) as association:
        if CONTEXT_ID not in association.accepted:
            raise ConnectionError(f"{sop_class_uid} was not accepted in {transfer_syntax_uid}")
        yield association


@dataclass(frozen=True, slots=True)
class StoreWork:
    """C-STORE of an object of `OBJECTS`, under other names each time.

    A server that has had some objects is sent others only by other senders, or with another first number.
    """

    template: str
    first_sender: int = 0
    first_number: int = 0

    @contextmanager
    def performer(self, address: Address, sender: int) -> Iterator[Perform]:
        template = OBJECTS[self.template]()
        with associated(address, template.sop_class_uid, template.transfer_syntax_uid) as association:
            message = StoreMessage(template, association.maximum_length)

            def perform(number: int) -> int:
                message.name(self.first_sender + sender, self.first_number + number)
                return association.perform(message.encoded).status

            yield perform


@dataclass(frozen=True, slots=True)
class LargeWork:
    """C-STORE of an object that is made while it is sent; from 4 GiB on an encapsulated one."""

    size_bytes: int
    first_seed: int = 0

    @contextmanager
    def performer(self, address: Address, sender: int) -> Iterator[Perform]:
        make = partial(large_ct, self.size_bytes, encapsulated=self.size_bytes >= 1 << 32)
        sample = make()
        with associated(address, sample.sop_class_uid, sample.transfer_syntax_uid) as association:

            def perform(number: int) -> int:
                sent = make(seed=self.first_seed + number)
                command = c_store_rq(1, sent.sop_class_uid, sent.sop_instance_uid)
                return association.store(CONTEXT_ID, command, sent.chunks())

            yield perform


@dataclass(frozen=True, slots=True)
class EchoWork:
    """C-ECHO on one association."""

    @contextmanager
    def performer(self, address: Address, sender: int) -> Iterator[Perform]:
        with associated(address, VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN) as association:
            yield lambda _: association.perform(ECHO).status


@dataclass(frozen=True, slots=True)
class AssociateWork:
    """An association, a C-ECHO and the release, each time anew."""

    @contextmanager
    def performer(self, address: Address, sender: int) -> Iterator[Perform]:
        contexts = [ProposedContext(CONTEXT_ID, VERIFICATION, [IMPLICIT_VR_LITTLE_ENDIAN])]

        def perform(_: int) -> int:
            with RawAssociation(address, contexts) as association:
                return association.perform(ECHO).status

        yield perform


@dataclass(frozen=True, slots=True)
class Until:
    """When a sender ends: after so many seconds or operations, whichever comes first.

    Unless it is for a single one, an operation of number 0 comes before and is not counted.
    """

    seconds: float = float("inf")
    operations: int = 1 << 62


@dataclass(frozen=True, slots=True)
class Told:
    """What one sender did."""

    began: float
    ended: float
    statuses: dict[int, int]
    latencies_seconds: list[float]
    """Of those that succeeded."""
    cpu_seconds: float
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """What several senders did together, and what that cost the server."""

    senders: int
    """Those that had an association; fewer than wanted where the server takes no more."""
    told: list[Told]
    cpu_seconds: float
    """Of the server."""
    memory_before_bytes: int
    memory_peak_bytes: int
    problems: list[str]

    @property
    def successes(self) -> int:
        """How often 0x0000 was answered."""
        return sum(each.statuses.get(0, 0) for each in self.told)

    @property
    def refused(self) -> dict[int, int]:
        """How often each other status was answered."""
        found: Counter[int] = Counter()
        for each in self.told:
            found.update({status: count for status, count in each.statuses.items() if status})
        return dict(found)

    @property
    def per_second(self) -> float:
        """Successes a second, each sender's over its own time."""
        return sum(
            each.statuses.get(0, 0) / (each.ended - each.began)
            for each in self.told
            if each.ended > each.began
        )


def apply_load(peer: Peer, work: Work, senders: int, until: Until, *, settle_seconds: float = 0.0) -> Load:
    """Have senders work on a server, and watch it; its CPU for `settle_seconds` more."""
    context = multiprocessing.get_context("fork")
    begin, release = context.Event(), context.Event()
    pipes = [context.Pipe(duplex=False) for _ in range(senders)]
    processes = [
        context.Process(
            target=_send, args=(peer.address, work, number, until, begin, release, sender), daemon=True
        )
        for number, (_, sender) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    waiting = [receiver for receiver, _ in pipes]
    told: list[Told] = []
    try:
        answered = list(_receive(waiting, ASSOCIATE_SECONDS))
        associated_ones = [receiver for receiver, each in answered if each is None]
        problems = [each.problem for _, each in answered if each is not None]
        with PeakMemory(peer.pid, MEMORY_EVERY_SECONDS) as memory:
            cpu_before = cpu_seconds(peer.pid)
            begin.set()
            if associated_ones:
                seconds = END_SECONDS + (0 if until.seconds == float("inf") else until.seconds)
                told = [each for _, each in _receive(associated_ones, seconds) if each is not None]
            time.sleep(settle_seconds)
            used = cpu_seconds(peer.pid) - cpu_before
        problems += [each.problem for each in told if each.problem]
        if silent := senders - len(answered):
            problems.append(
                f"{silent} of {senders} senders had no association after {ASSOCIATE_SECONDS:.0f} s"
            )
        if unheard := len(associated_ones) - len(told):
            problems.append(f"{unheard} senders never came to an end")
    finally:
        release.set()
        for process in processes:
            process.join(ASSOCIATE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        for receiver, _ in pipes:
            receiver.close()
    return Load(
        len(associated_ones), told, used, memory.before_bytes, memory.peak_bytes, sorted(set(problems))
    )


def _receive(
    receivers: list[Connection[None, Told | None]], seconds: float
) -> Iterator[tuple[Connection[None, Told | None], Told | None]]:
    """One message of each, of those that send one in time."""
    missing = list(receivers)
    until = time.monotonic() + seconds
    while missing and (left := until - time.monotonic()) > 0:
        for each in wait(missing, left):
            receiver = next(one for one in missing if one is each)
            missing.remove(receiver)
            try:
                yield receiver, receiver.recv()
            except EOFError:
                yield receiver, Told(0, 0, {}, [], 0, "a sender died")


def _send(
    address: Address,
    work: Work,
    number: int,
    until: Until,
    begin: Event,
    release: Event,
    answer: Connection[Told | None, None],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever started the senders ends them.
    try:
        with work.performer(address, number) as perform:
            first = int(until.operations > 1)
            if first:
                perform(0)  # So that nothing is measured for the first time.
            answer.send(None)
            begin.wait()
            answer.send(_repeat(perform, until, first))
            # Whoever measures reads the server's clock before it has releases to deal with.
            release.wait()
    except OSError as error:
        if not release.is_set():
            answer.send(Told(0, 0, {}, [], 0, str(error)))


def _repeat(perform: Perform, until: Until, first: int) -> Told:
    statuses: Counter[int] = Counter()
    latencies: list[float] = []
    problem = ""
    cpu_before = _own_cpu_seconds()
    began = now = time.perf_counter()
    number = first
    while now - began < until.seconds and number - first < until.operations:
        try:
            status = perform(number)
        except OSError as error:
            problem = str(error)
            break
        number += 1
        ended = time.perf_counter()
        statuses[status] += 1
        if not status:
            latencies.append(ended - now)
        now = ended
    return Told(began, now, dict(statuses), latencies, _own_cpu_seconds() - cpu_before, problem)


def _own_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
