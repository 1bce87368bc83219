"""Information models, their levels and unique keys (PS3.4 C.4.1.2.1, C.6)."""

from __future__ import annotations

from typing import Any

import pytest

from scp_server.index.store import SqlIndex
from scp_server.services.query_retrieve.models import PATIENT_ROOT, PATIENT_STUDY_ONLY, STUDY_ROOT
from scp_server.testing.dataset_encoder import Element
from tests.unit.services.query_retrieve.asking import LEVEL, ask, key, refused

PATIENT_ID, STUDY_UID, SERIES_UID = 0x00100020, 0x0020000D, 0x0020000E
PATIENT = key("PatientID", "PAT-1")
STUDY = key("StudyInstanceUID", "2.25.1")
SERIES = key("SeriesInstanceUID", "2.25.11")
RELATIONAL = (1,)


@pytest.mark.parametrize(
    ("model", "level", "keys", "unique", "found"),
    [
        (PATIENT_ROOT, "PATIENT", [], "PatientID", 5),
        (PATIENT_ROOT, "STUDY", [PATIENT], "StudyInstanceUID", 2),
        (PATIENT_ROOT, "SERIES", [PATIENT, STUDY], "SeriesInstanceUID", 2),
        (PATIENT_ROOT, "IMAGE", [PATIENT, STUDY, SERIES], "SOPInstanceUID", 2),
        (STUDY_ROOT, "STUDY", [], "StudyInstanceUID", 6),
        (STUDY_ROOT, "SERIES", [STUDY], "SeriesInstanceUID", 2),
        (STUDY_ROOT, "IMAGE", [STUDY, SERIES], "SOPInstanceUID", 2),
        (PATIENT_STUDY_ONLY, "PATIENT", [], "PatientID", 5),
        (PATIENT_STUDY_ONLY, "STUDY", [PATIENT], "StudyInstanceUID", 2),
    ],
    ids=lambda value: getattr(value, "name", None),
)
async def test_every_model_has_its_levels_c_6(
    archive: SqlIndex, model: Any, level: str, keys: list[Element], unique: str, found: int
) -> None:
    asked = await ask(archive, level, *keys, model=model)
    assert (asked.final, len(asked.matches)) == (0x0000, found)
    assert all(match.QueryRetrieveLevel == level and match[unique].value for match in asked.matches)


@pytest.mark.parametrize(
    ("model", "level"),
    [
        (STUDY_ROOT, "PATIENT"),
        (PATIENT_STUDY_ONLY, "SERIES"),
        (PATIENT_STUDY_ONLY, "IMAGE"),
        *((model, wrong) for model in (PATIENT_ROOT, STUDY_ROOT) for wrong in ("", "INSTANCE", "study", "*")),
    ],
)
async def test_a_level_that_is_missing_or_not_the_models_is_a900_c_6_2(
    archive: SqlIndex, model: Any, level: str
) -> None:
    keys = [PATIENT, STUDY, SERIES]
    assert await refused(archive, level, *keys, model=model) == (0xA900, (LEVEL,))
    assert await refused(archive, level, *keys, model=model, agreed=RELATIONAL) == (0xA900, (LEVEL,))


@pytest.mark.parametrize(
    ("model", "level", "given", "missing"),
    [
        (PATIENT_ROOT, "STUDY", [], PATIENT_ID),
        (PATIENT_ROOT, "SERIES", [PATIENT], STUDY_UID),
        (PATIENT_ROOT, "SERIES", [STUDY], PATIENT_ID),
        (PATIENT_ROOT, "IMAGE", [PATIENT, STUDY], SERIES_UID),
        (STUDY_ROOT, "SERIES", [PATIENT], STUDY_UID),
        (STUDY_ROOT, "IMAGE", [STUDY], SERIES_UID),
        (STUDY_ROOT, "IMAGE", [SERIES], STUDY_UID),
        (PATIENT_STUDY_ONLY, "STUDY", [], PATIENT_ID),
    ],
    ids=lambda value: getattr(value, "name", None),
)
async def test_a_unique_key_of_a_higher_level_that_is_missing_is_a900_c_4_1_2_1(
    archive: SqlIndex, model: Any, level: str, given: list[Element], missing: int
) -> None:
    assert await refused(archive, level, *given, model=model) == (0xA900, (missing,))
    asked = await ask(archive, level, *given, model=model, agreed=RELATIONAL)
    assert asked.final == 0x0000


@pytest.mark.parametrize("value", ["", "*", "PAT-*", "PAT-?", "PAT-1\\PAT-2"])
async def test_a_patient_id_that_is_empty_wild_or_several_is_a900_c_4_1_2_1(
    archive: SqlIndex, value: str
) -> None:
    wrong = key("PatientID", value)
    assert await refused(archive, "STUDY", wrong, model=PATIENT_ROOT) == (0xA900, (PATIENT_ID,))


@pytest.mark.parametrize("value", ["", "*", "2.25.1\\2.25.2"])
async def test_a_study_uid_that_is_empty_or_a_list_is_a900_c_4_1_2_1(archive: SqlIndex, value: str) -> None:
    wrong = key("StudyInstanceUID", value)
    assert await refused(archive, "SERIES", wrong) == (0xA900, (STUDY_UID,))


async def test_a_unique_key_of_the_level_itself_may_be_a_list_c_2_2_2_2(archive: SqlIndex) -> None:
    asked = await ask(archive, "STUDY", key("StudyInstanceUID", "2.25.1\\2.25.3\\2.25.99"))
    assert asked.values("StudyInstanceUID") == ["2.25.1", "2.25.3"]


@pytest.mark.parametrize(
    ("how", "allowed"),
    [
        ({}, False),
        ({"agreed": (0, 1, 1)}, False),
        ({"agreed": (1,)}, True),
        ({"query": {"relational": "always"}}, True),
        ({"query": {"relational": "always"}, "relational": False}, False),
        ({"agreed": (1,), "relational": False}, False),
        ({"relational": True}, True),
        ({"query": {"relational": "never"}, "relational": True}, True),
    ],
)
async def test_a_query_is_relational_when_agreed_or_where_settings_or_the_peers_say_so_c_4_1_3_2(
    archive: SqlIndex, how: dict[str, Any], allowed: bool
) -> None:
    keys = [key("SOPInstanceUID"), key("PatientName", "doe^jane"), key("SeriesDate")]
    if not allowed:
        assert await refused(archive, "IMAGE", *keys, **how) == (0xA900, (STUDY_UID,))
        return
    asked = await ask(archive, "IMAGE", *keys, **how)
    assert asked.values("SOPInstanceUID") == ["2.25.111", "2.25.112", "2.25.121", "2.25.211"]
    assert set(asked.statuses) == {0xFF00}
