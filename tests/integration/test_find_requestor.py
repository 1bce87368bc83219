"""Our C-FIND against peers that do what a script says: many matches, wrong ones, slow ones, none."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from scp_server import Requestor
from scp_server.errors import (
    AssociationAborted,
    AssociationError,
    AssociationLost,
    FindFailed,
    LocalProtocolError,
    QueryError,
)
from scp_server.net.finding import FindResult
from scp_server.net.requestor import RequestorConfig
from scp_server.objects.query_model import QueryOptions
from scp_server.protocol.limits import Limits
from scp_server.testing import wire
from scp_server.testing.scripted_peer import ScriptedPeer
from scp_server.testing.wire import PDV, Control, PDUType, Tag

STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2.1"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
CONTEXT_ID = 3
"""Of the study root, as `DEFAULT_CONTEXTS` proposes it."""
QUERY = {"PatientID": ""}
QUICK = RequestorConfig(
    limits=Limits(idle_seconds=0, response_seconds=2), response_seconds=0.3, cancel_seconds=0.3
)

Script = Callable[["FindPeer"], Awaitable[None]]


class FindPeer(ScriptedPeer):
    """The acceptor of an association that is asked with C-FIND."""

    request: bytes = b""
    """The A-ASSOCIATE-RQ."""
    identifier: bytes = b""

    async def accept(self, *, syntax: str = EXPLICIT, user_items: bytes = b"") -> None:
        """Accept the study root and C-ECHO, nothing else."""
        self.request = (await self.read_pdu()).body
        contexts = {1: (0, EXPLICIT), CONTEXT_ID: (0, syntax), 5: (3, ""), 7: (3, "")}
        await self.send(wire.associate_ac(contexts, user_items=user_items))

    async def read_request(self) -> int:
        """The message id of a C-FIND-RQ, its identifier read."""
        response = await self.read_response()
        assert int.from_bytes(response.elements[Tag.COMMAND_FIELD], "little") == 0x0020
        assert response.context_id == CONTEXT_ID
        ((_, control, self.identifier),) = wire.read_pdvs((await self.read_pdu()).body)
        assert control == Control.LAST
        return int.from_bytes(response.elements[Tag.MESSAGE_ID], "little")

    async def read_cancel(self) -> int:
        """The message id that a C-CANCEL-RQ names."""
        response = await self.read_response()
        assert int.from_bytes(response.elements[Tag.COMMAND_FIELD], "little") == 0x0FFF
        return response.message_id_responded_to

    async def expect_release(self) -> None:
        """Confirm a release."""
        assert (await self.read_pdu()).pdu_type == PDUType.RELEASE_RQ
        await self.send(wire.release_rp())


def response(
    message_id: int, status: int, dataset: bytes | None = None, *, context_id: int = CONTEXT_ID, **more: Any
) -> bytes:
    elements: dict[int, int | str | bytes] = {
        Tag.AFFECTED_SOP_CLASS_UID: STUDY_ROOT,
        Tag.COMMAND_FIELD: 0x8020,
        Tag.MESSAGE_ID_RESPONDED_TO: message_id,
        Tag.DATASET_TYPE: wire.NO_DATASET if dataset is None else 1,
        Tag.STATUS: status,
    }
    if "comment" in more:
        elements |= {Tag.OFFENDING_ELEMENT: b"\x08\x00\x52\x00", Tag.ERROR_COMMENT: more["comment"]}
    data = wire.p_data_tf(PDV(context_id, Control.COMMAND | Control.LAST, wire.command_set(elements)))
    if dataset is not None:
        data += wire.p_data_tf(PDV(context_id, Control.LAST, dataset))
    return data


def identifier(patient_id: str) -> bytes:
    value = patient_id.encode() + b" " * (len(patient_id) % 2)
    return b"\x10\x00\x20\x00LO" + len(value).to_bytes(2, "little") + value


@contextlib.asynccontextmanager
async def peer(script: Script) -> AsyncIterator[Callable[..., Requestor]]:
    """A peer that follows a script to its end; what fails in it fails the test."""
    followers: list[asyncio.Task[None]] = []

    async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        followers.append(task)
        async with FindPeer(reader, writer, 5) as acceptor:
            await script(acceptor)

    server = await asyncio.start_server(follow, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield lambda config=QUICK, **more: Requestor("127.0.0.1", port, config=config, **more)
    finally:
        server.close()
        async with asyncio.timeout(8):
            await asyncio.gather(*followers)


async def ids(finding: Any) -> list[str]:
    return [match.to_dataset().PatientID async for match in finding]


@pytest.fixture(autouse=True)
async def nothing_is_left_behind() -> AsyncIterator[None]:
    """Neither a task nor an exception that nobody saw."""
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before - {asyncio.current_task()} == set()
    assert unhandled == []


async def test_matches_come_one_by_one_and_the_end_says_how_it_went() -> None:
    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        for _ in range(2):
            number = await acceptor.read_request()
            await acceptor.send(response(number, 0xFF00, identifier("A")))
            await acceptor.send(response(number, 0xFF01, identifier("B")))
            await acceptor.send(response(number, 0x0000))
        assert acceptor.identifier == b"\x08\x00\x52\x00CS\x06\x00STUDY \x10\x00\x20\x00LO\x00\x00"
        await acceptor.expect_release()

    async with peer(script) as call, call() as association:
        for _ in range(2):
            finding = association.find(QUERY)
            assert finding.result is None
            matches = [match async for match in finding]
            assert [match.to_dataset().PatientID for match in matches] == ["A", "B"]
            assert [match.all_keys_supported for match in matches] == [True, False]
            assert finding.result == FindResult(0, 2, all_keys_supported=False, cancelled=False)


async def test_the_identifier_is_written_in_the_transfer_syntax_that_was_accepted() -> None:
    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept(syntax=IMPLICIT)
        number = await acceptor.read_request()
        assert (
            acceptor.identifier == b"\x08\x00\x52\x00\x06\x00\x00\x00STUDY \x10\x00\x20\x00\x00\x00\x00\x00"
        )
        await acceptor.send(response(number, 0xFF00, b"\x10\x00\x20\x00\x02\x00\x00\x00AB"))
        await acceptor.send(response(number, 0x0000))
        await acceptor.expect_release()

    async with peer(script) as call, call() as association:
        assert await ids(association.find(QUERY)) == ["AB"]


async def test_a_failure_after_matches_says_status_comment_and_element() -> None:
    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        number = await acceptor.read_request()
        await acceptor.send(response(number, 0xFF00, identifier("A")))
        await acceptor.send(response(number, 0xA900, comment="no such level"))
        await acceptor.expect_release()

    async with peer(script) as call, call() as association:
        finding = association.find(QUERY)
        matches = aiter(finding)
        assert (await anext(matches)).to_dataset().PatientID == "A"
        with pytest.raises(FindFailed) as failed:
            await anext(matches)
        assert (failed.value.status, failed.value.comment) == (0xA900, "no such level")
        assert failed.value.offending_elements == (0x00080052,)
        assert str(failed.value) == "C-FIND ended with status 0xA900: no such level: (0008,0052)"
        assert finding.result == FindResult(0xA900, 1, all_keys_supported=True, cancelled=False)


async def test_a_peer_that_cancels_by_itself_has_failed() -> None:
    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        await acceptor.send(response(await acceptor.read_request(), 0xFE00))
        await acceptor.expect_release()

    async with peer(script) as call, call() as association:
        with pytest.raises(FindFailed, match="0xFE00"):
            await ids(association.find(QUERY))


async def _cancelled_script(acceptor: FindPeer) -> None:
    """Ten matches, then nothing until the C-CANCEL; one more match, the end, and another query."""
    await acceptor.accept()
    number = await acceptor.read_request()
    for patient in "ABCDEFGHIJ":
        await acceptor.send(response(number, 0xFF00, identifier(patient)))
    assert await acceptor.read_cancel() == number
    await acceptor.send(response(number, 0xFF00, identifier("LATE")) + response(number, 0xFE00))
    await acceptor.send(response(await acceptor.read_request(), 0x0000))
    await acceptor.expect_release()


async def test_a_limit_cancels_and_the_association_goes_on() -> None:
    async with peer(_cancelled_script) as call, call() as association:
        finding = association.find(QUERY, limit=3)
        assert await ids(finding) == ["A", "B", "C"]
        assert finding.result == FindResult(0xFE00, 3, all_keys_supported=True, cancelled=True)
        assert await ids(association.find(QUERY)) == []


async def test_a_limit_that_is_not_reached_cancels_nothing() -> None:
    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        number = await acceptor.read_request()
        await acceptor.send(response(number, 0xFF00, identifier("A")) + response(number, 0x0000))
        await acceptor.expect_release()

    async with peer(script) as call, call() as association:
        finding = association.find(QUERY, limit=2)
        assert await ids(finding) == ["A"]
        assert finding.result == FindResult(0, 1, all_keys_supported=True, cancelled=False)


@pytest.mark.parametrize("keep", [False, True], ids=["dropped", "kept in a variable"])
async def test_a_break_cancels_at_once(keep: bool) -> None:
    told = asyncio.Event()

    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        number = await acceptor.read_request()
        await acceptor.send(response(number, 0xFF00, identifier("A")))
        assert await acceptor.read_cancel() == number
        told.set()
        await acceptor.send(response(number, 0xFE00))
        await acceptor.send(response(await acceptor.read_request(), 0x0000))
        await acceptor.expect_release()

    async with peer(script) as call, call() as association:
        finding = association.find(QUERY) if keep else None
        async for _ in finding or association.find(QUERY):
            break
        gc.collect()
        async with asyncio.timeout(2):
            await told.wait()
        assert await ids(association.find(QUERY)) == []
        if finding is not None:
            assert finding.result == FindResult(0xFE00, 1, all_keys_supported=True, cancelled=True)


async def test_a_break_and_the_next_query_in_the_same_breath() -> None:
    async with peer(_cancelled_script) as call, call() as association:
        async for _ in association.find(QUERY):
            break
        assert await ids(association.find(QUERY)) == []


async def test_an_exception_in_the_loop_leaves_the_association_usable() -> None:
    async with peer(_cancelled_script) as call, call() as association:
        with contextlib.suppress(ZeroDivisionError):
            async for _ in association.find(QUERY):
                raise ZeroDivisionError
        assert await ids(association.find(QUERY)) == []


async def test_leaving_the_block_in_the_middle_cancels_and_releases() -> None:
    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        number = await acceptor.read_request()
        await acceptor.send(response(number, 0xFF00, identifier("A")))
        assert await acceptor.read_cancel() == number
        await acceptor.send(response(number, 0xFE00))
        await acceptor.expect_release()

    async with peer(script) as call, call() as association:
        matches = aiter(association.find(QUERY))
        assert (await anext(matches)).to_dataset().PatientID == "A"


async def test_a_caller_that_is_cancelled_cancels_the_query() -> None:
    waiting = asyncio.Event()

    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        number = await acceptor.read_request()
        waiting.set()
        assert await acceptor.read_cancel() == number
        await acceptor.send(response(number, 0xFE00))
        await acceptor.expect_release()

    async with peer(script) as call, call(RequestorConfig()) as association:
        reading = asyncio.create_task(ids(association.find(QUERY)))
        await waiting.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


@pytest.mark.parametrize("endless", [False, True], ids=["says nothing", "goes on sending"])
async def test_a_peer_that_does_not_heed_a_cancel_is_aborted_in_time(endless: bool) -> None:
    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        number = await acceptor.read_request()
        with contextlib.suppress(ConnectionError):
            await acceptor.send(response(number, 0xFF00, identifier("A")))
            while endless:
                await acceptor.send(response(number, 0xFF00, identifier("B")) * 100)
                await asyncio.sleep(0)
            assert await acceptor.read_cancel() == number
            await acceptor.expect_abort()

    async with peer(script) as call, call() as association:
        finding = association.find(QUERY, limit=1)
        assert await ids(finding) == ["A"]
        assert finding.result == FindResult(None, 1, all_keys_supported=True, cancelled=True)
        with pytest.raises(AssociationAborted, match=r"no final response within 0\.3 s after C-CANCEL"):
            await association.echo()


async def test_a_second_cancellation_does_not_wait_for_the_peer() -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        await acceptor.read_request()
        asked.set()
        await acceptor.read_cancel()
        cancelled.set()
        await acceptor.expect_abort()

    async with peer(script) as call, call(RequestorConfig(cancel_seconds=60)) as association:
        reading = asyncio.create_task(ids(association.find(QUERY)))
        await asked.wait()
        reading.cancel()
        await cancelled.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


async def test_nothing_is_read_while_the_consumer_is_slow() -> None:
    sent = 0

    async def script(acceptor: FindPeer) -> None:
        nonlocal sent
        await acceptor.accept()
        number = await acceptor.read_request()
        for _ in range(400):
            await acceptor.send(response(number, 0xFF00, identifier("x" * 60_000)))
            sent += 1
        await acceptor.send(response(number, 0x0000))
        await acceptor.expect_release()

    async with peer(script) as call, call(RequestorConfig(waiting_response_bytes=200_000)) as association:
        matches = aiter(association.find(QUERY))
        await anext(matches)
        connection = association._live()
        async with asyncio.timeout(5):
            while not connection._reading_stops:
                await asyncio.sleep(0)
        stream = matches._operation._stream
        assert stream is not None
        assert stream._waiting_bytes <= 200_000 + 61_000, "one match above the bound"
        assert sent < 400
        assert len([match async for match in matches]) == 399


async def _expect_abort_after(acceptor: FindPeer, *answers: Callable[[int], bytes]) -> None:
    await acceptor.accept()
    number = await acceptor.read_request()
    for answer in answers:
        with contextlib.suppress(ConnectionError):
            await acceptor.send(answer(number))
    await acceptor.expect_abort()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(lambda n: response(n, 0xFF00), "without an identifier", id="pending without data set"),
        pytest.param(lambda n: response(n, 0xFF00, b""), "without an identifier", id="empty data set"),
        pytest.param(lambda n: response(n + 1, 0x0000), "nobody asked for", id="to another message"),
        pytest.param(
            lambda n: response(n, 0x0000, context_id=1), "presentation context 1", id="another context"
        ),
        pytest.param(
            lambda n: response(n, 0xFF00, identifier("x" * 5_000)),
            "above 4096 bytes",
            id="a data set above the bound",
        ),
        pytest.param(
            lambda n: (
                response(n, 0xFF00, b"")[:-12] + wire.p_data_tf(PDV(CONTEXT_ID, Control.DATASET, b"")) * 1_002
            ),
            "empty",
            id="endless empty fragments",
        ),
        pytest.param(
            lambda n: (
                response(n, 0xFF00, b"")[:-12]
                + wire.p_data_tf(PDV(CONTEXT_ID, Control.DATASET, bytes(50))) * 100
            ),
            "above 4096 bytes",
            id="endless fragments",
        ),
    ],
)
async def test_malformed_answers_abort(answer: Callable[[int], bytes], said: str) -> None:
    config = RequestorConfig(max_response_dataset_bytes=4096)
    async with (
        peer(lambda acceptor: _expect_abort_after(acceptor, answer)) as call,
        call(config) as association,
    ):
        with pytest.raises(AssociationAborted, match=said):
            await ids(association.find(QUERY))


async def test_what_came_before_an_abort_is_handed_out_first() -> None:
    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        number = await acceptor.read_request()
        await acceptor.send(
            response(number, 0xFF00, identifier("A"))
            + response(number, 0xFF00, identifier("B"))
            + wire.abort(2, 1)
        )

    async with peer(script) as call, call() as association:
        matches = aiter(association.find(QUERY))
        assert [(await anext(matches)).to_dataset().PatientID for _ in range(2)] == ["A", "B"]
        with pytest.raises(AssociationAborted):
            await anext(matches)


async def test_a_silent_peer_costs_response_seconds() -> None:
    async with peer(_expect_abort_after) as call, call() as association:
        finding = association.find(QUERY)
        with pytest.raises(AssociationLost, match=r"no response within 0\.3 s"):
            await ids(finding)
        assert finding.result == FindResult(None, 0, all_keys_supported=True, cancelled=False)


async def test_one_operation_at_a_time_and_each_query_once() -> None:
    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        number = await acceptor.read_request()
        await acceptor.send(response(number, 0xFF00, identifier("A")))
        assert await acceptor.read_cancel() == number
        await acceptor.send(response(number, 0xFE00))
        await acceptor.expect_release()

    async with peer(script) as call, call() as association:
        finding = association.find(QUERY)
        async for _ in finding:
            with pytest.raises(LocalProtocolError, match="being read on this association"):
                await association.echo()
            with pytest.raises(LocalProtocolError, match="being read on this association"):
                await ids(association.find(QUERY))
            break
        with pytest.raises(LocalProtocolError, match="once"):
            aiter(finding)
        await finding.aclose()
        await finding.aclose()


async def test_two_tasks_cannot_wait_for_the_same_match() -> None:
    asked = asyncio.Event()

    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        number = await acceptor.read_request()
        await asked.wait()
        await acceptor.send(response(number, 0xFF00, identifier("A")) + response(number, 0x0000))
        await acceptor.expect_release()

    async with peer(script) as call, call(RequestorConfig()) as association:
        matches = aiter(association.find(QUERY))
        first = asyncio.ensure_future(matches.__anext__())
        await asyncio.sleep(0)
        with pytest.raises(LocalProtocolError, match="already"):
            await anext(matches)
        asked.set()
        assert (await first).to_dataset().PatientID == "A"
        assert [match async for match in matches] == []


async def test_what_is_never_iterated_is_never_sent() -> None:
    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        await acceptor.expect_release()

    async with peer(script) as call, call() as association:
        association.find(QUERY)
        await association.find(QUERY).aclose()
        with pytest.raises(QueryError):
            association.find({"PatientNam": ""})
        with pytest.raises(QueryError, match="at least 1"):
            association.find(QUERY, limit=0)
        with pytest.raises(LocalProtocolError, match="no presentation context"):
            association.find(QUERY, model="patient")


async def test_extended_negotiation_is_offered_and_what_was_agreed_can_be_seen() -> None:
    requests: list[bytes] = []

    async def script(acceptor: FindPeer) -> None:
        agreed = len(STUDY_ROOT).to_bytes(2, "big") + STUDY_ROOT.encode() + b"\1\1\0"
        await acceptor.accept(user_items=wire.item(0x56, agreed))
        requests.append(acceptor.request)
        await acceptor.expect_release()

    wanted = QueryOptions(relational=True, fuzzy_person_names=True)
    async with peer(script) as call, call(query_options=wanted) as association:
        assert association.agreed_query_options() == QueryOptions(relational=True)
        assert association.agreed_query_options("worklist") == QueryOptions()
    assert requests[0].count(b"\1\0\1") >= 3
    assert STUDY_ROOT.encode() + b"\1\0\1" in requests[0]


async def test_a_peer_that_vanishes_is_an_association_lost() -> None:
    async def script(acceptor: FindPeer) -> None:
        await acceptor.accept()
        await acceptor.read_request()

    async with peer(script) as call, call() as association:
        with pytest.raises(AssociationError):
            await ids(association.find(QUERY))
