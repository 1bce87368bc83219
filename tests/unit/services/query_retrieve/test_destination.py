"""The presentation contexts that a C-MOVE proposes, and how its parts are divided among associations."""

from __future__ import annotations

import pytest

from scp_server.index.base import RetrievablePart
from scp_server.objects.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from scp_server.services.query_retrieve.destination import Batch, batched, batches

JPEG = "1.2.840.10008.1.2.4.70"
EVERYTHING = (JPEG, EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)


def part(number: int, sop_class: str = "1.2.3", syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> RetrievablePart:
    return RetrievablePart(sop_class, f"1.9.{number}", syntax, f"objects/{number}", 1_000, 300)


def as_stored(part: RetrievablePart) -> tuple[str, ...]:
    return (part.transfer_syntax_uid,)


def test_each_class_and_stored_transfer_syntax_has_one_context() -> None:
    parts = [part(1), part(2, "1.2.4"), part(3), part(4, syntax=JPEG), part(5, "1.2.4")]
    (batch,) = batches(parts, as_stored)
    assert batch.parts == parts
    assert batch.contexts == [
        ("1.2.3", (EXPLICIT_VR_LITTLE_ENDIAN, JPEG)),
        ("1.2.4", (EXPLICIT_VR_LITTLE_ENDIAN,)),
    ]


def test_everything_is_proposed_that_a_part_may_be_sent_in() -> None:
    def proposals(each: RetrievablePart) -> tuple[str, ...]:
        return EVERYTHING if each.transfer_syntax_uid == JPEG else as_stored(each)

    (batch,) = batches([part(1, syntax=JPEG), part(2, "1.2.4")], proposals)
    assert batch.contexts == [("1.2.3", EVERYTHING), ("1.2.4", (EXPLICIT_VR_LITTLE_ENDIAN,))]


def test_a_part_for_which_nothing_is_proposed_is_in_a_batch_all_the_same() -> None:
    parts = [part(1), part(2, "1.2.4")]
    (batch,) = batches(parts, lambda each: as_stored(each) if each.sop_class_uid == "1.2.3" else ())
    assert batch == Batch(parts, {("1.2.3", EXPLICIT_VR_LITTLE_ENDIAN): None})
    assert batches(parts, lambda _: ()) == [Batch(parts, {})]


@pytest.mark.parametrize(("kinds", "sizes"), [(128, [128]), (129, [128, 1]), (300, [128, 128, 44])])
def test_more_than_128_contexts_are_divided(kinds: int, sizes: list[int]) -> None:
    """PS3.8 9.3.2.2."""
    parts = [part(number, f"1.2.{number % kinds}") for number in range(2 * kinds)]
    found = batches(parts, as_stored)
    assert [len(batch.pairs) for batch in found] == sizes
    assert all((each.sop_class_uid, each[2]) in batch.pairs for batch in found for each in batch.parts)
    assert sorted(each for batch in found for each in batch.parts) == sorted(parts)


def test_a_kind_is_never_divided_from_its_fallbacks() -> None:
    parts = [part(number, f"1.2.{number}", JPEG) for number in range(43)]
    found = batches(parts, lambda _: EVERYTHING)
    assert [len(batch.pairs) for batch in found] == [126, 3]


def test_no_parts_are_no_batch() -> None:
    assert batches([], as_stored) == []


async def test_many_parts_are_divided_in_the_same_way() -> None:
    parts = [part(number) for number in range(2_001)]
    assert await batched(parts, as_stored) == [Batch(parts, {("1.2.3", EXPLICIT_VR_LITTLE_ENDIAN): None})]
