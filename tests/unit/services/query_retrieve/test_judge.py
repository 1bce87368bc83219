"""Deciding about what the index found, and answering it (PS3.4 C.2.2.1.2, C.2.2.2.5.4, C.2.2.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from scp_server.errors import IndexFailure
from scp_server.index.search import MAX_DISTINCT_VALUES, ColumnValue, Entity
from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.identifier import Key
from scp_server.objects.matching import MatchingOptions, make_matcher
from scp_server.objects.response_dataset import ResponseDataset
from scp_server.services.query_retrieve.judge import Answer, EntityJudge, PlannedKey
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax

EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
DATE, TIME, MODALITIES, KVP = 0x00080020, 0x00080030, 0x00080061, 0x00180060


def planned(tag: int, vr: str, value: str = "", column: str | None = None, **more: Any) -> PlannedKey:
    matcher = make_matcher(
        tag, vr, value.encode(), charset=None, little_endian=True, options=MatchingOptions()
    )
    return PlannedKey(Key(tag, vr, matcher), column, matched=matcher is not None, **more)


def header(*elements: Element) -> bytes:
    tap = HeaderTap(EXPLICIT, TapLimits())
    tap.feed(DatasetEncoder(EXPLICIT).encode(elements))
    tap.finish()
    return tap.header.pack()


def judge(*keys: PlannedKey, **options: Any) -> EntityJudge:
    chosen = {
        "all_supported": True,
        "combined_date_time": False,
        "header_match_rows": 100,
        "unknown_values_match": False,
        **options,
    }
    return EntityJudge(keys, ResponseDataset([each.key for each in keys], EXPLICIT, None), **chosen)


def decide(
    keys: Sequence[PlannedKey],
    values: Mapping[str, ColumnValue],
    packed: bytes | None = None,
    **options: Any,
) -> Answer | None:
    return judge(*keys, **options)(Entity(1, values, packed))


@pytest.mark.parametrize(
    ("value", "matches"), [("20240229", True), ("20240301", False), (None, False), ("", False)]
)
def test_a_column_is_decided_by_the_matcher_whatever_the_index_found(
    value: str | None, matches: bool
) -> None:
    keys = [planned(DATE, "DA", "20240229", "study_date")]
    assert (decide(keys, {"study_date": value}) is not None) is matches


@pytest.mark.parametrize("value", [None, "", ()])
def test_what_has_no_value_matches_only_where_unknown_values_do_c_2_2_1_2(value: ColumnValue) -> None:
    keys = [planned(DATE, "DA", "20240229-", "study_date")]
    assert decide(keys, {"study_date": value}) is None
    answer = decide(keys, {"study_date": value}, unknown_values_match=True)
    assert answer is not None
    assert answer.status == 0xFF00


def test_one_matching_value_of_several_is_enough_c_2_2_3() -> None:
    keys = [planned(MODALITIES, "CS", "SR", "modality")]
    assert decide(keys, {"modality": ("CT", "SR")})
    assert decide(keys, {"modality": ("CT", "MR")}) is None


def test_where_not_all_values_are_given_the_index_is_believed() -> None:
    keys = [planned(MODALITIES, "CS", "SR", "modality")]
    assert decide(keys, {"modality": ("CT",) * MAX_DISTINCT_VALUES})
    assert decide(keys, {"modality": ("CT",) * (MAX_DISTINCT_VALUES - 1)}) is None


@pytest.mark.parametrize(
    ("date", "time", "apart", "together"),
    [
        ("20240301", "103000", True, True),
        ("20240302", "080000", False, True),
        ("20240301", "080000", False, False),
        ("20240303", "120000", False, False),
        ("20240303", "100000", True, True),
        (None, "100000", False, False),
        ("20240302", None, False, False),
    ],
)
def test_a_date_and_a_time_range_mean_one_span_only_where_agreed_c_2_2_2_5_4(
    date: str | None, time: str | None, apart: bool, together: bool
) -> None:
    keys = [
        planned(DATE, "DA", "20240301-20240303", "study_date"),
        planned(TIME, "TM", "100000-110000", "study_time"),
    ]
    values = {"study_date": date, "study_time": time}
    assert (decide(keys, values) is not None) is apart
    assert (decide(keys, values, combined_date_time=True) is not None) is together


def test_a_span_with_an_unknown_part_matches_where_unknown_values_do() -> None:
    keys = [
        planned(DATE, "DA", "20240301-20240303", "study_date"),
        planned(TIME, "TM", "100000-110000", "study_time"),
    ]
    values = {"study_date": "20240302", "study_time": None}
    assert decide(keys, values, combined_date_time=True) is None
    assert decide(keys, values, combined_date_time=True, unknown_values_match=True)


def test_a_date_in_the_header_and_a_time_there_make_one_span_too() -> None:
    keys = [planned(0x00080022, "DA", "20240301-20240303"), planned(0x00080032, "TM", "100000-110000")]
    packed = header(Element(0x00080022, "DA", "20240302"), Element(0x00080032, "TM", "080000"))
    assert decide(keys, {}, packed, combined_date_time=True)
    assert decide(keys, {}, packed) is None


def test_headers_are_compared_up_to_the_limit_and_then_answered_unmatched_with_ff01() -> None:
    decides = judge(planned(KVP, "DS", "120"), header_match_rows=2)
    right, wrong = header(Element(KVP, "DS", "120")), header(Element(KVP, "DS", "80"))
    answers = [decides(Entity(1, {}, packed)) for packed in (wrong, right, wrong, right)]
    assert [answer and answer.status for answer in answers] == [None, 0xFF00, 0xFF01, 0xFF01]


def test_what_fails_by_a_column_costs_no_header() -> None:
    keys = [planned(DATE, "DA", "20240229", "study_date"), planned(KVP, "DS", "120")]
    decides, right = judge(*keys, header_match_rows=1), header(Element(KVP, "DS", "120"))
    assert decides(Entity(1, {"study_date": "20240101"}, right)) is None
    answer = decides(Entity(2, {"study_date": "20240229"}, right))
    assert answer is not None
    assert answer.status == 0xFF00


def test_a_key_that_was_left_out_makes_every_answer_ff01_c_4_1_1_4() -> None:
    answer = decide([planned(DATE, "DA", "", "study_date")], {"study_date": "20240229"}, all_supported=False)
    assert answer is not None
    assert answer.status == 0xFF01


def test_without_a_header_what_asks_for_one_does_not_match() -> None:
    assert decide([planned(KVP, "DS", "120")], {}) is None
    assert decide([planned(KVP, "DS")], {})


@pytest.mark.parametrize("packed", [b"", b"nonsense", b"SRH\x01broken"])
def test_a_damaged_header_is_a_failure_of_the_index(packed: bytes) -> None:
    with pytest.raises(IndexFailure, match="damaged"):
        decide([planned(KVP, "DS")], {}, packed)
