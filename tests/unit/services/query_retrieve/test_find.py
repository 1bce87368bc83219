"""How a C-FIND ends: statuses, cancelling, failures, limits (PS3.4 C.4.1.1.4, PS3.7 9.1.2)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from scp_server.errors import AssociationLost, IndexUnavailable, OperationRefused, SearchInterrupted
from scp_server.index.store import SqlIndex
from scp_server.protocol.message import CFindRSP
from scp_server.services.query_retrieve import find as module
from scp_server.services.query_retrieve.models import PATIENT_ROOT, STUDY_ROOT
from scp_server.services.query_retrieve.plan import plan_find
from scp_server.testing.dataset_encoder import Element
from scp_server.testing.fake_operation import FakeDataset, FakeOperation
from tests.unit.services.query_retrieve.asking import ask, key, operation_for, perform


async def refusal_of(index: Any, operation: FakeOperation, **query: Any) -> OperationRefused:
    with pytest.raises(OperationRefused) as refused:
        await perform(index, operation, **query)
    assert operation.sent == []
    return refused.value


class FailingIndex:
    """An index whose search fails after some pages."""

    def __init__(self, pages: list[list[Any]], error: Exception) -> None:
        self._pages = pages
        self._error = error
        self.interrupted = 0

    def search(self, *_arguments: object) -> FailingIndex:
        return self

    def __aiter__(self) -> AsyncIterator[list[Any]]:
        return self._run()

    async def _run(self) -> AsyncIterator[list[Any]]:
        for page in self._pages:
            yield page
        raise self._error

    def interrupt(self) -> None:
        self.interrupted += 1


async def test_every_match_is_a_pending_response_and_success_has_no_identifier_c_4_1_1_4(
    archive: SqlIndex,
) -> None:
    asked = await ask(archive, "STUDY", key("PatientID", "PAT-1"))
    assert (asked.final, asked.statuses) == (0x0000, [0xFF00, 0xFF00])
    for response in asked.operation.sent:
        assert isinstance(response, CFindRSP)
        assert response.has_dataset
        assert response.message_id_being_responded_to == 7
        assert response.affected_sop_class_uid == STUDY_ROOT.find_sop_class_uid


async def test_no_match_is_success_alone(archive: SqlIndex) -> None:
    asked = await ask(archive, "STUDY", key("PatientID", "nobody"))
    assert (asked.final, asked.statuses) == (0x0000, [])


async def test_another_sop_class_than_the_contexts_is_0122_c_4_1_1_4(archive: SqlIndex) -> None:
    operation = operation_for("STUDY")
    operation.context = replace(operation.context, abstract_syntax=PATIENT_ROOT.find_sop_class_uid)
    assert (await refusal_of(archive, operation)).status == 0x0122


async def test_a_query_without_an_identifier_is_a900(archive: SqlIndex) -> None:
    operation = operation_for("STUDY")
    operation.request = replace(operation.request, has_dataset=False)
    assert (await refusal_of(archive, operation)).status == 0xA900


@pytest.mark.parametrize(
    "data",
    [b"\x08", bytes(8), b"\x08\x00\x52\x00CS\x08\x00STUDY", b"\xff" * 40, b"\x10\x00\x20\x00LO\xff\xff"],
)
async def test_an_identifier_that_cannot_be_read_is_c000_c_4_1_1_4(archive: SqlIndex, data: bytes) -> None:
    operation = operation_for("STUDY")
    operation.dataset = FakeDataset([[data]])
    assert (await refusal_of(archive, operation)).status == 0xC000


async def test_a_value_that_its_vr_cannot_have_is_c000_with_the_element(archive: SqlIndex) -> None:
    refusal = await refusal_of(archive, operation_for("STUDY", key("StudyDate", "2026-13-99")))
    assert (refusal.status, refusal.offending_elements) == (0xC000, (0x00080020,))


async def test_an_identifier_arrives_in_pieces_and_is_released(archive: SqlIndex) -> None:
    operation = operation_for("STUDY", key("PatientID", "PAT-1"))
    whole = b"".join([bytes(view) async for chunks in operation.dataset.chunks() for view in chunks])
    operation.dataset = FakeDataset([[whole[:5]], [], [whole[5:9], whole[9:]]])
    asked = await perform(archive, operation)
    assert len(asked.matches) == 2
    assert operation.dataset.held_bytes == 0


async def test_an_identifier_that_is_too_large_is_not_kept_to_its_end(archive: SqlIndex) -> None:
    operation = operation_for("STUDY")
    operation.dataset = FakeDataset([[bytes(3_000)] for _ in range(100)])
    refusal = await refusal_of(archive, operation, max_identifier_bytes=4_096)
    assert (refusal.status, operation.dataset.received_bytes) == (0xC000, 6_000)


async def test_an_association_that_ends_inside_the_identifier_is_no_refusal(archive: SqlIndex) -> None:
    operation = operation_for("STUDY")
    operation.dataset = FakeDataset([[b"\x08"], AssociationLost("gone")])
    with pytest.raises(AssociationLost):
        await perform(archive, operation)


@pytest.mark.parametrize(("size", "in_the_loop"), [(100, True), (2_048, False), (100_000, False)])
async def test_a_large_identifier_is_read_off_the_event_loop(
    archive: SqlIndex, monkeypatch: pytest.MonkeyPatch, size: int, in_the_loop: bool
) -> None:
    threads: list[int] = []

    def plan(*arguments: Any, **more: Any) -> Any:
        threads.append(threading.get_ident())
        return plan_find(*arguments, **more)

    monkeypatch.setattr(module, "plan_find", plan)
    asked = await ask(archive, "STUDY", key("PatientID", "PAT-1"), key("TextValue", " " * size))
    assert len(asked.matches) == 2
    assert [thread == threading.get_ident() for thread in threads] == [in_the_loop]


async def test_the_index_is_told_how_large_an_answer_is(archive: SqlIndex) -> None:
    """So that a page of answers stays small, whatever the headers unpack to."""
    told: list[int] = []

    class Counting(FailingIndex):
        def search(self, *arguments: Any) -> Any:
            search, judge, size_of = arguments

            def noting(answer: Any) -> int:
                told.append(size_of(answer))
                return told[-1]

            return archive.search(search, judge, noting)

    asked = await perform(Counting([], SearchInterrupted("")), operation_for("STUDY", key("Rows")))
    assert told == [len(data or b"") for data in asked.operation.sent_datasets]
    assert len(told) == 6


# --- cancelling (PS3.7 9.3.2.3)


def cancel_after(responses: int) -> Callable[[FakeOperation], Callable[[], None]]:
    def of(operation: FakeOperation) -> Callable[[], None]:
        return lambda: operation.cancel() if len(operation.sent) == responses - 1 else None

    return of


async def test_a_cancel_before_the_search_is_fe00_and_nothing_is_sent(archive: SqlIndex) -> None:
    operation = operation_for("STUDY")
    operation.cancel()
    asked = await perform(archive, operation)
    assert (asked.final, asked.statuses) == (0xFE00, [])


@pytest.mark.parametrize("responses", [1, 2, 5])
async def test_a_cancel_between_responses_is_fe00_after_those_sent(archive: SqlIndex, responses: int) -> None:
    operation = operation_for("STUDY")
    operation.before_send = cancel_after(responses)(operation)
    asked = await perform(archive, operation)
    assert (asked.final, asked.statuses) == (0xFE00, [0xFF00] * responses)


async def test_a_cancel_while_the_index_looks_stops_it_and_is_fe00(archive: SqlIndex) -> None:
    index = FailingIndex([[]], SearchInterrupted("stopped"))
    operation = operation_for("STUDY")
    asked = await perform(index, operation)
    assert (asked.final, asked.statuses) == (0xFE00, [])
    operation.cancel()
    assert index.interrupted == 2


async def test_a_cancel_after_the_last_match_is_success_since_all_were_sent(archive: SqlIndex) -> None:
    operation = operation_for("STUDY", key("PatientID", "PAT-JP"))
    operation.before_send = cancel_after(1)(operation)
    asked = await perform(archive, operation)
    assert (asked.final, asked.statuses) in [(0x0000, [0xFF00]), (0xFE00, [0xFF00])]


# --- failures


async def test_an_index_that_fails_is_a700_without_its_secrets_c_4_1_1_4(
    archive: SqlIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    index = FailingIndex([], IndexUnavailable("/srv/secret/index.sqlite is locked"))
    refusal = await refusal_of(index, operation_for("STUDY"))
    assert (refusal.status, refusal.comment) == (0xA700, "the index cannot be searched")


async def test_an_index_that_is_closed_is_a700(archive: SqlIndex) -> None:
    await archive.close()
    assert (await refusal_of(archive, operation_for("STUDY"))).status == 0xA700


async def test_too_many_matches_end_with_a700_after_the_pending_ones_ps3_7_9_1_2_1_6(
    archive: SqlIndex,
) -> None:
    operation = operation_for("STUDY")
    with pytest.raises(OperationRefused) as refusal:
        await perform(archive, operation, max_matches=4)
    assert (refusal.value.status, refusal.value.comment) == (0xA700, "there are more than 4 matches")
    assert len(operation.sent) == 4


async def test_an_end_of_the_association_while_sending_stops_the_search(archive: SqlIndex) -> None:
    operation = operation_for("STUDY")

    def end() -> None:
        raise AssociationLost("gone")

    operation.before_send = end
    with pytest.raises(AssociationLost):
        await perform(archive, operation)


async def test_two_queries_at_once_share_nothing(archive: SqlIndex) -> None:
    query = {"header_match_rows": 4}
    both = [ask(archive, "STUDY", key("KVP", "120"), query=query) for _ in range(2)]
    first, second = await asyncio.gather(*both)
    assert first.statuses == second.statuses == [0xFF00] * 4 + [0xFF01] * 2


async def test_values_with_every_metacharacter_of_sql_are_only_values(archive: SqlIndex) -> None:
    for text in (
        "'",
        '"',
        "%",
        "_",
        ";",
        "--",
        "'; DROP TABLE patients; --",
        "\n;",
        "';\0",
        "%*_",
        "[a-z]*",
        "*'*",
    ):
        asked = await ask(archive, "STUDY", key("PatientID", text), key("PatientName", text))
        assert (asked.final, asked.matches) == (0x0000, []), repr(text)
    assert len((await ask(archive, "STUDY", Element(0x00100020, "LO", "PAT-?"))).matches) == 3
