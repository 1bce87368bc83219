"""What `benchmarks.ingest` measures: the servers, the workloads, the goals, and how long all of it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import idle
from benchmarks.figures import OURS, RATE, Bound, Column, Goal, Sample, percentile
from benchmarks.load import AssociateWork, EchoWork, LargeWork, Load, StoreWork, Until, Work, apply_load
from benchmarks.peers import (
    Peer,
    start_dcmrecv,
    start_orthanc,
    start_ours,
    start_pynetdicom,
    start_sink,
    start_storescp,
)

OURS_DURABLE = f"{OURS}, durable"
SINK = "null sink"
GIBIBYTE = 1 << 30
MEGABYTE = 1e6
GROWTH_SENDERS = 4
GROWTH_STEPS = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each measurement."""
    senders: tuple[int, ...]
    """Of objects; some peers of echoes and associations only."""
    large_bytes: int
    huge_bytes: int
    """0: none."""
    idle: int
    instances: int
    """At the end of the workload growth."""
    fresh: bool
    """Whether each number of senders has a server and an archive of its own."""

    def changed(self, rounds: int | None, seconds: float | None, instances: int | None) -> Plan:
        """The same with what was asked for."""
        return replace(
            self,
            rounds=rounds or self.rounds,
            seconds=seconds or self.seconds,
            instances=instances or self.instances,
        )


FULL = Plan(5, 3.0, (1, 2, 4, 8, 16, 32), GIBIBYTE, 10 * GIBIBYTE, 5_000, 1_000_000, fresh=True)
SHORT = Plan(1, 0.4, (1, 4, 16), GIBIBYTE // 4, 0, 500, 100_000, fresh=False)


@dataclass(frozen=True, slots=True)
class Server:
    """A server to be measured."""

    key: str
    name: str
    start: Callable[[Path], Peer | None]
    idle: int = 0
    """How many idle associations are tried; 0: none."""
    serial: bool = False
    """Serves one association after the other."""
    durable: bool = False
    """Has objects on the disk before it says so."""
    flat: bool = False
    """Holds no object in memory, however large."""
    objects: bool = True
    """Takes part where objects are sent."""

    def takes(self, workload: Workload, at: int) -> bool:
        """Whether it can do that."""
        if self.serial and workload.holds and at > 1:
            return False
        return workload.concerns(self)


Measured = tuple[Mapping[str, float], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Workload:
    """Something that servers are measured by."""

    name: str
    title: str
    columns: tuple[Column, ...]
    run: Callable[[Peer, Server, int, Plan, int], list[Sample]]
    sizes: Callable[[Plan], Sequence[int]]
    concerns: Callable[[Server], bool]
    where: str = "memory"
    group: str = ""
    """Workloads of a group may share a server and its archive."""
    holds: bool = True
    """Whether senders have their associations at the same time."""
    by_senders: bool = True
    """Whether its sizes are numbers of senders."""
    on_demand: bool = False
    size_heading: str = "at once"

    def measure(self, peer: Peer, server: Server, at: int, plan: Plan, first_sender: int) -> list[Sample]:
        """Measure once. Raises OSError, RuntimeError."""
        return self.run(peer, server, at, plan, first_sender)


@dataclass(frozen=True, slots=True)
class Session:
    """What one server does between its start and its end."""

    name: str
    where: str
    steps: tuple[tuple[Workload, int], ...]

    @property
    def repeated(self) -> bool:
        """Whether there are rounds of it."""
        return not any(workload.on_demand for workload, _ in self.steps)

    def concerns(self, server: Server) -> bool:
        """Whether the server has anything to do."""
        return any(server.takes(*step) for step in self.steps)


def sessions(plan: Plan, wanted: Sequence[str]) -> list[Session]:
    """The sessions of one round."""
    groups: dict[str, list[tuple[Workload, int]]] = {}
    for workload in WORKLOADS:
        if workload.name in wanted:
            for at in workload.sizes(plan):
                name = f"{workload.name} {at}" if plan.fresh else workload.group or workload.name
                groups.setdefault(name, []).append((workload, at))
    return [Session(name, steps[0][0].where, tuple(steps)) for name, steps in groups.items()]


# -- servers ----------------------------------------------------------------------------------------------

_CAPS = {
    f"SCP_SERVER_LIMITS__{name}": str(count)
    for name, count in (
        ("MAX_ASSOCIATIONS", FULL.idle + 100),
        ("MAX_ASSOCIATIONS_PER_PEER", FULL.idle + 100),
        ("MAX_ASSOCIATIONS_PER_ADDRESS", FULL.idle + 100),
    )
}


def _ours(durability: str) -> Callable[[Path], Peer]:
    return lambda folder: start_ours(folder, {"SCP_SERVER_STORAGE__DURABILITY": durability, **_CAPS})


SERVERS = (
    Server("scp_server", OURS, _ours("process"), idle=5_000, flat=True),
    Server("scp_server-full", OURS_DURABLE, _ours("full"), durable=True, flat=True),
    Server("storescp", "storescp --fork", start_storescp, idle=200),
    Server(
        "storescp-b",
        "storescp --fork +B",
        lambda folder: start_storescp(folder, bit_preserving=True),
        flat=True,
    ),
    Server(
        "storescp-single",
        "storescp",
        lambda folder: start_storescp(folder, fork=False),
        serial=True,
        objects=False,
    ),
    Server("dcmrecv", "dcmrecv +B", start_dcmrecv, serial=True, flat=True),
    Server("orthanc", "Orthanc", start_orthanc, idle=1_000),
    Server("orthanc-sync", "Orthanc, sync", lambda folder: start_orthanc(folder, sync=True), durable=True),
    Server("pynetdicom", "pynetdicom", start_pynetdicom, idle=100),
    Server("sink", SINK, start_sink, durable=True, flat=True),
)


# -- workloads --------------------------------------------------------------------------------------------


def values_of(load: Load, bytes_each: int = 0) -> dict[str, float]:
    """What is told of a load; nothing if nothing succeeded."""
    if not load.successes:
        return {}
    latencies = sorted(time for each in load.told for time in each.latencies_seconds)
    client = sum(each.cpu_seconds for each in load.told)
    return {
        RATE: load.per_second,
        "cpu_us": 1e6 * load.cpu_seconds / load.successes,
        "client_us": 1e6 * client / load.successes,
        "p50_ms": 1e3 * percentile(latencies, 0.5),
        "p99_ms": 1e3 * percentile(latencies, 0.99),
        "peak_mb": load.memory_peak_bytes / MEGABYTE,
        "growth_mb": (load.memory_peak_bytes - load.memory_before_bytes) / MEGABYTE,
        **({"mb_per_second": load.per_second * bytes_each / MEGABYTE} if bytes_each else {}),
    }


def notes_of(load: Load, wanted: int) -> tuple[str, ...]:
    """What went otherwise than it should have."""
    notes = list(load.problems)
    if load.senders < wanted:
        notes.append(f"{load.senders} of {wanted} senders took part")
    notes += [f"answered 0x{status:04X} to {count}" for status, count in sorted(load.refused.items())]
    return tuple(notes)


def _loaded(
    name: str, make: Callable[[Plan, int], Work], single: bool = False
) -> Callable[[Peer, Server, int, Plan, int], list[Sample]]:
    def run(peer: Peer, server: Server, at: int, plan: Plan, first_sender: int) -> list[Sample]:
        work = make(plan, first_sender)
        load = apply_load(peer, work, at, Until(operations=1) if single else Until(plan.seconds))
        size = work.size_bytes if isinstance(work, LargeWork) else 0
        values = values_of(load, size)
        if server.name == SINK:
            # Its processes are there for the senders that may come.
            values = {key: value for key, value in values.items() if not key.endswith("_mb")}
        return [Sample(name, at, server.name, values, notes_of(load, at))]

    return run


def _idle(peer: Peer, server: Server, at: int, plan: Plan, first_sender: int) -> list[Sample]:
    found = idle.hold(peer, min(at, server.idle))
    values = {
        "held": found.held,
        RATE: found.taken_per_second,
        "kb_each": found.bytes_each / 1e3,
        "cpu_percent": found.cpu_percent,
        "answering": found.answering,
    }
    tried = () if at <= server.idle else (f"only {server.idle} were tried",)
    return [Sample("idle", at, server.name, values, (*tried, *([found.problem] if found.problem else [])))]


def _growth(peer: Peer, server: Server, at: int, plan: Plan, first_sender: int) -> list[Sample]:
    samples = []
    for step in range(GROWTH_STEPS):
        each = at // GROWTH_STEPS // GROWTH_SENDERS
        # One more than counted: the first is not.
        work = StoreWork("small", first_number=step * (each + 1))
        load = apply_load(peer, work, GROWTH_SENDERS, Until(operations=each))
        done = (step + 1) * at // GROWTH_STEPS
        samples.append(Sample("growth", done, server.name, values_of(load), notes_of(load, GROWTH_SENDERS)))
    return samples


_LOAD_COLUMNS = (
    Column(RATE, "a second", spread=True),
    Column("cpu_us", "CPU each, µs"),
    Column("p50_ms", "p50, ms", 2),
    Column("p99_ms", "p99, ms", 2),
    Column("peak_mb", "memory, MB"),
    Column("client_us", "sender's CPU, µs"),
)
_LARGE_COLUMNS = (
    Column("mb_per_second", "MB/s", spread=True),
    Column("cpu_us", "CPU each, µs"),
    Column("peak_mb", "memory, MB"),
    Column("growth_mb", "grown by, MB", 1),
    Column("client_us", "sender's CPU, µs"),
)
_IDLE_COLUMNS = (
    Column("held", "held"),
    Column(RATE, "taken a second", spread=True),
    Column("kb_each", "kB each", 1),
    Column("cpu_percent", "CPU at rest, %", 1),
    Column("answering", "answered an echo"),
)


def _takes_objects(server: Server) -> bool:
    return server.objects


WORKLOADS = (
    Workload(
        "ct",
        "CT, 525 kB",
        _LOAD_COLUMNS,
        _loaded("ct", lambda _, first: StoreWork("ct", first)),
        lambda plan: plan.senders,
        _takes_objects,
        group="objects",
    ),
    Workload(
        "small",
        "small, 10 kB",
        _LOAD_COLUMNS,
        _loaded("small", lambda _, first: StoreWork("small", first)),
        lambda plan: plan.senders,
        _takes_objects,
        group="objects",
    ),
    Workload(
        "durable",
        "small, durable",
        _LOAD_COLUMNS,
        _loaded("durable", lambda _, first: StoreWork("small", first)),
        lambda plan: [each for each in plan.senders if each in (1, 4, 16)],
        lambda server: server.durable,
        where="disk",
    ),
    Workload(
        "large",
        "one large object",
        _LARGE_COLUMNS,
        _loaded("large", lambda plan, first: LargeWork(plan.large_bytes, first), single=True),
        lambda _: [1],
        _takes_objects,
    ),
    Workload(
        "huge",
        "one object of 10 GiB",
        _LARGE_COLUMNS,
        _loaded("huge", lambda plan, first: LargeWork(plan.huge_bytes, first), single=True),
        lambda plan: [1] if plan.huge_bytes else [],
        lambda server: server.flat,
    ),
    Workload(
        "associations",
        "associate, echo, release",
        _LOAD_COLUMNS,
        _loaded("associations", lambda _, __: AssociateWork()),
        lambda _: [1, 4],
        lambda server: server.name != OURS_DURABLE and server.key not in {"storescp-b", "orthanc-sync"},
        group="associations",
        holds=False,
    ),
    Workload(
        "echo",
        "C-ECHO",
        _LOAD_COLUMNS,
        _loaded("echo", lambda _, __: EchoWork()),
        lambda _: [1, 4],
        lambda server: server.name != OURS_DURABLE and server.key not in {"storescp-b", "orthanc-sync"},
        group="associations",
    ),
    Workload(
        "idle",
        "idle associations",
        _IDLE_COLUMNS,
        _idle,
        lambda plan: [plan.idle],
        lambda server: server.idle > 0,
        group="associations",
        by_senders=False,
    ),
    Workload(
        "growth",
        "small, as the archive grows",
        _LOAD_COLUMNS,
        _growth,
        lambda plan: [plan.instances],
        lambda server: server.key == "scp_server",
        where="disk",
        by_senders=False,
        on_demand=True,
        size_heading="instances",
    ),
)

# -- goals ------------------------------------------------------------------------------------------------


def _goals() -> Iterator[Goal]:
    for workload, factors in (("ct", (10.0, 4.0, 1.2)), ("small", (15.0, 6.0, 1.5))):
        for other, factor in zip(("pynetdicom", "Orthanc", "storescp --fork"), factors, strict=True):
            for at in (1, 4, 16):
                yield Goal(workload, at, other, factor)
    for at, factor in ((1, 1.5), (4, 5.0), (16, 8.0)):
        yield Goal("durable", at, "Orthanc, sync", factor, OURS_DURABLE)
    yield Goal("large", 1, "dcmrecv +B", 1.0)
    for other in ("storescp", "storescp --fork", "Orthanc"):
        for at in (1, 4):
            yield Goal("associations", at, other, 1.0)
    for workload in ("ct", "small"):
        for at in (4, 8, 16, 32):
            yield Goal(workload, at, OURS, 0.9, against_at=2)
    yield Goal("growth", FULL.instances, OURS, 0.8, against_at=FULL.instances // GROWTH_STEPS)


GOALS = tuple(_goals())
BOUNDS = (
    Bound("large", 1, "growth_mb", "growth of memory, MB", most=16),
    Bound("huge", 1, "growth_mb", "growth of memory, MB", most=16),
    Bound("idle", FULL.idle, "answering", "associations that answer", least=FULL.idle),
    Bound("idle", FULL.idle, "kb_each", "memory of each, kB", most=20),
)
