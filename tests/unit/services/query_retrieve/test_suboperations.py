"""What becomes of sub-operations, and what the responses say of them, with the exact counts (PS3.4 C.4.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import (
    AssociationError,
    AssociationLost,
    CannotTranscode,
    ConnectFailed,
)
from scp_server.protocol.events import Buffer
from scp_server.protocol.status import Status
from scp_server.services.query_retrieve.suboperations import SubOperationsConfig
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_dx, two_section_ct
from scp_server.testing.encoded_object import make_uid
from scp_server.testing.fake_operation import FakeOperation
from scp_server.testing.fake_sender import Answer, FakeDestinations, FakeRemote, FakeSender
from scp_server.testing.objects import ct_image
from scp_server.testing.retrieve_bench import (
    MESSAGE_ID,
    RetrieveBench,
    contexts_for,
    counts,
    retrieve_operation,
    study,
)

STUDY = make_uid("study")
SUCCESS, PENDING, CANCEL = Status.SUCCESS, Status.PENDING, Status.CANCEL
WARNINGS, NONE = Status.SUBOPERATIONS_COMPLETE_WITH_FAILURES, Status.UNABLE_TO_PERFORM_SUBOPERATIONS
EXPLICIT, IMPLICIT = (
    TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN,
)


def answer_with(bench: RetrieveBench, *answers: Answer) -> None:
    """What the destination, or the requestor, says to each slice."""
    bench.remote.answers = list(answers)


def asked(bench: RetrieveBench, get: bool) -> FakeOperation:
    """A retrieve of the study, for the answers of `answer_with`."""
    if not get:
        return retrieve_operation(study(STUDY))
    sender = FakeSender(contexts_for(bench.objects), bench.remote.answers)
    sender.before_answer = bench.remote.before_answer
    return retrieve_operation(study(STUDY), get=True, sender=sender)


# -- statuses and counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("get", [False, True], ids=["move", "get"])
@pytest.mark.parametrize(
    ("answers", "status", "completed", "failed", "warning"),
    [
        ((0x0000,) * 5, SUCCESS, 5, 0, 0),
        ((0xB000, 0x0000, 0x0000, 0x0000, 0x0000), WARNINGS, 4, 0, 1),
        ((0xB000, 0xB006, 0xB007, 0xBFFF, 0xB000), WARNINGS, 0, 0, 5),
        ((0x0107, 0x0116, 0x0001, 0x0000, 0x0000), WARNINGS, 2, 0, 3),
        ((0xA700, 0x0000, 0x0000, 0x0000, 0x0000), WARNINGS, 4, 1, 0),
        ((0xA900, 0xC000, 0xA702, 0x0122, 0x0000), WARNINGS, 1, 4, 0),
        ((0xA700, 0xB000, 0xA700, 0xA700, 0xA700), WARNINGS, 0, 4, 1),
        ((0xA700, 0xC001, 0x0110, 0x0111, 0x0124), NONE, 0, 5, 0),
        ((0xFF00, 0xFE00, 0x1234, 0xFF01, 0x0117), NONE, 0, 5, 0),
    ],
)
async def test_the_final_status_follows_from_what_became_of_the_sub_operations(
    bench: RetrieveBench,
    get: bool,
    answers: tuple[int, ...],
    status: Status,
    completed: int,
    failed: int,
    warning: int,
) -> None:
    """PS3.4 C.4.2.3.1 and PS3.4 C.4.3.3.1."""
    answer_with(bench, *answers)
    retrieved = await bench.perform(asked(bench, get))
    assert retrieved.outcome == (status, (None, completed, failed, warning))
    uids = [each.sop_instance_uid for each in bench.objects]
    wrong = [uid for uid, answer in zip(uids, answers, strict=True) if _is_failure(answer)]
    assert retrieved.failed_uids == (wrong or None)
    assert [message.status for message in retrieved.pending] == [PENDING] * 4
    assert [counts(message)[0] for message in retrieved.pending] == [4, 3, 2, 1]
    assert bench.measures.results == {"completed": completed, "warning": warning, "failed": failed}


def _is_failure(status: int) -> bool:
    return status not in (0x0000, 0x0001, 0x0107, 0x0116) and status >> 12 != 0xB


@pytest.mark.parametrize("get", [False, True], ids=["move", "get"])
async def test_every_pending_response_has_four_true_counts(bench: RetrieveBench, get: bool) -> None:
    """PS3.7 9.1.4.1 and PS3.7 9.1.3.1."""
    answer_with(bench, 0x0000, 0xA700, 0xB000, 0x0000, 0xC000)
    retrieved = await bench.perform(asked(bench, get))
    assert [counts(message) for message in retrieved.pending] == [
        (4, 1, 0, 0),
        (3, 1, 1, 0),
        (2, 1, 1, 1),
        (1, 2, 1, 1),
    ]
    assert retrieved.outcome == (WARNINGS, (None, 2, 2, 1))
    assert retrieved.final.error_comment == "status 0xA700"


@pytest.mark.parametrize("get", [False, True], ids=["move", "get"])
async def test_what_matches_nothing_is_a_success_with_counts_of_zero(bench: RetrieveBench, get: bool) -> None:
    """PS3.4 C.4.2.3.1."""
    retrieved = await bench.perform(retrieve_operation(study(make_uid("another")), get=get))
    assert retrieved.outcome == (SUCCESS, (None, 0, 0, 0))
    assert retrieved.failed_uids is None
    assert not retrieved.pending
    assert not bench.remote.senders


async def test_more_failed_uids_than_a_short_value_holds_are_all_listed(tmp_path: Path) -> None:
    """PS3.4 C.4.2.1.4.2."""
    objects = [
        ct_image(rows=1, columns=1, seed=n, study_instance_uid=STUDY, sop_instance_uid=f"1.2.{'9' * 50}.{n}")
        for n in range(1_250)
    ]
    async with await RetrieveBench.of(tmp_path, objects) as bench:
        bench.remote.refusal = ConnectFailed("nobody there")
        service = bench.service()
        answer = await service.move(retrieve_operation(study(STUDY)))
    dataset: bytes = answer.dataset  # type: ignore[union-attr]
    assert dataset[:8] == b"\x08\x00\x58\x00UN\0\0"
    assert len(dataset) > 0xFFFF
    assert dataset[12:].rstrip(b"\0").decode().split("\\") == [each.sop_instance_uid for each in objects]


# -- what is sent --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("get", [False, True], ids=["move", "get"])
async def test_every_part_is_sent_byte_for_byte_as_it_was_stored(tmp_path: Path, get: bool) -> None:
    first, second = two_section_ct()
    report = dicos_dx(seed=3)
    async with await RetrieveBench.of(tmp_path, [first, second, report]) as bench:
        sender = FakeSender(contexts_for(bench.objects))
        retrieved = await bench.perform(
            retrieve_operation(study(first.study_instance_uid), get=get, sender=sender)
        )
        sent = sender.sent if get else bench.remote.sent
    assert retrieved.outcome == (SUCCESS, (None, 3, 0, 0))
    assert [store.dataset for store in sent] == [first.dataset, second.dataset, report.dataset]
    assert [store.sop_instance_uid for store in sent] == [
        first.sop_instance_uid,
        first.sop_instance_uid,
        report.sop_instance_uid,
    ]
    assert bench.measures.sent_bytes == sum(len(each.dataset) for each in bench.objects)


@pytest.mark.parametrize(("asked_for", "passed_on"), [(0, 0), (1, 1), (2, 2), (7, 0)])
async def test_a_move_passes_on_its_priority_and_says_whose_it_is(
    bench: RetrieveBench, asked_for: int, passed_on: int
) -> None:
    """PS3.4 C.4.2.1.2, PS3.7 9.1.1.1."""
    await bench.perform(retrieve_operation(study(STUDY), priority=asked_for))
    assert {(store.priority, store.move_originator) for store in bench.remote.sent} == {
        (passed_on, ("WORKSTATION", MESSAGE_ID))
    }


async def test_a_get_passes_on_its_priority_and_has_no_move_originator(bench: RetrieveBench) -> None:
    """PS3.4 C.4.3.1.2."""
    sender = FakeSender(contexts_for(bench.objects))
    await bench.perform(retrieve_operation(study(STUDY), get=True, priority=1, sender=sender))
    assert {(store.priority, store.move_originator) for store in sender.sent} == {(1, None)}


async def test_an_ae_title_that_cannot_be_sent_on_is_left_out(bench: RetrieveBench) -> None:
    await bench.perform(retrieve_operation(study(STUDY), calling_ae_title="ÄRZTE"))
    assert {store.move_originator for store in bench.remote.sent} == {None}


async def test_a_get_without_granted_roles_is_all_failed_sub_operations(bench: RetrieveBench) -> None:
    """PS3.4 C.5.3."""
    sender = FakeSender()
    retrieved = await bench.perform(retrieve_operation(study(STUDY), get=True, sender=sender))
    assert retrieved.outcome == (NONE, (None, 0, 5, 0))
    assert retrieved.failed_uids == [each.sop_instance_uid for each in bench.objects]
    assert retrieved.final.error_comment == "no presentation context that it can be sent on"


async def test_a_refused_context_costs_only_the_objects_that_need_it(tmp_path: Path) -> None:
    """PS3.4 C.4.2.3.1."""
    plain = ct_image(seed=1, study_instance_uid=STUDY)
    implicit = ct_image(seed=2, study_instance_uid=STUDY, transfer_syntax=IMPLICIT)
    async with await RetrieveBench.of(tmp_path, [plain, implicit]) as bench:
        bench.remote.accepts = lambda _sop_class, syntax: syntax == EXPLICIT.value
        retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (WARNINGS, (None, 1, 1, 0))
    assert retrieved.failed_uids == [implicit.sop_instance_uid]
    assert [store.sop_instance_uid for store in bench.remote.sent] == [plain.sop_instance_uid]


class UpperCase:
    """A `Transcoding` that can give everything explicit VR little endian, and turns letters to capitals."""

    def __init__(self, problem: str = "", late: bool = False) -> None:
        self.problem = problem
        self.late = late

    def targets(self, stored_transfer_syntax: str, dataset_bytes: int) -> tuple[str, ...]:
        assert dataset_bytes > 0
        return () if stored_transfer_syntax == EXPLICIT.value else (EXPLICIT.value,)

    async def start(
        self, dataset: AsyncIterable[Buffer], stored: str, target: str, dataset_bytes: int
    ) -> AsyncGenerator[bytes, None]:
        assert (stored, target) == (IMPLICIT.value, EXPLICIT.value)
        if self.problem and not self.late:
            raise CannotTranscode(self.problem)
        return self._pieces(dataset)

    async def _pieces(self, dataset: AsyncIterable[Buffer]) -> AsyncGenerator[bytes, None]:
        async for piece in dataset:
            yield bytes(piece).upper()
            if self.problem:
                raise CannotTranscode(self.problem)


async def test_an_object_is_given_another_transfer_syntax_only_where_its_own_was_refused(
    tmp_path: Path,
) -> None:
    plain = ct_image(seed=1, study_instance_uid=STUDY)
    implicit = ct_image(seed=2, study_instance_uid=STUDY, transfer_syntax=IMPLICIT)
    async with await RetrieveBench.of(tmp_path, [plain, implicit]) as bench:
        bench.transcoding = UpperCase()
        bench.remote.accepts = lambda _sop_class, syntax: syntax == EXPLICIT.value
        assert (await bench.perform(retrieve_operation(study(STUDY)))).outcome == (SUCCESS, (None, 2, 0, 0))
        assert [store.dataset for store in bench.remote.sent] == [plain.dataset, implicit.dataset.upper()]
        bench.remote = FakeRemote()
        await bench.perform(retrieve_operation(study(STUDY)))
        assert [store.dataset for store in bench.remote.sent] == [plain.dataset, implicit.dataset]
        assert [store.context.transfer_syntax for store in bench.remote.sent] == [
            EXPLICIT.value,
            IMPLICIT.value,
        ]


@pytest.mark.parametrize(("late", "associations"), [(False, 1), (True, 2)])
async def test_what_cannot_be_given_another_transfer_syntax_fails_alone(
    tmp_path: Path, late: bool, associations: int
) -> None:
    objects = [
        ct_image(seed=n, study_instance_uid=STUDY, transfer_syntax=IMPLICIT if n == 0 else EXPLICIT)
        for n in range(3)
    ]
    async with await RetrieveBench.of(tmp_path, objects) as bench:
        bench.transcoding = UpperCase("a value of 4 GiB", late)
        bench.remote.accepts = lambda _sop_class, syntax: syntax == EXPLICIT.value
        retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (WARNINGS, (None, 2, 1, 0))
    assert [store.dataset for store in bench.remote.sent] == [each.dataset for each in objects[1:]]
    assert len(bench.remote.senders) == associations


# -- objects that cannot be read -----------------------------------------------------------------------------


async def _location(bench: RetrieveBench, number: int) -> Path:
    (part,) = await bench.index.parts(bench.objects[number].sop_instance_uid)
    return bench.archive.data_dir / part.location


@pytest.mark.parametrize("get", [False, True], ids=["move", "get"])
@pytest.mark.parametrize("number", [0, 2, 4])
async def test_an_object_that_is_gone_fails_alone(bench: RetrieveBench, get: bool, number: int) -> None:
    (await _location(bench, number)).unlink()
    retrieved = await bench.perform(asked(bench, get))
    assert retrieved.outcome == (WARNINGS, (None, 4, 1, 0))
    assert retrieved.failed_uids == [bench.objects[number].sop_instance_uid]
    assert retrieved.final.error_comment == "the object cannot be read"
    assert len(bench.remote.senders) == (0 if get else 1)


async def test_an_object_that_is_deleted_during_a_retrieve_fails_alone(bench: RetrieveBench) -> None:
    last = await _location(bench, 4)

    async def delete_the_last() -> None:
        await bench.index.remove([str(last.relative_to(bench.archive.data_dir))])
        last.unlink(missing_ok=True)

    bench.remote.before_answer = delete_the_last
    retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (WARNINGS, (None, 4, 1, 0))
    assert retrieved.failed_uids == [bench.objects[4].sop_instance_uid]


async def test_a_cut_object_is_never_sent_whole_and_costs_a_move_its_association(
    bench: RetrieveBench,
) -> None:
    path = await _location(bench, 1)
    path.write_bytes(path.read_bytes()[:-2])
    retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (WARNINGS, (None, 4, 1, 0))
    assert retrieved.failed_uids == [bench.objects[1].sop_instance_uid]
    whole = [each.dataset for each in bench.objects]
    assert [store.dataset for store in bench.remote.sent] == [whole[0], *whole[2:]]
    assert bench.remote.ends == ["AssociationLost", "clean"]


async def test_a_cut_object_ends_the_association_of_a_get(bench: RetrieveBench) -> None:
    path = await _location(bench, 1)
    path.write_bytes(path.read_bytes()[:-2])
    operation = asked(bench, get=True)
    with pytest.raises(AssociationError):
        await bench.perform(operation)
    assert not operation.sender.alive
    assert [store.dataset for store in operation.sender.sent] == [bench.objects[0].dataset]


async def test_what_nobody_expected_of_an_object_is_that_sub_operations_failure(
    bench: RetrieveBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(UpperCase):
        async def start(
            self, dataset: AsyncIterable[Buffer], stored: str, target: str, dataset_bytes: int
        ) -> AsyncGenerator[bytes, None]:
            raise ZeroDivisionError

        def targets(self, stored_transfer_syntax: str, dataset_bytes: int) -> tuple[str, ...]:
            return (IMPLICIT.value,)

    bench.transcoding = Broken()
    bench.remote.accepts = lambda _sop_class, syntax: syntax == IMPLICIT.value
    assert (await bench.perform(retrieve_operation(study(STUDY)))).outcome == (NONE, (None, 0, 5, 0))


# -- cancelling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("get", [False, True], ids=["move", "get"])
@pytest.mark.parametrize("sent", range(6))
async def test_a_cancel_lets_the_sub_operation_in_hand_end_and_begins_no_other(
    bench: RetrieveBench, get: bool, sent: int
) -> None:
    """After 0 nothing was begun; then it comes while the first, second, ... is being answered.

    PS3.4 C.4.2.3.1; PS3.7 9.3.3.3 and PS3.7 9.3.4.3.
    """
    seen = 0

    async def cancel() -> None:
        nonlocal seen
        seen += 1
        if seen == sent:
            operation.cancel()

    answer_with(bench, 0x0000, 0xA700, 0xB000)
    bench.remote.before_answer = cancel
    operation = asked(bench, get)
    if not sent:
        operation.cancel()
    retrieved = await bench.perform(operation)
    stores = operation.sender.sent if get else bench.remote.sent
    assert len(stores) == sent
    completed, failed, warning = min(sent, 1) + max(sent - 3, 0), int(sent > 1), int(sent > 2)
    if sent == 5:
        # Nothing was left that could be cancelled.
        assert retrieved.outcome == (WARNINGS, (None, completed, failed, warning))
    else:
        assert retrieved.outcome == (CANCEL, (5 - sent, completed, failed, warning))
    assert retrieved.failed_uids == ([bench.objects[1].sop_instance_uid] if failed else None)


async def test_a_destination_is_offered_only_what_it_may_be_sent(bench: RetrieveBench) -> None:
    """Without an association, where that is nothing."""
    bench.remote.transfer_syntaxes = ("1.2.840.10008.1.2.4.70",)
    retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (0xA702, (None, 0, 5, 0))
    assert bench.remote.senders == []


async def test_a_cancel_does_not_wait_for_a_destination_that_does_not_answer(
    bench: RetrieveBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = retrieve_operation(study(STUDY))
    service = bench.service()
    dialled = asyncio.Event()

    class Deaf:
        def is_known(self, _ae_title: str) -> bool:
            return True

        def transfer_syntaxes_for(self, _title: str, stored: str, _targets: object) -> tuple[str, ...]:
            return (stored,)

        def send_to(self, _ae_title: str, _contexts: object) -> Deaf:
            return self

        async def __aenter__(self) -> FakeSender:
            dialled.set()
            await asyncio.Event().wait()
            raise AssertionError

        async def __aexit__(self, *_error: object) -> None: ...

    monkeypatch.setattr(service, "_destinations", Deaf())
    task = asyncio.create_task(service.move(operation))
    await dialled.wait()
    operation.cancel()
    async with asyncio.timeout(10):
        final = await task
    assert final.status == CANCEL  # type: ignore[union-attr]
    assert counts(final) == (5, 0, 0, 0)  # type: ignore[arg-type]


async def test_with_several_associations_a_cancel_lets_those_in_hand_end(bench: RetrieveBench) -> None:
    bench.sub_operations = replace(bench.sub_operations, associations=3)
    answering, together = asyncio.Event(), asyncio.Barrier(3)

    async def hold() -> None:
        await together.wait()
        operation.cancel()
        await answering.wait()

    bench.remote.before_answer = hold
    operation = retrieve_operation(study(STUDY))
    asyncio.get_running_loop().call_later(0.05, answering.set)
    retrieved = await bench.perform(operation)
    assert retrieved.outcome == (CANCEL, (2, 3, 0, 0))
    assert bench.remote.ends == ["clean"] * 3


async def test_a_requestor_that_vanishes_stops_a_move_after_the_sub_operation_in_hand(
    bench: RetrieveBench,
) -> None:
    """PS3.4 C.4.2.3.1, which leaves it open."""
    operation = retrieve_operation(study(STUDY))

    def vanish() -> None:
        raise AssociationLost("the requestor is gone")

    operation.before_send = vanish
    await bench.perform(operation)
    assert len(bench.remote.sent) == 1
    assert bench.remote.ends == ["clean"]


async def test_a_requestor_that_vanishes_ends_a_get(bench: RetrieveBench) -> None:
    answer_with(bench, 0x0000, AssociationLost("the requestor is gone"))
    operation = asked(bench, get=True)
    with pytest.raises(AssociationLost, match="the requestor is gone"):
        await bench.perform(operation)
    assert len(operation.sender.sent) == 2


# -- destinations that fail ----------------------------------------------------------------------------------


@pytest.mark.parametrize("associations", [1, 4])
async def test_a_destination_that_cannot_be_reached_is_a702_with_everything_failed(
    bench: RetrieveBench, associations: int
) -> None:
    """PS3.4 C.4.2.3.1."""
    bench.sub_operations = replace(bench.sub_operations, associations=associations)
    bench.remote.refusal = ConnectFailed("connection refused")
    retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (NONE, (None, 0, 5, 0))
    assert retrieved.failed_uids == [each.sop_instance_uid for each in bench.objects]
    assert retrieved.final.error_comment == "no association with the destination"


async def test_an_association_that_ends_is_followed_by_another_and_its_object_sent_again(
    bench: RetrieveBench,
) -> None:
    answer_with(bench, 0x0000, AssociationLost("reset"), 0x0000, 0xB000, AssociationLost("reset"))
    retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (WARNINGS, (None, 4, 0, 1))
    uids = [each.sop_instance_uid for each in bench.objects]
    assert [[store.sop_instance_uid for store in sender.sent] for sender in bench.remote.senders] == [
        uids[:2],
        uids[1:4],
        uids[3:],
    ]
    assert bench.remote.ends == ["AssociationLost", "AssociationLost", "clean"]


async def test_an_object_under_which_two_associations_end_fails_and_the_rest_goes_on(
    bench: RetrieveBench,
) -> None:
    poison = bench.objects[2].sop_instance_uid
    bench.remote.answer_by_instance = {poison: AssociationLost("crashed")}
    retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (WARNINGS, (None, 4, 1, 0))
    assert retrieved.failed_uids == [poison]


async def test_a_destination_that_dies_at_every_object_is_given_up(bench: RetrieveBench) -> None:
    answer_with(bench, 0x0000, *[AssociationLost("crashed")] * 9)
    retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (WARNINGS, (None, 1, 4, 0))
    assert retrieved.failed_uids == [each.sop_instance_uid for each in bench.objects[1:]]
    assert len(bench.remote.senders) == 3


async def test_a_destination_that_takes_one_association_only_gets_everything_over_it(
    bench: RetrieveBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sub_operations = replace(bench.sub_operations, associations=4)

    async def refuse_others() -> None:
        bench.remote.refusal = ConnectFailed("one is enough")

    bench.remote.before_answer = refuse_others
    retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (SUCCESS, (None, 5, 0, 0))


async def test_sub_operations_run_side_by_side_on_as_many_associations_as_allowed(
    bench: RetrieveBench,
) -> None:
    bench.sub_operations = replace(bench.sub_operations, associations=5)
    together = asyncio.Barrier(5)
    bench.remote.before_answer = together.wait
    async with asyncio.timeout(10):
        retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (SUCCESS, (None, 5, 0, 0))
    assert [len(sender.sent) for sender in bench.remote.senders] == [1] * 5


async def test_a_destination_that_takes_one_association_at_a_time_keeps_nobody_waiting(
    bench: RetrieveBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers the second A-ASSOCIATE-RQ once the first association has ended: never, for us."""
    send_to, taken = FakeDestinations.send_to, False

    @asynccontextmanager
    async def one_by_one(self: FakeDestinations, ae_title: str, contexts: Any) -> AsyncIterator[Any]:
        nonlocal taken
        if taken:
            await asyncio.Event().wait()
        taken = True
        async with send_to(self, ae_title, contexts) as sender:
            yield sender

    monkeypatch.setattr(FakeDestinations, "send_to", one_by_one)
    bench.sub_operations = replace(bench.sub_operations, associations=4)
    async with asyncio.timeout(10):
        retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (SUCCESS, (None, 5, 0, 0))
    assert [len(sender.sent) for sender in bench.remote.senders] == [5]


# -- pending responses ---------------------------------------------------------------------------------------


async def test_there_is_a_pending_response_while_a_sub_operation_takes_long(bench: RetrieveBench) -> None:
    """PS3.4 C.4.2.3.1."""
    bench.sub_operations = SubOperationsConfig(
        associations=1, pending_seconds=0.01, least_pending_seconds=0.0
    )
    told = asyncio.Event()
    operation = retrieve_operation(study(STUDY))
    operation.before_send = lambda: told.set() if len(operation.sent) >= 2 else None
    bench.remote.before_answer = told.wait
    async with asyncio.timeout(10):
        retrieved = await bench.perform(operation)
    assert [counts(message) for message in retrieved.pending[:3]] == [(5, 0, 0, 0)] * 3


async def test_there_are_no_more_pending_responses_than_allowed(bench: RetrieveBench) -> None:
    bench.sub_operations = replace(bench.sub_operations, least_pending_seconds=1_000.0)
    retrieved = await bench.perform(retrieve_operation(study(STUDY)))
    assert retrieved.outcome == (SUCCESS, (None, 5, 0, 0))
    assert not retrieved.pending


async def test_no_task_is_left_behind(bench: RetrieveBench) -> None:
    before = asyncio.all_tasks()
    bench.sub_operations = replace(bench.sub_operations, associations=4)
    await bench.perform(retrieve_operation(study(STUDY)))
    assert asyncio.all_tasks() == before
