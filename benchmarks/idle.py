"""Associations that are held and do nothing: how many a server takes, what each costs, who still answers."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

from benchmarks.load import ECHO, IMPLICIT_VR_LITTLE_ENDIAN
from benchmarks.peers import Peer
from benchmarks.processes import cpu_seconds, resident_bytes
from benchmarks.raw_association import RawAssociation
from benchmarks.sent_objects import CONTEXT_ID
from scp_server.testing.wire import VERIFICATION, ProposedContext

TIMEOUT_SECONDS = 3.0
TAKE_SECONDS = 20.0
"""Who has not taken all of them by then is asked about those that it took."""
SILENT = 5
"""So many that do not answer end the asking."""
REST_SECONDS = 1.0
SPARE_FILES = 100


@dataclass(frozen=True, slots=True)
class Idle:
    """What was seen."""

    held: int
    taken_per_second: float
    bytes_each: float
    """Growth of the server's resident memory, for each."""
    cpu_percent: float
    """Of one core, while nothing happens."""
    answering: int
    problem: str = ""


def hold(peer: Peer, wanted: int) -> Idle:
    """Hold so many associations at once, rest, and ask each for an echo."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if wanted + SPARE_FILES > most:
        raise RuntimeError(f"{wanted} associations need more than the {most} files that may be open")
    contexts = [ProposedContext(CONTEXT_ID, VERIFICATION, [IMPLICIT_VR_LITTLE_ENDIAN])]
    held: list[RawAssociation] = []
    problem = ""
    before = resident_bytes(peer.pid)
    began = time.monotonic()
    try:
        while len(held) < wanted and time.monotonic() - began < TAKE_SECONDS:
            try:
                held.append(RawAssociation(peer.address, contexts, silence_seconds=TIMEOUT_SECONDS))
            except OSError as error:
                problem = f"took {len(held)} associations, then: {error}"
                break
        taking = time.monotonic() - began
        each = (resident_bytes(peer.pid) - before) / max(len(held), 1)
        cpu = cpu_seconds(peer.pid)
        time.sleep(REST_SECONDS)
        cpu = cpu_seconds(peer.pid) - cpu
        answering, silent = _asked(held)
    finally:
        for association in held:
            association.close()
    if silent:
        problem = (
            f"{problem}; " * bool(problem) + f"of {answering + silent} that were asked {silent} were silent"
        )
    return Idle(len(held), len(held) / taking, each, 100 * cpu / REST_SECONDS, answering, problem)


def _asked(held: list[RawAssociation]) -> tuple[int, int]:
    answering = silent = 0
    for association in held:
        try:
            answering += association.perform(ECHO).status == 0
        except OSError:
            silent += 1
            if silent >= SILENT:
                break
    return answering, silent
