"""Which indexes SQLite takes for the searches that are usual: never a walk through all instances."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Dialect
from sqlalchemy.dialects import postgresql

from scp_server.index.retrieving import statement
from scp_server.index.search import Condition, EntityLevel, Search
from scp_server.index.search_shape import take_apart
from scp_server.index.search_sql import LEVELS, statements
from scp_server.objects.matching_hints import AnyOf, Between, Contains, Hint, StartsWith

PATIENT, STUDY, SERIES, INSTANCE = EntityLevel
_ONE, _WEEK = AnyOf(("x",)), Between("20240101", "20240107")


def _conditions(hints: dict[str, Hint]) -> tuple[Condition, ...]:
    return tuple(Condition(column, hint) for column, hint in hints.items())


def _plan(connection: Connection, search: Search, which: str = "find") -> list[str]:
    shape, parameters = take_apart(search)
    prepared = getattr(statements(shape, connection.dialect), which)
    values = prepared.values({**parameters, "after": 0, "until": 9, "limit": 32, "keys": "[]"})
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {prepared.text}", values)
    return [row[3] for row in rows]


@pytest.mark.parametrize(
    ("level", "hints", "first", "others"),
    [
        (PATIENT, {"patient_id": _ONE}, "patients USING COVERING INDEX sqlite_autoindex_patients_1", []),
        (STUDY, {"patient_id": _ONE}, "patients USING COVERING INDEX", ["ix_studies_patient_key"]),
        (
            STUDY,
            {"study_date": _WEEK, "modality": _ONE},
            "studies USING COVERING INDEX ix_studies_study_date (study_date>? AND study_date<?)",
            ["ix_series_modality_study_key (modality=? AND study_key=?)"],
        ),
        (STUDY, {"accession_number": _ONE}, "studies USING COVERING INDEX ix_studies_accession_number", []),
        (STUDY, {"study_id": StartsWith("x")}, "studies USING COVERING INDEX ix_studies_study_id (", []),
        (SERIES, {"study_instance_uid": _ONE}, "studies USING COVERING INDEX", ["series USING COVERING"]),
        (
            INSTANCE,
            {"study_instance_uid": _ONE, "series_instance_uid": _ONE},
            "studies USING COVERING INDEX sqlite_autoindex_studies_1",
            ["(study_key=? AND series_instance_uid=?)", "ix_instances_series_key (series_key=?)"],
        ),
        (INSTANCE, {"sop_instance_uid": _ONE}, "instances USING COVERING INDEX sqlite_auto", []),
        (INSTANCE, {"sop_instance_uid": AnyOf(("x", "y"))}, "instances USING COVERING INDEX sqlite_auto", []),
        (INSTANCE, {"study_date": _WEEK}, "studies USING COVERING INDEX ix_studies_study_date", []),
        (INSTANCE, {"alarm_decision": _ONE}, "instances USING COVERING INDEX ix_instances_alarm", []),
        (INSTANCE, {"threat_categories": Contains("x")}, "ix_instances_threat_categories (", []),
        (STUDY, {"alarm_decision": _ONE}, "studies USING INTEGER", ["ix_instances_alarm_decision ("]),
        (
            STUDY,
            {"alarm_decision_time": _WEEK},
            "studies USING INTEGER",
            ["ix_instances_alarm_decision_time ("],
        ),
        (STUDY, {"assessment_flags": Contains("x")}, "studies USING INTEGER", ["ix_instances_assessment"]),
        (PATIENT, {"accession_number": _ONE}, "patients USING INTEGER", ["ix_studies_accession_number"]),
        (
            INSTANCE,
            {"referenced_sop_instance_uid": _ONE},
            "instances USING INTEGER",
            ["ix_instance_references"],
        ),
        (
            STUDY,
            {"current_alarm_decision": _ONE},
            "studies USING COVERING INDEX ix_studies_current_alarm",
            [],
        ),
        (
            STUDY,
            {"patient_id": _ONE, "current_alarm_decision": _ONE},
            "patients USING COVERING INDEX sqlite_autoindex_patients_1",
            ["ix_studies_patient_key"],
        ),
        (STUDY, {"study_date": _WEEK, "current_alarm_decision": _ONE}, "ix_studies_study_date", []),
        (
            STUDY,
            {"referenced_sop_instance_uid": _ONE, "current_alarm_decision": _ONE},
            "studies USING INTEGER",
            ["ix_instance_references"],
        ),
        (
            PATIENT,
            {"current_alarm_decision": _ONE},
            "patients USING INTEGER",
            ["ix_studies_current_alarm_decision ("],
        ),
        (
            PATIENT,
            {"patient_id": _ONE, "current_alarm_decision": _ONE},
            "patients USING COVERING INDEX sqlite_autoindex_patients_1",
            ["ix_studies_patient_key"],
        ),
        (STUDY, {}, "studies USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)", []),
        (STUDY, {"patient_name_folded": Contains("=x")}, "studies USING INTEGER", ["patients USING INTEGER"]),
    ],
)
def test_searches_begin_with_the_index_that_gives_the_fewest_rows(
    connection: Connection, level: EntityLevel, hints: dict[str, Hint], first: str, others: list[str]
) -> None:
    plan = _plan(connection, Search(level, _conditions(hints)))
    assert plan[0].startswith("SEARCH ")
    assert first in plan[0]
    for other in others:
        assert any(other in step for step in plan), (other, plan)
    assert not [step for step in plan if step.startswith("SCAN") and "VIRTUAL" not in step]


@pytest.mark.parametrize(
    ("columns", "first"),
    [
        (("patient_id",), "patients USING COVERING INDEX sqlite_autoindex_patients_1 (patient_id=?"),
        (("patient_id", "issuer_of_patient_id"), "patients USING COVERING INDEX sqlite_autoindex_patients_1"),
        (("study_instance_uid",), "studies USING "),
        (("series_instance_uid",), "series USING INDEX ix_series_series_instance_uid"),
        (("study_instance_uid", "series_instance_uid"), ""),
        (("sop_instance_uid",), "instances USING INDEX sqlite_autoindex_instances_1"),
        (("patient_id", "study_instance_uid", "series_instance_uid", "sop_instance_uid"), ""),
    ],
)
def test_what_a_retrieve_sends_is_looked_up(
    connection: Connection, columns: tuple[str, ...], first: str
) -> None:
    text = str(statement(columns, connection.dialect.name).compile(connection))
    values = ("[]",) * len(columns) + (9,) * (text.count("?") - len(columns))
    plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)]
    assert first in plan[0]
    tables = [step for step in plan if "VIRTUAL" not in step and step.startswith(("SEARCH", "SCAN"))]
    assert all(step.startswith("SEARCH ") for step in tables), plan
    assert len(tables) == 5


@pytest.mark.parametrize("level", [PATIENT, STUDY, SERIES, INSTANCE])
def test_what_is_read_of_an_entity_is_looked_up(connection: Connection, level: EntityLevel) -> None:
    below = frozenset(name for name, its_level in LEVELS.items() if its_level > level)
    counts = ("studies", "series", "instances")[level:] if level < INSTANCE else ()
    upper = ("patient", "study", "series", "")[level]
    names = frozenset(f"number_of_{upper}_related_{lower}" for lower in counts)
    plan = _plan(connection, Search(level, below=below, counts=names, with_header=True), "read")
    scanned = [step for step in plan if step.startswith("SCAN")]
    assert all("VIRTUAL" in step or "anon" in step for step in scanned), scanned
    assert any("headers USING INTEGER PRIMARY KEY" in step for step in plan)


@pytest.mark.parametrize(
    "hint", [_ONE, AnyOf(("x", "y")), AnyOf(()), Contains("x"), StartsWith("x"), _WEEK, Between(None, None)]
)
@pytest.mark.parametrize("or_missing", [False, True])
def test_a_search_can_be_said_to_postgresql_too(hint: Hint, or_missing: bool) -> None:
    conditions = tuple(Condition(column, hint, or_missing) for column in ("patient_id", "modality"))
    search = Search(STUDY, conditions, frozenset({"modality"}), with_header=True)
    shape, parameters = take_apart(search)
    dialect: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    prepared = statements(shape, dialect)
    for each in (prepared.find, prepared.read):
        assert "json_each" not in each.text
        assert "instr" not in each.text
    given = prepared.find.values({**parameters, "after": 0, "until": 9, "limit": 32})
    assert isinstance(given, dict)
    assert given["limit"] == 32
