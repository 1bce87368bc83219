"""C-FIND beside other servers: queries a second, and how long the first answer takes.

    python -m benchmarks.find                          20 000 instances in 1 000 studies, every peer installed
    python -m benchmarks.find --instances 2000 --seconds 1      the same in two minutes
    python -m benchmarks.find --million                1 000 000 instances, this server alone

Every server is sent the same objects, then asked the same kinds of query by 1 and by 8 clients, each a
process with an association of its own. The servers take turns, so that all meet the same state of the
machine; those whose answers differ in number are named. Compare ratios of one run only.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks.index_search import fill as fill_index
from benchmarks.peers import Address, Peer, start_dcmqrscp, start_orthanc, start_ours, start_qrscp
from benchmarks.raw_association import RawAssociation, request, store_request
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.runtime.build import index_path
from scp_server.settings import Settings
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.wire import ProposedContext

STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
INSTANCES_PER_STUDY = 20
INSTANCES_PER_SERIES = 10
C_FIND_RQ = 0x0020
SENDERS = 4
QUERIES_PREPARED = 500

_encoder = DatasetEncoder(EXPLICIT)


@dataclass(frozen=True)
class Archive:
    """What is asked about: how many studies, and how their UIDs and values are called."""

    studies: int
    instances_per_study: int

    def study_uid(self, study: int) -> str:
        return f"1.2.840.99999.1.{study + 1}"

    def series_uid(self, study: int, series: int) -> str:
        return f"1.2.840.99999.2.{study + 1}.{series + 1}"

    def instance_uid(self, study: int, number: int) -> str:
        return f"1.2.840.99999.3.{study + 1}.{number + 1}"

    def patient_id(self, study: int) -> str:
        return f"PAT{study // 2:06}"

    def patient_name(self, study: int) -> str:
        return f"Name{study // 2:06}^First"

    def date(self, study: int) -> str:
        return f"{2020 + study % 5}{study % 12 + 1:02}{study % 28 + 1:02}"


@dataclass(frozen=True)
class MillionArchive(Archive):
    """The index that `benchmarks.index_search` makes: 200 instances to a study."""

    def study_uid(self, study: int) -> str:
        return f"1.2.3.{study}"

    def instance_uid(self, study: int, number: int) -> str:
        return f"1.2.3.{study}.{number}"

    def series_uid(self, study: int, series: int) -> str:
        return f"1.2.3.{study}.{series}"

    def patient_id(self, study: int) -> str:
        return f"P{study}"

    def patient_name(self, study: int) -> str:
        return f"*^{study}"

    def date(self, study: int) -> str:
        return f"202401{study % 28 + 1:02}"


def dataset(archive: Archive, number: int) -> tuple[str, bytes]:
    """An object of the archive: its SOP Instance UID and its data set, without pixels."""
    study, place = divmod(number, archive.instances_per_study)
    series = place // INSTANCES_PER_SERIES
    uid = archive.instance_uid(study, place)
    elements = [
        Element(0x00080016, "UI", CT),
        Element(0x00080018, "UI", uid),
        Element(0x00080020, "DA", archive.date(study)),
        Element(0x00080030, "TM", "101112"),
        Element(0x00080050, "SH", f"ACC{study}"),
        Element(0x00080060, "CS", "MR" if study % 10 == 0 else "CT"),
        Element(0x00081030, "LO", "Study description"),
        Element(0x00100010, "PN", archive.patient_name(study)),
        Element(0x00100020, "LO", archive.patient_id(study)),
        Element(0x00100030, "DA", "19700102"),
        Element(0x00100040, "CS", "O"),
        Element(0x0020000D, "UI", archive.study_uid(study)),
        Element(0x0020000E, "UI", archive.series_uid(study, series)),
        Element(0x00200010, "SH", f"S{study}"),
        Element(0x00200011, "IS", series + 1),
        Element(0x00200013, "IS", place + 1),
    ]
    return uid, _encoder.encode(elements)


def _query(level: str, *keys: tuple[int, str, str]) -> bytes:
    identifier = _encoder.encode([Element(0x00080052, "CS", level), *(Element(*key) for key in keys)])
    return request(1, C_FIND_RQ, STUDY_ROOT, identifier)


STUDY_KEYS = (
    (0x00080020, "DA", ""),
    (0x00080030, "TM", ""),
    (0x00080050, "SH", ""),
    (0x00081030, "LO", ""),
    (0x00100010, "PN", ""),
    (0x00100020, "LO", ""),
    (0x0020000D, "UI", ""),
)


def _study_query(**values: str) -> bytes:
    tags = {"patient_id": 0x00100020, "name": 0x00100010, "date": 0x00080020, "modality": 0x00080061}
    wanted = {tags[name]: value for name, value in values.items()}
    keys = [(tag, vr, wanted.pop(tag, value)) for tag, vr, value in STUDY_KEYS]
    return _query("STUDY", *keys, *((tag, "CS", value) for tag, value in wanted.items()))


Kind = Callable[[Archive, random.Random], bytes]


def by_patient_id(archive: Archive, chance: random.Random) -> bytes:
    return _study_query(patient_id=archive.patient_id(chance.randrange(archive.studies)))


def by_name(archive: Archive, chance: random.Random) -> bytes:
    return _study_query(name=archive.patient_name(chance.randrange(archive.studies))[:-3] + "*")


def by_date_and_modality(archive: Archive, chance: random.Random) -> bytes:
    day = archive.date(chance.randrange(archive.studies))
    return _study_query(date=f"{day}-{day}", modality="CT")


def series_of_a_study(archive: Archive, chance: random.Random) -> bytes:
    study = archive.study_uid(chance.randrange(archive.studies))
    keys = ((0x00080060, "CS", ""), (0x0020000D, "UI", study), (0x0020000E, "UI", ""), (0x00200011, "IS", ""))
    return _query("SERIES", *keys)


def one_instance(archive: Archive, chance: random.Random) -> bytes:
    study, place = chance.randrange(archive.studies), chance.randrange(archive.instances_per_study)
    series = 0 if isinstance(archive, MillionArchive) else place // INSTANCES_PER_SERIES
    return _query(
        "IMAGE",
        (0x00080018, "UI", archive.instance_uid(study, place)),
        (0x0020000D, "UI", archive.study_uid(study)),
        (0x0020000E, "UI", archive.series_uid(study, series)),
        (0x00200013, "IS", ""),
    )


def by_decision(archive: Archive, chance: random.Random) -> bytes:
    day = archive.date(chance.randrange(archive.studies))
    keys = ((0x00080020, "DA", day), (0x0020000D, "UI", ""), (0x40101031, "CS", "ALARM"))
    return _query("STUDY", *keys)


KINDS: dict[str, Kind] = {
    "patient by id": by_patient_id,
    "name with wild card": by_name,
    "date range, modality": by_date_and_modality,
    "series of a study": series_of_a_study,
    "one instance": one_instance,
}


@dataclass(frozen=True)
class Result:
    """What some clients measured together."""

    queries_per_second: float
    responses_per_query: float
    median_ms: float
    statuses: frozenset[int]


_Told = tuple[int, int, float, set[int], list[float]]


def ask(peer: Peer, archive: Archive, kind: Kind, clients: int, seconds: float) -> Result:
    """Have some processes ask for a while."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(clients)
    queue: multiprocessing.SimpleQueue[tuple[int, int, float, set[int], list[float]]] = context.SimpleQueue()
    processes = [
        context.Process(
            target=_ask, args=(peer.address, archive, kind, seconds, barrier, queue, number), daemon=True
        )
        for number in range(clients)
    ]
    for process in processes:
        process.start()
    found = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    times = sorted(time for each in found for time in each[4])
    queries = sum(each[0] for each in found)
    return Result(
        queries_per_second=sum(each[0] / each[2] for each in found),
        responses_per_query=sum(each[1] for each in found) / max(queries, 1),
        median_ms=1_000 * times[len(times) // 2],
        statuses=frozenset().union(*(each[3] for each in found)),
    )


def _ask(
    address: Address,
    archive: Archive,
    kind: Kind,
    seconds: float,
    barrier: Barrier,
    queue: multiprocessing.SimpleQueue[_Told],
    number: int,
) -> None:
    chance = random.Random(number)
    messages = [kind(archive, chance) for _ in range(QUERIES_PREPARED)]
    contexts = [ProposedContext(1, STUDY_ROOT, [EXPLICIT.value])]
    with RawAssociation(address, contexts) as association:
        association.perform(messages[0])
        barrier.wait()
        began = now = time.perf_counter()
        queries = responses = 0
        statuses: set[int] = set()
        times: list[float] = []
        while now - began < seconds:
            exchange = association.perform(messages[queries % len(messages)])
            queries += 1
            responses += exchange.responses
            statuses.add(exchange.status)
            times.append((ended := time.perf_counter()) - now)
            now = ended
    queue.put((queries, responses, now - began, statuses, times))


def fill(peer: Peer, archive: Archive, instances: int) -> None:
    """Send everything. Raises RuntimeError unless all of it was accepted."""
    context = multiprocessing.get_context("fork")
    shares = [range(first, instances, SENDERS) for first in range(SENDERS)]
    began = time.monotonic()
    with context.Pool(SENDERS) as pool:
        refused = sum(pool.starmap(_send, [(peer.address, archive, share) for share in shares]))
    print(f"{peer.name}: {instances} objects in {time.monotonic() - began:.1f} s", file=sys.stderr)
    if refused:
        raise RuntimeError(f"{peer.name} refused {refused} of {instances} objects")


def _send(address: Address, archive: Archive, share: Sequence[int]) -> int:
    contexts = [ProposedContext(1, CT, [EXPLICIT.value])]
    refused = 0
    with RawAssociation(address, contexts) as association:
        for number in share:
            uid, data = dataset(archive, number)
            for attempt in range(5):
                status = association.perform(store_request(1, number % 65_536, CT, uid, data)).status
                if status == 0:
                    break
                time.sleep(0.01 * attempt)
            refused += status != 0
    return refused


def compare(peers: Sequence[Peer], archive: Archive, seconds: float, clients: Sequence[int]) -> None:
    """Ask all of them everything, in turns, and print a table."""
    kinds = dict(KINDS)
    if isinstance(archive, MillionArchive):
        kinds["studies with an alarm"] = by_decision
    print(f"{'':24}" + "".join(f"{peer.name:>24}" for peer in peers))
    for name, kind in kinds.items():
        for count in clients:
            results = [ask(peer, archive, kind, count, seconds) for peer in peers]
            cells = [f"{each.queries_per_second:10.0f}/s {each.median_ms:7.2f} ms" for each in results]
            print(f"{name + f', {count}':24}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
            for peer, each in zip(peers, results, strict=True):
                differs = abs(each.responses_per_query - results[0].responses_per_query) > 0.2
                if differs or each.statuses != {0}:
                    print(
                        f"    {peer.name}: {each.responses_per_query:.1f} answers a query, final statuses "
                        + ", ".join(f"0x{status:04X}" for status in sorted(each.statuses))
                    )


def million(folder: Path) -> Peer:
    """This server with an index of a million instances and no files."""
    data = folder / "data"
    path = index_path(Settings(data_dir=data))

    async def create() -> None:
        index = SqlIndex(IndexConfig(path))
        await index.open()
        await index.close()

    asyncio.run(create())
    print("making an index of 1 000 000 instances", file=sys.stderr)
    fill_index(path, 1_000_000)
    return start_ours(folder, {"SCP_SERVER_INDEX__COMPARE_AT_START": "false"})


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--peers", nargs="+", default=["orthanc", "dcmqrscp", "qrscp"])
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--directory", type=Path, help="where the archives are kept meanwhile")
    options = parser.parse_args()
    starts = {"orthanc": start_orthanc, "dcmqrscp": start_dcmqrscp, "qrscp": start_qrscp}
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory)))
        if options.million:
            peers = [stack.enter_context(million(top))]
            compare(peers, MillionArchive(5_000, 198), options.seconds, options.clients)
            return
        archive = Archive(options.instances // INSTANCES_PER_STUDY, INSTANCES_PER_STUDY)
        peers = [stack.enter_context(start_ours(top))]
        for name in options.peers:
            folder = top / name
            folder.mkdir()
            peer = starts[name](folder)
            if peer is None:
                print(f"{name} is not installed", file=sys.stderr)
            else:
                peers.append(stack.enter_context(peer))
        filled = []
        for peer in peers:
            try:
                fill(peer, archive, options.instances)
            except (OSError, RuntimeError) as error:
                print(f"{peer.name} is left out: {error}", file=sys.stderr)
            else:
                filled.append(peer)
        compare(filled, archive, options.seconds, options.clients)


if __name__ == "__main__":
    main()
