"""C-GET and C-MOVE beside other servers: objects and bytes a second, what they cost the server, its memory.

    python -m benchmarks.retrieve                      20 studies of 200 CT slices and an object of 1 GiB
    python -m benchmarks.retrieve --studies 4 --rounds 3 --big-mebibytes 64       the same in a minute or two
    python -m benchmarks.retrieve --peers              this server alone

Every server is sent the same objects and then asked for them, in turns whose order rotates, so that all meet
the same state of the machine. Who asks, and the destination of C-MOVE, take what comes without looking at it
(`benchmarks/receiver.py`); what they take is compared with what was sent beforehand. Times are from before
the association is asked for to its last answer. "Cold" means that the kernel has dropped the server's files
from its cache before each fetch; that does nothing on tmpfs, so there it is left out. Numbers are medians of
all rounds; compare ratios of one run only.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks.peers import Address, Peer, start_dcmqrscp, start_orthanc, start_ours, start_qrscp
from benchmarks.processes import PeakMemory, cpu_seconds
from benchmarks.raw_association import RawAssociation, Rejected, request
from benchmarks.receiver import Destination, Digested
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.wire import ProposedContext, c_store_rq, role_selection

STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
C_GET_RQ = 0x0010
C_MOVE_RQ = 0x0021
SLICE_BYTES = 524_288
"""512 by 512 pixels of two bytes."""
MEBIBYTE = 1 << 20
BIG_STUDY = 999
MEMORY_CLIENTS = 8
TRY_AGAIN_SECONDS = 0.05
GIVE_UP_SECONDS = 300.0

_encoder = DatasetEncoder(EXPLICIT)


def study_uid(study: int) -> str:
    """Of a study of slices, or of `BIG_STUDY`."""
    return f"1.2.840.99999.1.{study + 1}"


@dataclass(frozen=True)
class Object:
    """One object that is sent: its UIDs, and its data set, made anew whenever it is wanted."""

    study_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    pieces: Callable[[], Iterator[bytes]]

    def digest(self) -> tuple[str, str]:
        """SOP Instance UID and SHA-256 of the data set."""
        found = hashlib.sha256()
        for piece in self.pieces():
            found.update(piece)
        return self.sop_instance_uid, found.hexdigest()


def _header(sop_class_uid: str, study: int, number: int, frames: int) -> bytes:
    return _encoder.encode(
        [
            Element(0x00080016, "UI", sop_class_uid),
            Element(0x00080018, "UI", _instance_uid(study, number)),
            Element(0x00080020, "DA", "20250102"),
            Element(0x00080030, "TM", "101112"),
            Element(0x00080050, "SH", f"ACC{study}"),
            Element(0x00080060, "CS", "CT"),
            Element(0x00100010, "PN", f"Name{study}^First"),
            Element(0x00100020, "LO", f"PAT{study}"),
            Element(0x00100030, "DA", "19700102"),
            Element(0x00100040, "CS", "O"),
            Element(0x0020000D, "UI", study_uid(study)),
            Element(0x0020000E, "UI", f"1.2.840.99999.2.{study + 1}"),
            Element(0x00200010, "SH", f"S{study}"),
            Element(0x00200011, "IS", 1),
            Element(0x00200013, "IS", number + 1),
            Element(0x00280002, "US", 1),
            Element(0x00280004, "CS", "MONOCHROME2"),
            Element(0x00280008, "IS", frames),
            Element(0x00280010, "US", 512),
            Element(0x00280011, "US", 512),
            Element(0x00280100, "US", 16),
            Element(0x00280101, "US", 16),
            Element(0x00280102, "US", 15),
            Element(0x00280103, "US", 0),
        ]
    )


def _instance_uid(study: int, number: int) -> str:
    return f"1.2.840.99999.3.{study + 1}.{number + 1}"


def _pixels(size_bytes: int) -> bytes:
    """The beginning of Pixel Data (7FE0,0010)."""
    return b"\xe0\x7f\x10\x00OW\0\0" + size_bytes.to_bytes(4, "little")


def slice_of(study: int, number: int) -> Object:
    """A CT slice of half a megabyte."""

    def pieces() -> Iterator[bytes]:
        yield _header(CT, study, number, 1) + _pixels(SLICE_BYTES)
        yield random.Random(1_000 * study + number).randbytes(SLICE_BYTES)

    return Object(study_uid(study), CT, _instance_uid(study, number), pieces)


def big_object(mebibytes: int) -> Object:
    """One object of many frames."""

    def pieces() -> Iterator[bytes]:
        yield _header(ENHANCED_CT, BIG_STUDY, 0, 2 * mebibytes) + _pixels(mebibytes * MEBIBYTE)
        block = random.Random(0).randbytes(MEBIBYTE - 8)
        for number in range(mebibytes):
            yield number.to_bytes(8, "little") + block

    return Object(study_uid(BIG_STUDY), ENHANCED_CT, _instance_uid(BIG_STUDY, 0), pieces)


def fill(peer: Peer, objects: Sequence[Object]) -> None:
    """Send everything, then have it written to the disk. Raises RuntimeError unless all of it was taken."""
    began = time.monotonic()
    contexts = [ProposedContext(1, CT, [EXPLICIT.value]), ProposedContext(3, ENHANCED_CT, [EXPLICIT.value])]
    with RawAssociation(peer.address, contexts) as association:
        for number, each in enumerate(objects):
            context_id = 1 if each.sop_class_uid == CT else 3
            command = c_store_rq(number % 65_536, each.sop_class_uid, each.sop_instance_uid)
            status = association.store(context_id, command, each.pieces())
            if status:
                raise RuntimeError(f"it answered 0x{status:04X} to {each.sop_instance_uid}")
    for path in _files(peer):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    print(f"{peer.name}: {len(objects)} objects in {time.monotonic() - began:.1f} s", file=sys.stderr)


def _files(peer: Peer) -> list[Path]:
    return [path for path in peer.folder.rglob("*") if path.is_file()]


def drop_from_cache(peer: Peer) -> None:
    """Have the kernel forget a server's files, the database's included."""
    for path in _files(peer):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


# -- asking -----------------------------------------------------------------------------------------------


def get_study(address: Address, uid: str, digested: Digested | None = None) -> None:
    """C-GET of a study. Raises RuntimeError unless it ends with 0x0000."""
    contexts = [
        ProposedContext(1, STUDY_ROOT_GET, [EXPLICIT.value]),
        ProposedContext(3, CT, [EXPLICIT.value]),
        ProposedContext(5, ENHANCED_CT, [EXPLICIT.value]),
    ]
    roles = role_selection(CT, scu=True, scp=True) + role_selection(ENHANCED_CT, scu=True, scp=True)
    with RawAssociation(address, contexts, roles) as association:
        fetched = association.fetch(request(1, C_GET_RQ, STUDY_ROOT_GET, _identifier(uid)), digested)
    if fetched.status:
        raise RuntimeError(f"C-GET ended with 0x{fetched.status:04X} after {fetched.instances} objects")


def move_study(address: Address, uid: str, destination: str) -> None:
    """C-MOVE of a study. Raises RuntimeError unless it ends with 0x0000."""
    contexts = [ProposedContext(1, STUDY_ROOT_MOVE, [EXPLICIT.value])]
    message = request(1, C_MOVE_RQ, STUDY_ROOT_MOVE, _identifier(uid), move_destination=destination)
    with RawAssociation(address, contexts) as association:
        status = association.perform(message).status
    if status:
        raise RuntimeError(f"C-MOVE ended with 0x{status:04X}")


def _identifier(uid: str) -> bytes:
    return _encoder.encode([Element(0x00080052, "CS", "STUDY"), Element(0x0020000D, "UI", uid)])


Retrieve = Callable[[Address, str], None]


@dataclass(frozen=True)
class Result:
    """What one fetch by some clients at once took."""

    seconds: float
    instances: int
    dataset_bytes: int
    cpu_seconds: float
    """Of the server."""

    @property
    def instances_per_second(self) -> float:
        return self.instances / self.seconds

    @property
    def megabytes_per_second(self) -> float:
        return self.dataset_bytes / 1e6 / self.seconds

    @property
    def cpu_ms(self) -> float:
        """For each instance."""
        return 1_000 * self.cpu_seconds / self.instances


_Told = tuple[float, float, str]


def measure(peer: Peer, retrieve: Retrieve, wanted: Sequence[str], instances: int, size_bytes: int) -> Result:
    """Have a client for each of the studies fetch it, `instances` of `size_bytes` in all.

    Raises RuntimeError where one of them fails.
    """
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(wanted))
    queue: multiprocessing.SimpleQueue[_Told] = context.SimpleQueue()
    processes = [
        context.Process(target=_fetch, args=(peer.address, retrieve, uid, barrier, queue), daemon=True)
        for uid in wanted
    ]
    cpu_before = cpu_seconds(peer.pid)
    for process in processes:
        process.start()
    told = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    used = cpu_seconds(peer.pid) - cpu_before
    for _, _, problem in told:
        if problem:
            raise RuntimeError(f"{peer.name}: {problem}")
    seconds = max(each[1] for each in told) - min(each[0] for each in told)
    return Result(seconds, instances, size_bytes, used)


def _fetch(
    address: Address,
    retrieve: Retrieve,
    uid: str,
    barrier: Barrier,
    queue: multiprocessing.SimpleQueue[_Told],
) -> None:
    barrier.wait()
    began = time.monotonic()
    problem = ""
    while True:
        try:
            retrieve(address, uid)
        except (ConnectionRefusedError, ConnectionResetError, Rejected) as error:
            # pynetdicom's server takes ten associations at once; the others come again.
            if time.monotonic() - began < GIVE_UP_SECONDS:
                time.sleep(TRY_AGAIN_SECONDS)
                continue
            problem = repr(error)
        except Exception as error:
            problem = repr(error)
        break
    queue.put((began, time.monotonic(), problem))


# -- comparing --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One line of the table, for C-GET and for C-MOVE."""

    name: str
    studies: int
    """How many are fetched at once, each by a client of its own."""
    objects: int
    """In each."""
    object_bytes: int
    cold: bool
    repeats: int = 1
    """Fetches in one turn, each with an association of its own."""
    big: bool = False

    def wanted(self, turn: int, of: int) -> list[str]:
        """What is fetched in a turn: another study each time where the cache is cold, lest the server have a
        cache of its own."""
        if self.big:
            return [study_uid(BIG_STUDY)]
        first = turn % of if self.cold else 0
        return [study_uid((first + number) % of) for number in range(self.studies)]


class Comparison:
    """Servers that have the same objects, and what was measured of them."""

    def __init__(self, peers: Sequence[Peer], studies: int, destination: Destination) -> None:
        self._peers = list(peers)
        self._studies = studies
        self._destination = destination
        self._turn = 0

    def run(self, case: Case, rounds: int) -> None:
        """Measure C-GET and C-MOVE of one case and print a line of each."""
        ways: dict[str, Retrieve] = {
            "C-GET": get_study,
            "C-MOVE": partial(move_study, destination=self._destination.ae_title),
        }
        for way, retrieve in ways.items():
            results: dict[str, list[Result]] = {peer.name: [] for peer in self._peers}
            for number in range(rounds + (not case.cold)):
                first = number % len(self._peers)
                for peer in self._peers[first:] + self._peers[:first]:
                    try:
                        result = self._turn_of(peer, case, retrieve)
                    except RuntimeError as error:
                        # pynetdicom's C-MOVE at times overhears the answer it waits for.
                        print(f"{way} failed and is not counted: {error}", file=sys.stderr)
                        continue
                    if number or case.cold:  # The first of the others warms.
                        results[peer.name].append(result)
                self._turn += 1
            cells = [_cell(results[peer.name]) for peer in self._peers]
            print(f"{f'{case.name}, {way}':32}" + "".join(f"{cell:>34}" for cell in cells), flush=True)

    def _turn_of(self, peer: Peer, case: Case, retrieve: Retrieve) -> Result:
        done: list[Result] = []
        for repeat in range(case.repeats):
            wanted = case.wanted(self._turn + repeat, self._studies)
            if case.cold:
                drop_from_cache(peer)
            before = self._destination.counts[0]
            instances = len(wanted) * case.objects
            done.append(measure(peer, retrieve, wanted, instances, instances * case.object_bytes))
            moved = self._destination.counts[0] - before
            if moved not in (0, instances):
                raise RuntimeError(f"{peer.name} moved {moved} objects of {instances}")
        return Result(
            sum(each.seconds for each in done),
            sum(each.instances for each in done),
            sum(each.dataset_bytes for each in done),
            sum(each.cpu_seconds for each in done),
        )

    def memory(self, what: str, uid_of: Callable[[int], str], peers: Sequence[Peer]) -> None:
        """Print the resident memory of servers while some clients fetch at once."""
        cells = []
        for peer in peers:
            with PeakMemory(peer.pid) as memory:
                measure(peer, get_study, [uid_of(number) for number in range(MEMORY_CLIENTS)], 1, 1)
            grown = memory.peak_bytes - memory.before_bytes
            cells.append(f"{memory.peak_bytes / MEBIBYTE:.0f} MiB ({grown / MEBIBYTE:+.0f})")
        print(f"{what:32}" + "".join(f"{cell:>34}" for cell in cells), flush=True)


def _cell(results: Sequence[Result]) -> str:
    if not results:
        return "failed"
    per_second = statistics.median(each.instances_per_second for each in results)
    megabytes = statistics.median(each.megabytes_per_second for each in results)
    cpu_ms = statistics.median(each.cpu_ms for each in results)
    return f"{per_second:9.1f}/s {megabytes:6.0f} MB/s {cpu_ms:8.2f} ms"


def check(peer: Peer, uid: str, sent: Sequence[Object], destination: Destination) -> None:
    """Fetch a study both ways and compare each data set with the one sent; say so where they differ.

    Raises RuntimeError where objects are missing.
    """
    wanted = sorted(each.digest() for each in sent)
    got: list[tuple[str, str]] = []
    get_study(peer.address, uid, lambda instance_uid, digest: got.append((instance_uid, digest)))
    move_study(peer.address, uid, destination.ae_title)
    for way, found in (("C-GET", sorted(got)), ("C-MOVE", sorted(destination.digests(len(wanted))))):
        if [instance_uid for instance_uid, _ in found] != [instance_uid for instance_uid, _ in wanted]:
            raise RuntimeError(f"{way} brought other objects than were sent")
        if differing := sum(one != other for one, other in zip(found, wanted, strict=True)):
            print(f"{peer.name}: {way} changed {differing} of {len(wanted)} data sets", file=sys.stderr)


def filled(peers: Sequence[Peer], objects: Sequence[Object], uid: str, check_at: Destination) -> list[Peer]:
    """Fill the servers and check the study `uid` of each; those that fail are left out, and named."""
    wanted = [each for each in objects if each.study_uid == uid]
    found = []
    for peer in peers:
        try:
            fill(peer, objects)
            check(peer, uid, wanted, check_at)
        except (OSError, RuntimeError) as error:
            print(f"{peer.name} is left out: {error}", file=sys.stderr)
        else:
            found.append(peer)
    return found


def _title(peers: Sequence[Peer]) -> None:
    print(f"{'':32}" + "".join(f"{peer.name:>34}" for peer in peers), flush=True)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--big-mebibytes", type=int, default=1_024, help="0: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=["orthanc", "dcmqrscp", "qrscp"])
    parser.add_argument("--directory", type=Path, help="where the archives are kept meanwhile")
    options = parser.parse_args()
    starts = {"orthanc": start_orthanc, "dcmqrscp": start_dcmqrscp, "qrscp": start_qrscp}
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory)))
        each_bytes = options.studies * options.slices * SLICE_BYTES + options.big_mebibytes * MEBIBYTE
        needed, free = each_bytes * (1 + len(options.peers)), shutil.disk_usage(top).free
        if needed > free:
            parser.error(f"{needed >> 20} MiB are needed in {top}, and {free >> 20} are free")
        destination = stack.enter_context(Destination("SINK"))
        check_at = stack.enter_context(Destination("CHECK", digests=True))
        ports = {each.ae_title: each.port for each in (destination, check_at)}
        peers = [stack.enter_context(start_ours(top, destinations=ports))]
        for name in options.peers:
            folder = top / name
            folder.mkdir()
            peer = starts[name](folder, destinations=ports)
            if peer is None:
                print(f"{name} is not installed", file=sys.stderr)
            else:
                peers.append(stack.enter_context(peer))
        temperatures = [False, True] if _can_be_cold(top) else [False]

        slices = [
            slice_of(study, number) for study in range(options.studies) for number in range(options.slices)
        ]
        peers = filled(peers, slices, study_uid(0), check_at)
        slice_bytes = sum(map(len, slices[0].pieces()))
        comparison = Comparison(peers, options.studies, destination)
        _title(peers)
        for cold in temperatures:
            name = "a study" + (", cold" if cold else "")
            comparison.run(Case(name, 1, options.slices, slice_bytes, cold, repeats=3), options.rounds)
        for cold in temperatures:
            name = f"{options.studies} at once" + (", cold" if cold else "")
            case = Case(name, options.studies, options.slices, slice_bytes, cold)
            comparison.run(case, max(options.rounds // 2, 1))
        comparison.memory(
            f"memory, {MEMORY_CLIENTS} studies", lambda number: study_uid(number % options.studies), peers
        )
        if not options.big_mebibytes:
            return
        big = big_object(options.big_mebibytes)
        big_bytes = sum(map(len, big.pieces()))
        peers = filled(peers, [big], study_uid(BIG_STUDY), check_at)
        comparison = Comparison(peers, options.studies, destination)
        _title(peers)
        for cold in temperatures:
            name = f"{options.big_mebibytes} MiB" + (", cold" if cold else "")
            case = Case(name, 1, 1, big_bytes, cold, big=True)
            comparison.run(case, max(options.rounds // 2, 1))
        # The others hold the whole object for each client, and eight of those might be more than there is.
        comparison.memory(
            f"memory, {MEMORY_CLIENTS} times {options.big_mebibytes} MiB",
            lambda _: study_uid(BIG_STUDY),
            [peer for peer in peers if peer.name == "scp_server"],
        )


def _can_be_cold(folder: Path) -> bool:
    """Whether the files there are anywhere but in memory."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    inside = [fields for fields in mounts if folder.resolve().is_relative_to(fields[1])]
    return max(inside, key=lambda fields: len(fields[1]))[2] not in {"tmpfs", "ramfs"}


if __name__ == "__main__":
    main()
