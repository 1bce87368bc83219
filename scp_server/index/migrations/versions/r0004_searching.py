"""What searches need: folded names, the assessments of reports, text in normal form, canonical dates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from scp_server.errors import SCPServerError
from scp_server.objects.folding import canonical_date, folded_name, normal_text
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.summary import assessments

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ROWS_AT_ONCE = 1_000
_SPARSE = ("alarm_decision_time", "threat_categories", "assessment_flags")
_DATES = frozenset({"patient_birth_date", "study_date", "series_date", "content_date"})
_TEXT = {
    "studies": (
        *("study_date", "study_time", "accession_number", "study_id", "study_description"),
        *("referring_physician_name", "scan_type"),
    ),
    "series": (
        *("modality", "series_description", "series_date", "series_time", "body_part_examined"),
        *("station_name", "institution_name", "manufacturer", "manufacturer_model_name"),
        *("device_serial_number", "protocol_name", "acquisition_status"),
    ),
    "instances": (
        *("content_date", "content_time", "acquisition_date_time", "frame_of_reference_uid"),
        *("specific_character_set", "dicos_version", "tdr_type", "alarm_decision", "alarm_decision_time"),
        "abort_flag",
    ),
}
_KEYS = {"studies": "study_key", "series": "series_key", "instances": "instance_key"}
_IDENTITY = ("patient_id", "issuer_of_patient_id", "unidentified_study_instance_uid")
_PATIENT_TEXT = (
    *_IDENTITY[:2],
    *("type_of_patient_id", "patient_name", "patient_birth_date", "patient_sex", "ooi_type"),
)


def upgrade() -> None:
    op.drop_index(op.f("ix_patients_patient_name"), "patients")
    op.add_column("patients", sa.Column("patient_name_folded", sa.Text()))
    op.add_column("instances", sa.Column("threat_categories", sa.Text()))
    op.add_column("instances", sa.Column("assessment_flags", sa.Text()))
    connection = op.get_bind()
    _rewrite_patients(connection)
    for table, columns in _TEXT.items():
        _rewrite(connection, _table(table, _KEYS[table], columns), columns)
    _read_assessments(connection)
    op.create_index(op.f("ix_patients_patient_name_folded"), "patients", ["patient_name_folded"])
    for column in _SPARSE:
        present = sa.text(f"{column} IS NOT NULL")
        op.create_index(
            op.f(f"ix_instances_{column}"),
            "instances",
            [column],
            sqlite_where=present,
            postgresql_where=present,
        )


def _table(name: str, key: str, columns: Sequence[str]) -> sa.TableClause:
    return sa.table(name, sa.column(key), *(sa.column(column) for column in columns))


def _normal(column: str, value: str | None) -> str | None:
    if value is None:
        return None
    return canonical_date(value) if column in _DATES else normal_text(value)


def _pages(connection: sa.Connection, rows: sa.Select[Any]) -> Iterator[Sequence[Sequence[Any]]]:
    """The rows of a selection, some at a time, in the order of its first column, a key."""
    key = rows.selected_columns[0]
    page = rows.where(key > sa.bindparam("after")).order_by(key).limit(_ROWS_AT_ONCE)
    found = connection.execute(page, {"after": -1}).all()
    while found:
        yield found
        found = connection.execute(page, {"after": found[-1][0]}).all()


def _rewrite(
    connection: sa.Connection,
    table: sa.TableClause,
    columns: Sequence[str],
    normal: Callable[[str, str | None], str | None] = _normal,
) -> None:
    """Bring the text of a table's columns to its normal form; rows that have it already stay untouched."""
    key = next(iter(table.columns))
    update = (
        sa.update(table)
        .where(key == sa.bindparam("its_key"))
        .values({column: sa.bindparam(f"new_{column}") for column in columns})
    )
    for page in _pages(connection, sa.select(key, *(table.columns[column] for column in columns))):
        changed = []
        for its_key, *values in page:
            new = [normal(column, value) for column, value in zip(columns, values, strict=True)]
            if new != values:
                named = {f"new_{column}": value for column, value in zip(columns, new, strict=True)}
                changed.append({"its_key": its_key, **named})
        if changed:
            connection.execute(update, changed)


def _rewrite_patients(connection: sa.Connection) -> None:
    """Patients too; those whose identity is one in normal form become one, who was there in that form."""
    columns = (*_PATIENT_TEXT, "unidentified_study_instance_uid", "patient_name_folded")
    patients = _table("patients", "patient_key", columns)
    studies = _table("studies", "study_key", ("patient_key",))
    key = patients.c.patient_key
    for page in _pages(connection, sa.select(key, *(patients.c[column] for column in columns[:-1]))):
        for its_key, *values in page:
            old = dict(zip(columns[:-1], values, strict=True))
            new = {column: _normal(column, value) for column, value in old.items()}
            identity = [patients.c[column] == new[column] for column in _IDENTITY]
            if any(old[column] != new[column] for column in _IDENTITY) and (
                other := connection.execute(sa.select(key).where(*identity)).scalar()
            ):
                _merge(connection, patients, studies, its_key, other)
                continue
            name = new["patient_name"]
            new["patient_name_folded"] = None if name is None else folded_name(name)
            connection.execute(sa.update(patients).where(key == its_key).values(new))


def _merge(
    connection: sa.Connection, patients: sa.TableClause, studies: sa.TableClause, key: int, other: int
) -> None:
    """Give the studies of patient `key` to `other`."""
    connection.execute(sa.update(studies).where(studies.c.patient_key == key).values(patient_key=other))
    connection.execute(sa.delete(patients).where(patients.c.patient_key == key))


def _read_assessments(connection: sa.Connection) -> None:
    """The new columns of reports that are kept already, from their first part's header."""
    instances = _table(
        "instances",
        "instance_key",
        ("tdr_type", "alarm_decision", "threat_categories", "assessment_flags"),
    )
    parts = sa.table("parts", sa.column("part_key"), sa.column("instance_key"), sa.column("part_number"))
    headers = sa.table("headers", sa.column("part_key"), sa.column("header"))
    key = instances.c.instance_key
    reports = sa.select(key).where(
        instances.c.tdr_type.is_not(None) | instances.c.alarm_decision.is_not(None)
    )
    header = (
        sa.select(headers.c.header)
        .join(parts, parts.c.part_key == headers.c.part_key)
        .where(parts.c.instance_key == sa.bindparam("its_key"))
        .order_by(parts.c.part_number)
        .limit(1)
    )
    for page in _pages(connection, reports):
        for (its_key,) in page:
            packed = connection.execute(header, {"its_key": its_key}).scalar()
            categories, flags = (None, None) if packed is None else _assessments(packed)
            if categories or flags:
                connection.execute(
                    sa.update(instances)
                    .where(key == its_key)
                    .values(threat_categories=categories, assessment_flags=flags)
                )


def _assessments(packed: bytes) -> tuple[str | None, str | None]:
    try:
        return assessments(RawHeader.unpack(packed))
    except (ValueError, SCPServerError):
        return None, None
