"""C-MOVE of a whole daemon to destinations that fail, refuse, warn or stall: the exact counts and lists."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from scp_server.testing import wire
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.objects import ct_image, structured_report
from scp_server.testing.retrieving_peer import Final, RetrievingPeer
from scp_server.testing.scripted_destination import Script, StorageScript, destination
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from scp_server.testing.wire import PDUType, Tag

STUDY = make_uid("study")
IMAGES = [ct_image(seed=n, study_instance_uid=STUDY) for n in range(3)]
REPORTS = [structured_report(seed=n, study_instance_uid=STUDY) for n in range(2)]
OBJECTS: list[EncodedObject] = [*IMAGES, *REPORTS]
LARGE = ct_image(seed=9, rows=1_024, columns=1_024, study_instance_uid=STUDY)
UIDS = tuple(one.sop_instance_uid for one in OBJECTS)
ALL_FAILED = Final(0xA702, (None, 0, 5, 0), UIDS)
EVERYTHING = Final(0x0000, (None, 5, 0, 0))
QUICK = {
    "STORAGE__DURABILITY": "process",
    "RETRIEVE__ASSOCIATIONS": "1",
    "TIMEOUTS__STORE_RESPONSE_SECONDS": "0.3",
    "TIMEOUTS__RESPONSE_SECONDS": "0.3",
    "TIMEOUTS__OUTBOUND_IDLE_SECONDS": "0",
}

Run = Callable[..., Awaitable[DaemonProcess]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start the daemon with `DEST` at a port, or several remotes, and store objects; settings have names."""
    with ExitStack() as stack:

        async def start(
            ports: int | Mapping[str, int], objects: Sequence[EncodedObject] = OBJECTS, **settings: str
        ) -> DaemonProcess:
            environment = {f"SCP_SERVER_{name}": value for name, value in (QUICK | settings).items()}
            titles = {"DEST": ports} if isinstance(ports, int) else ports
            remotes = [f"--remote={title}=127.0.0.1:{port}" for title, port in titles.items()]
            daemon = DaemonProcess(tmp_path / "data", *remotes, environment=environment)
            await asyncio.to_thread(stack.enter_context, daemon)
            async with await ScriptedPeer.connect("127.0.0.1", daemon.ready.dicom_port) as peer:
                await peer.associate(storage_contexts(*objects))
                for one in objects:
                    assert await peer.store(one) == 0x0000
                await peer.release()
            return daemon

        yield start


@asynccontextmanager
async def requestor(daemon: DaemonProcess) -> AsyncIterator[RetrievingPeer]:
    async with await RetrievingPeer.connect("127.0.0.1", daemon.ready.dicom_port) as peer:
        await peer.associate_to_retrieve()
        yield peer


async def move(daemon: DaemonProcess, study: str = STUDY, title: str = "DEST") -> Final:
    """Have the study sent; whatever became of it, the association serves on."""
    async with requestor(daemon) as peer:
        await peer.send_move(study, title)
        final = await peer.final()
        assert await peer.echo() == 0x0000
        await peer.release()
        return final


def uid_of(command: dict[int, bytes]) -> str:
    return command[Tag.AFFECTED_SOP_INSTANCE_UID].decode().rstrip("\0")


# -- every association does the same ------------------------------------------------------------------------


async def _rejects(peer: StorageScript) -> None:
    await peer.read_pdu()
    await peer.send(wire.associate_rj(1, 1, 7))
    await peer.wait_eof()


async def _never_answers_the_request(peer: StorageScript) -> None:
    await peer.read_pdu()
    await peer.expect_abort()


async def _takes_no_reports(peer: StorageScript) -> None:
    await peer.accept(refused=[REPORTS[0].sop_class_uid])
    await peer.take_all()


async def _takes_nothing(peer: StorageScript) -> None:
    await peer.accept(refused=[one.sop_class_uid for one in OBJECTS])
    await peer.take_all()


async def _dies_in_each_object(peer: StorageScript) -> None:
    await peer.accept()
    await peer.read_pdu()
    await peer.reset()


async def _aborts_after_each_object(peer: StorageScript) -> None:
    await peer.accept()
    await peer.read_store()
    await peer.abort()
    await peer.wait_eof()


async def _never_answers_an_object(peer: StorageScript) -> None:
    await peer.accept()
    await peer.read_store()
    await peer.expect_abort()


async def _stalls_at_each_third(peer: StorageScript) -> None:
    await peer.accept()
    for number in range(3):
        if (store := await peer.read_store()) is None:
            return
        if number < 2:
            await peer.respond(store[0])
    await peer.expect_abort()


async def _dies_under_the_third(peer: StorageScript) -> None:
    await peer.accept()
    while (store := await peer.read_store()) is not None:
        if uid_of(store[0]) == UIDS[2]:
            await peer.reset()
            return
        await peer.respond(store[0])


def _answers(*statuses: int) -> Script:
    async def script(peer: StorageScript) -> None:
        await peer.accept()
        for status in statuses:
            store = await peer.read_store()
            assert store is not None
            await peer.respond(store[0], status)
        assert await peer.read_store() is None

    return script


WHAT_THEY_DO: dict[str, tuple[Script, Final]] = {
    "REJECTS": (_rejects, ALL_FAILED),
    "MUTE": (_never_answers_the_request, ALL_FAILED),
    "NO_REPORTS": (_takes_no_reports, Final(0xB000, (None, 3, 2, 0), UIDS[3:])),
    "NOTHING": (_takes_nothing, ALL_FAILED),
    "DIES": (_dies_in_each_object, ALL_FAILED),
    "ABORTS": (_aborts_after_each_object, ALL_FAILED),
    "STALLS": (_never_answers_an_object, ALL_FAILED),
    "STALLS_LATE": (_stalls_at_each_third, EVERYTHING),
    "DIES_OF_ONE": (_dies_under_the_third, Final(0xB000, (None, 4, 1, 0), (UIDS[2],))),
    "WARNS": (_answers(0xB000, 0xB007, 0x0107, 0x0116, 0x0001), Final(0xB000, (None, 0, 0, 5))),
    "FAILS": (_answers(0xA700, 0xA900, 0xC000, 0x0111, 0x0122), ALL_FAILED),
    "MIXED": (_answers(0, 0xB000, 0xA700, 0, 0xC111), Final(0xB000, (None, 2, 2, 1), (UIDS[2], UIDS[4]))),
    "NO_SUCCESS": (
        _answers(0xB000, 0xA700, 0xA700, 0xA700, 0xA700),
        Final(0xB000, (None, 0, 4, 1), UIDS[1:]),
    ),
    "TAKES": (_answers(0, 0, 0, 0, 0), EVERYTHING),
}
"""By AE title."""


async def test_what_a_destination_does_is_what_the_counts_say(run: Run) -> None:
    """PS3.4 C.4.2.3.1; the classes of statuses are PS3.7 C's."""
    told: dict[str, Final] = {}
    async with AsyncExitStack() as destinations:
        ports = {
            title: await destinations.enter_async_context(destination(script))
            for title, (script, _) in WHAT_THEY_DO.items()
        }
        daemon = await run(ports)
        for title in WHAT_THEY_DO:
            told[title] = await move(daemon, title=title)
    assert told == {title: expected for title, (_, expected) in WHAT_THEY_DO.items()}


async def test_one_that_is_down_fails_everything_and_is_tried_again_later(run: Run) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        daemon = await run(port, TIMEOUTS__REMOTE_RETRY_SECONDS="0")
        assert await move(daemon) == ALL_FAILED
        held.listen()
        rejecting = asyncio.create_task(move(daemon))
        accepted, _ = await asyncio.to_thread(held.accept)
        accepted.close()
        assert await rejecting == ALL_FAILED


async def test_a_name_that_is_not_configured_is_0xa801_without_counts_and_nothing_is_dialled(
    run: Run,
) -> None:
    dialled: list[int] = []

    async def script(_peer: StorageScript) -> None:
        dialled.append(1)

    async with destination(script) as port:
        daemon = await run(port)
        for title in ("NOBODY", "dest", f"127.0.0.1:{port}"[:16]):
            assert await move(daemon, title=title) == Final(0xA801, (None, None, None, None))
    assert dialled == []


async def test_what_a_destination_has_already_is_a_warning_where_the_settings_say_so(run: Run) -> None:
    script = _answers(0x0111, 0, 0x0111, 0xA700, 0)
    async with destination(script) as port:
        remote = {"ae_title": "DEST", "host": "127.0.0.1", "port": port, "duplicates": "warning"}
        daemon = await run({}, REMOTES=json.dumps([remote]))
        assert await move(daemon) == Final(0xB000, (None, 2, 1, 2), (UIDS[3],))


async def test_nothing_that_matches_is_success_with_counts_of_none(run: Run) -> None:
    async with destination(_takes_nothing) as port:
        daemon = await run(port)
        assert await move(daemon, make_uid("unknown")) == Final(0x0000, (None, 0, 0, 0))


async def test_an_object_that_was_cut_off_once_is_sent_again_whole(run: Run) -> None:
    died = False
    taken: list[bytes] = []

    async def script(peer: StorageScript) -> None:
        nonlocal died
        await peer.accept()
        if not died:
            died = True
            for _ in range(3):
                await peer.read_pdu()
            await peer.reset()
            return
        await peer.take_all(taken)

    async with destination(script) as port:
        daemon = await run(port, [LARGE, IMAGES[0]])
        assert await move(daemon) == Final(0x0000, (None, 2, 0, 0))
    assert taken == [LARGE.dataset, IMAGES[0].dataset]


# -- destinations that take one association at a time -------------------------------------------------------


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_move_waits_for_its_turn_where_one_association_at_a_time_is_served(
    run: Run, refuses: bool
) -> None:
    """A second is refused, or never answered. Nobody has told the server."""
    report = structured_report(seed=9, study_instance_uid=make_uid("other"))
    accepted, turned_away = asyncio.Event(), asyncio.Event()
    busy = asyncio.Lock()
    taken: list[bytes] = []

    async def script(peer: StorageScript) -> None:
        if busy.locked():
            await peer.read_pdu()
            if refuses:
                await peer.send(wire.associate_rj(2, 3, 2))
            await peer.wait_eof()
            turned_away.set()
            return
        async with busy:
            await peer.accept()
            accepted.set()
            await turned_away.wait()
            await peer.take_all(taken)

    async with destination(script) as port:
        daemon = await run(port, [*OBJECTS, report], TIMEOUTS__STORE_RESPONSE_SECONDS="5")
        async with requestor(daemon) as first, requestor(daemon) as second:
            await first.send_move(STUDY, "DEST")
            await accepted.wait()
            await second.send_move(make_uid("other"), "DEST")
            assert await first.final() == EVERYTHING
            assert await second.final() == Final(0x0000, (None, 1, 0, 0))
        await asyncio.to_thread(daemon.terminate)
        assert len(daemon.log_records("remote.full")) == 1
        assert daemon.log_records("remote.unreachable") == []
    assert taken == [one.dataset for one in [*OBJECTS, report]]


# -- requestors that vanish ---------------------------------------------------------------------------------


async def _reset(peer: RetrievingPeer) -> None:
    await peer.reset()


async def _abort(peer: RetrievingPeer) -> None:
    await peer.abort()


async def _end(peer: RetrievingPeer) -> None:
    peer.half_close()


async def test_after_the_requestor_has_vanished_no_further_object_is_sent(run: Run) -> None:
    in_hand: asyncio.Queue[bytes] = asyncio.Queue()
    gone = asyncio.Event()
    released = asyncio.Event()

    async def script(peer: StorageScript) -> None:
        await peer.accept()
        while (store := await peer.read_store()) is not None:
            in_hand.put_nowait(store[1])
            await gone.wait()
            await peer.respond(store[0])
        released.set()

    async with destination(script) as port:
        daemon = await run(port, TIMEOUTS__STORE_RESPONSE_SECONDS="5")
        for way in (_reset, _abort, _end):
            gone.clear()
            released.clear()
            async with requestor(daemon) as peer:
                await peer.send_move(STUDY, "DEST")
                assert await in_hand.get() == OBJECTS[0].dataset
                await way(peer)
            gone.set()
            await released.wait()
            assert in_hand.empty(), way
        async with requestor(daemon) as peer:
            assert await peer.echo() == 0x0000


async def test_the_requestor_may_be_reset_while_the_destination_never_answers(run: Run) -> None:
    in_hand = asyncio.Event()

    async def script(peer: StorageScript) -> None:
        await peer.accept()
        await peer.read_store()
        in_hand.set()
        assert (await peer.read_pdu()).pdu_type == PDUType.ABORT

    async with destination(script) as port:
        daemon = await run(port)
        async with requestor(daemon) as peer:
            await peer.send_move(STUDY, "DEST")
            await in_hand.wait()
            await peer.reset()
    await asyncio.to_thread(daemon.terminate)
