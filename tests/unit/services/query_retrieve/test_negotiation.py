"""Extended negotiation of queries: what is offered, agreed on, and what then holds (PS3.4 C.5.1.1)."""

from __future__ import annotations

import pytest

from scp_server.index.store import SqlIndex
from scp_server.interfaces import AssociationInfo, PeerRules
from scp_server.services.query_retrieve.models import PATIENT_ROOT, STUDY_ROOT
from scp_server.services.query_retrieve.negotiation import (
    FindByte,
    QueryOptions,
    RelationalQueries,
    offered,
)
from scp_server.testing.dataset_encoder import Element
from tests.unit.services.query_retrieve.asking import ask, key

UID = STUDY_ROOT.find_sop_class_uid
ALWAYS, NEVER, NEGOTIATED = (
    RelationalQueries.ALWAYS,
    RelationalQueries.NEVER,
    RelationalQueries.NEGOTIATED,
)


def options(agreed: bytes, setting: RelationalQueries = NEGOTIATED, peer: bool | None = None) -> QueryOptions:
    association = AssociationInfo("a-1", "SCU", "SCP", "192.0.2.1", 104, "1.2.840.10008.3.1.1.1")
    association.extended_negotiations = {UID: agreed}
    association.peer = PeerRules("peer", relational=peer)
    return QueryOptions.of(association, STUDY_ROOT, setting)


@pytest.mark.parametrize(
    ("setting", "information"),
    [(NEGOTIATED, b"\1\1\1\0\0\1\1"), (ALWAYS, b"\1\1\1\0\0\1\1"), (NEVER, b"\0\1\1\0\0\1\1")],
)
def test_neither_time_zones_nor_the_multi_frame_view_are_offered_c_5_1_1(
    setting: RelationalQueries, information: bytes
) -> None:
    assert offered(setting) == information


@pytest.mark.parametrize("byte", list(FindByte), ids=lambda byte: byte.name)
def test_every_byte_stands_for_one_option_and_a_missing_one_is_0_c_5_1_1(byte: FindByte) -> None:
    only = bytes(each is byte for each in FindByte)
    found = options(only)
    assert {
        FindByte.RELATIONAL_QUERIES: found.relational,
        FindByte.COMBINED_DATE_TIME: found.combined_date_time,
        FindByte.FUZZY_PERSON_NAMES: found.matching.fuzzy_person_names,
        FindByte.EMPTY_VALUE: found.matching.empty_values,
        FindByte.MULTIPLE_VALUES: found.matching.all_values,
    } == {
        each: each is byte
        for each in FindByte
        if each not in (FindByte.TIME_ZONE_ADJUSTMENT, FindByte.ENHANCED_MULTI_FRAME_VIEW)
    }
    assert options(only[:byte]) == options(b"") == QueryOptions()


@pytest.mark.parametrize("agreed", [b"", b"\0", b"\2", b"\xff"])
def test_what_was_not_agreed_on_is_baseline_behaviour_c_5_1_1(agreed: bytes) -> None:
    assert options(agreed) == QueryOptions()


def test_what_was_agreed_on_for_one_model_holds_for_it_alone() -> None:
    association = AssociationInfo("a-1", "SCU", "SCP", "192.0.2.1", 104, "1.2.840.10008.3.1.1.1")
    association.extended_negotiations = {PATIENT_ROOT.find_sop_class_uid: b"\1"}
    assert QueryOptions.of(association, PATIENT_ROOT, NEGOTIATED).relational
    assert not QueryOptions.of(association, STUDY_ROOT, NEGOTIATED).relational


@pytest.mark.parametrize(
    ("agreed", "setting", "peer", "relational"),
    [
        (b"\1", NEGOTIATED, None, True),
        (b"\0", NEGOTIATED, None, False),
        (b"\0", ALWAYS, None, True),
        (b"\0", NEGOTIATED, True, True),
        (b"\1", ALWAYS, False, False),
        (b"\0", NEVER, True, True),
    ],
)
def test_a_peers_rule_wins_over_the_setting_and_what_was_agreed(
    agreed: bytes, setting: RelationalQueries, peer: bool | None, relational: bool
) -> None:
    assert options(agreed, setting, peer).relational is relational


# --- what an agreement changes


DATE, TIME = key("StudyDate", "20261119-20261121"), key("StudyTime", "235959-000001")
MANY = key("PatientSex", "F\\M")


@pytest.mark.parametrize(
    ("keys", "agreed", "without", "with_it"),
    [
        ([DATE, TIME], (0, 1), 0, 6),
        ([key("PatientName", "jane")], (0, 0, 1), 0, 2),
        ([key("PatientName", "jerome buc")], (0, 0, 1), 0, 1),
        ([key("PatientBirthDate", "19700102"), key("PatientSex", '""')], (0, 0, 0, 0, 0, 1), 0, 0),
        ([key("PatientSex", '""')], (0, 0, 0, 0, 0, 1), 0, 1),
        ([key("ModalitiesInStudy", "CT\\SR")], (0, 0, 0, 0, 0, 0, 1), 6, 1),
        ([MANY], (0, 0, 0, 0, 0, 0, 1), 4, 0),
    ],
)
async def test_each_agreement_changes_what_matches_c_2_2_2(
    archive: SqlIndex, keys: list[Element], agreed: tuple[int, ...], without: int, with_it: int
) -> None:
    assert len((await ask(archive, "STUDY", *keys)).matches) == without
    assert len((await ask(archive, "STUDY", *keys, agreed=agreed)).matches) == with_it
