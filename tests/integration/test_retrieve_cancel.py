"""C-CANCEL of C-MOVE and C-GET at any moment, against a daemon: the exact counts (PS3.4 C.4.2, C.4.3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.objects import ct_image
from scp_server.testing.retrieving_peer import Final, RetrievingPeer
from scp_server.testing.scripted_destination import StorageScript, destination
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts

STUDY = make_uid("study")
OBJECTS: list[EncodedObject] = [ct_image(seed=n, study_instance_uid=STUDY) for n in range(5)]


@asynccontextmanager
async def retrieving(folder: Path, port: int = 1, associations: int = 1) -> AsyncIterator[RetrievingPeer]:
    """A peer that may retrieve the study, from a daemon that has it and that serves on when all is done."""
    environment = {
        "SCP_SERVER_STORAGE__DURABILITY": "process",
        "SCP_SERVER_RETRIEVE__ASSOCIATIONS": str(associations),
        "SCP_SERVER_RETRIEVE__PENDING_SECONDS": "0.05",
    }
    daemon = DaemonProcess(folder, "--remote", f"DEST=127.0.0.1:{port}", environment=environment)
    await asyncio.to_thread(daemon.start)
    try:
        async with await ScriptedPeer.connect("127.0.0.1", daemon.ready.dicom_port) as storing:
            await storing.associate(storage_contexts(*OBJECTS))
            for one in OBJECTS:
                assert await storing.store(one) == 0x0000
            await storing.release()
        async with await RetrievingPeer.connect("127.0.0.1", daemon.ready.dicom_port) as peer:
            await peer.associate_to_retrieve(OBJECTS)
            yield peer
            assert await peer.echo() == 0x0000
            await peer.release()
    finally:
        await asyncio.to_thread(daemon.terminate)


class Slow:
    """A destination that says when it has an object, and answers when told; or never accepts at all."""

    def __init__(self, *, accepts: bool = True) -> None:
        self._accepts = accepts
        self._answers = asyncio.Semaphore(0)
        self.in_hand: asyncio.Queue[bytes] = asyncio.Queue()
        self.asked = asyncio.Event()
        self.taken: list[bytes] = []

    def answer(self, count: int = 1) -> None:
        for _ in range(count):
            self._answers.release()

    async def __call__(self, peer: StorageScript) -> None:
        if not self._accepts:
            await peer.read_pdu()
            self.asked.set()
            assert await peer.wait_eof() is not None
            return
        await peer.accept()
        while (store := await peer.read_store()) is not None:
            self.in_hand.put_nowait(store[1])
            await self._answers.acquire()
            self.taken.append(store[1])
            await peer.respond(store[0])


# -- C-MOVE -------------------------------------------------------------------------------------------------


async def test_a_move_that_is_cancelled_with_its_request_sends_nothing(tmp_path: Path) -> None:
    slow = Slow()
    async with destination(slow) as port, retrieving(tmp_path, port) as peer:
        await peer.send_move(STUDY, "DEST", and_cancel=True)
        assert await peer.final() == Final(0xFE00, (5, 0, 0, 0))
    assert slow.taken == []


async def test_a_move_that_is_cancelled_before_the_destination_answers_does_not_wait_for_it(
    tmp_path: Path,
) -> None:
    mute = Slow(accepts=False)
    async with destination(mute) as port, retrieving(tmp_path, port) as peer:
        message_id = await peer.send_move(STUDY, "DEST")
        await mute.asked.wait()
        await peer.cancel_move(message_id)
        assert await peer.final() == Final(0xFE00, (5, 0, 0, 0))


async def test_a_move_that_is_cancelled_during_an_object_ends_after_it(tmp_path: Path) -> None:
    """PS3.4 C.4.2.3.1."""
    slow = Slow()
    async with destination(slow) as port, retrieving(tmp_path, port) as peer:
        for done in range(4):
            slow.taken.clear()
            message_id = await peer.send_move(STUDY, "DEST")
            slow.answer(done)
            for _ in range(done + 1):
                await slow.in_hand.get()
            await peer.cancel_move(message_id)
            slow.answer()
            assert await peer.final() == Final(0xFE00, (4 - done, done + 1, 0, 0))
            assert slow.taken == [one.dataset for one in OBJECTS[: done + 1]]


async def test_of_a_move_over_three_associations_the_three_in_hand_end(tmp_path: Path) -> None:
    slow = Slow()
    async with destination(slow) as port, retrieving(tmp_path, port, associations=3) as peer:
        message_id = await peer.send_move(STUDY, "DEST")
        in_hand = [await slow.in_hand.get() for _ in range(3)]
        await peer.cancel_move(message_id)
        slow.answer(5)
        assert await peer.final() == Final(0xFE00, (2, 3, 0, 0))
    assert sorted(slow.taken) == sorted(in_hand)


async def test_a_cancel_during_the_last_object_of_a_move_changes_nothing(tmp_path: Path) -> None:
    slow = Slow()
    async with destination(slow) as port, retrieving(tmp_path, port) as peer:
        message_id = await peer.send_move(STUDY, "DEST")
        slow.answer(4)
        for _ in OBJECTS:
            await slow.in_hand.get()
        await peer.cancel_move(message_id)
        slow.answer()
        assert await peer.final() == Final(0x0000, (None, 5, 0, 0))
        await peer.cancel_move(message_id)


async def test_a_cancel_of_another_message_changes_nothing(tmp_path: Path) -> None:
    """PS3.7 9.3.4.3."""
    slow = Slow()
    async with destination(slow) as port, retrieving(tmp_path, port) as peer:
        message_id = await peer.send_move(STUDY, "DEST")
        await slow.in_hand.get()
        await peer.cancel_move(message_id + 7)
        slow.answer(5)
        assert await peer.final() == Final(0x0000, (None, 5, 0, 0))


async def test_while_a_destination_takes_its_time_the_requestor_hears_the_true_counts(tmp_path: Path) -> None:
    slow = Slow()
    async with destination(slow) as port, retrieving(tmp_path, port) as peer:
        await peer.send_move(STUDY, "DEST")
        for done in range(5):
            await slow.in_hand.get()
            told = await peer.pending()
            while told != (5 - done, done, 0, 0):
                assert told == (6 - done, done - 1, 0, 0), "the one before"
                told = await peer.pending()
            slow.answer()
        assert await peer.final() == Final(0x0000, (None, 5, 0, 0))


# -- C-GET --------------------------------------------------------------------------------------------------


async def test_a_get_that_is_cancelled_with_its_request_sends_nothing(tmp_path: Path) -> None:
    async with retrieving(tmp_path) as peer:
        await peer.send_get(STUDY, and_cancel=True)
        assert await peer.final() == Final(0xFE00, (5, 0, 0, 0))


async def test_a_get_that_is_cancelled_during_an_object_ends_after_it(tmp_path: Path) -> None:
    """PS3.4 C.4.3.3.1."""
    async with retrieving(tmp_path) as peer:
        for done in range(4):
            message_id = await peer.send_get(STUDY)
            for number in range(done + 1):
                store, dataset = await peer.read_message()
                assert dataset == OBJECTS[number].dataset
                if number == done:
                    await peer.cancel_get(message_id)
                await peer.answer_store(store, 0xB000 if number == 0 else 0x0000)
            assert await peer.final() == Final(0xFE00, (4 - done, done, 0, 1))


async def test_a_get_that_failed_in_part_and_is_cancelled_lists_what_failed(tmp_path: Path) -> None:
    """PS3.4 C.4.3.1.3.2."""
    async with retrieving(tmp_path) as peer:
        message_id = await peer.send_get(STUDY)
        for status in (0xA700, 0x0000):
            store, _ = await peer.read_message()
            if not status:
                await peer.cancel_get(message_id)
            await peer.answer_store(store, status)
        assert await peer.final() == Final(0xFE00, (3, 1, 1, 0), (OBJECTS[0].sop_instance_uid,))


async def test_a_cancel_during_the_last_object_of_a_get_changes_nothing(tmp_path: Path) -> None:
    async with retrieving(tmp_path) as peer:
        message_id = await peer.send_get(STUDY)
        for number in range(5):
            store, _ = await peer.read_message()
            if number == 4:
                await peer.cancel_get(message_id)
            await peer.answer_store(store)
        assert await peer.final() == Final(0x0000, (None, 5, 0, 0))
        await peer.cancel_get(message_id)
