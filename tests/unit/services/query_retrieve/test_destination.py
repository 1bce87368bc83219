"""The presentation contexts that a C-MOVE proposes, and how its parts are divided among associations."""

from __future__ import annotations

import pytest

from scp_server.index.base import RetrievablePart
from scp_server.objects.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from scp_server.services.query_retrieve.destination import Batch, batched, batches

JPEG = "1.2.840.10008.1.2.4.70"


def part(number: int, sop_class: str = "1.2.3", syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> RetrievablePart:
    return RetrievablePart(sop_class, f"1.9.{number}", syntax, f"objects/{number}", 1_000, 300)


def none(_part: RetrievablePart) -> tuple[str, ...]:
    return ()


def test_each_class_and_stored_transfer_syntax_has_one_context() -> None:
    parts = [part(1), part(2, "1.2.4"), part(3), part(4, syntax=JPEG), part(5, "1.2.4")]
    (batch,) = batches(parts, none)
    assert batch.parts == parts
    assert batch.contexts == [
        ("1.2.3", (EXPLICIT_VR_LITTLE_ENDIAN, JPEG)),
        ("1.2.4", (EXPLICIT_VR_LITTLE_ENDIAN,)),
    ]


def test_what_a_part_can_be_given_is_proposed_where_everybody_takes_it() -> None:
    def targets(each: RetrievablePart) -> tuple[str, ...]:
        everything = (
            EXPLICIT_VR_LITTLE_ENDIAN,
            DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
            IMPLICIT_VR_LITTLE_ENDIAN,
        )
        return everything if each.transfer_syntax_uid == JPEG else ()

    (batch,) = batches([part(1, syntax=JPEG), part(2, "1.2.4")], targets)
    assert batch.contexts == [
        ("1.2.3", (JPEG, EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)),
        ("1.2.4", (EXPLICIT_VR_LITTLE_ENDIAN,)),
    ]


@pytest.mark.parametrize(("kinds", "sizes"), [(128, [128]), (129, [128, 1]), (300, [128, 128, 44])])
def test_more_than_128_contexts_are_divided(kinds: int, sizes: list[int]) -> None:
    """PS3.8 9.3.2.2."""
    parts = [part(number, f"1.2.{number % kinds}") for number in range(2 * kinds)]
    found = batches(parts, none)
    assert [len(batch.pairs) for batch in found] == sizes
    assert all((each.sop_class_uid, each[2]) in batch.pairs for batch in found for each in batch.parts)
    assert sorted(each for batch in found for each in batch.parts) == sorted(parts)


def test_a_kind_is_never_divided_from_its_fallbacks() -> None:
    def targets(_part: RetrievablePart) -> tuple[str, ...]:
        return (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)

    parts = [part(number, f"1.2.{number}", JPEG) for number in range(43)]
    found = batches(parts, targets)
    assert [len(batch.pairs) for batch in found] == [126, 3]


def test_no_parts_are_no_batch() -> None:
    assert batches([], none) == []


async def test_many_parts_are_divided_in_the_same_way() -> None:
    parts = [part(number) for number in range(2_001)]
    assert await batched(parts, none) == [Batch(parts, {("1.2.3", EXPLICIT_VR_LITTLE_ENDIAN): None})]
