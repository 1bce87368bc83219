"""Which reports a scan has and which of them decides; what scans and reports wait for.

Reports that are kept already are linked, and decide, as those that come later; scans without one are not told
of any more. The references that are new are read from the headers, some reports at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from scp_server.errors import SCPServerError
from scp_server.objects.dicos.decision import TDR_STORAGE, Report, current, moment_of
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.summary import references

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_COLUMNS = (
    *("current_alarm_decision", "current_alarm_decision_time", "current_tdr_type"),
    "deciding_sop_instance_uid",
)
_ROWS_AT_ONCE = 200
_FIRST_PART = """
    FROM parts p WHERE p.instance_key = i.instance_key ORDER BY p.part_number LIMIT 1"""
_REPORTS = f"""
    SELECT i.instance_key,
    (SELECT h.header FROM headers h WHERE h.part_key = (SELECT p.part_key{_FIRST_PART}))
    FROM instances i WHERE i.sop_class_uid = '{TDR_STORAGE}' AND i.instance_key > :after
    ORDER BY i.instance_key LIMIT {_ROWS_AT_ONCE}"""
_ADD_REFERENCE = """
    INSERT INTO instance_references (instance_key, referenced_sop_instance_uid)
    SELECT :key, :uid WHERE NOT EXISTS (SELECT 1 FROM instance_references
    WHERE instance_key = :key AND referenced_sop_instance_uid = :uid)"""
_LINK = f"""
    INSERT INTO scan_reports (study_key, report_key)
    SELECT se.study_key, r.instance_key FROM instances i
    JOIN instance_references r ON r.instance_key = i.instance_key
    JOIN instances t ON t.sop_instance_uid = r.referenced_sop_instance_uid
    JOIN series se ON se.series_key = t.series_key
    WHERE i.sop_class_uid = '{TDR_STORAGE}' AND t.sop_class_uid <> '{TDR_STORAGE}'
    UNION SELECT st.study_key, r.instance_key FROM instances i
    JOIN instance_references r ON r.instance_key = i.instance_key
    JOIN studies st ON st.study_instance_uid = r.referenced_sop_instance_uid
    WHERE i.sop_class_uid = '{TDR_STORAGE}'
    UNION SELECT se.study_key, i.instance_key FROM instances i
    JOIN series se ON se.series_key = i.series_key
    WHERE i.sop_class_uid = '{TDR_STORAGE}'
    AND NOT EXISTS (SELECT 1 FROM instance_references r LEFT JOIN instances o
    ON o.sop_instance_uid = r.referenced_sop_instance_uid AND o.sop_class_uid = '{TDR_STORAGE}'
    WHERE r.instance_key = i.instance_key AND o.instance_key IS NULL)"""
_SCANS = f"""
    SELECT DISTINCT study_key FROM scan_reports WHERE study_key > :after ORDER BY study_key
    LIMIT {_ROWS_AT_ONCE}"""
_REPORTS_OF = f"""
    SELECT i.sop_instance_uid, i.tdr_type, i.alarm_decision, i.alarm_decision_time,
    (SELECT p.received_at_ns{_FIRST_PART}),
    EXISTS (SELECT 1 FROM instance_references r
            JOIN instances o ON o.sop_instance_uid = r.referenced_sop_instance_uid
            WHERE r.instance_key = i.instance_key AND o.sop_class_uid = '{TDR_STORAGE}'
            AND o.tdr_type = 'OPERATOR')
    FROM scan_reports s JOIN instances i ON i.instance_key = s.report_key WHERE s.study_key = :key"""
_DECIDE = f"UPDATE studies SET {', '.join(f'{name} = :{name}' for name in _COLUMNS)} WHERE study_key = :key"


def upgrade() -> None:
    for name in _COLUMNS:
        op.add_column("studies", sa.Column(name, sa.Text()))
    _where_present("studies", "current_alarm_decision")
    op.create_table(
        "scan_reports",
        sa.Column("study_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("report_key", _KEY, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["study_key"], ["studies.study_key"], name=op.f("fk_scan_reports_study_key"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["report_key"],
            ["instances.instance_key"],
            name=op.f("fk_scan_reports_report_key"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study_key", "report_key", name=op.f("pk_scan_reports")),
    )
    op.create_index(op.f("ix_scan_reports_report_key"), "scan_reports", ["report_key"])
    op.create_table(
        "scans",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("peer_name", sa.Text()),
        sa.Column("first_image_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("awaits_since_ns", sa.BigInteger()),
        sa.PrimaryKeyConstraint("study_instance_uid", name=op.f("pk_scans")),
    )
    _where_present("scans", "awaits_since_ns")
    op.create_table(
        "orphaned_reports",
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("awaits_since_ns", sa.BigInteger()),
        sa.PrimaryKeyConstraint("sop_instance_uid", name=op.f("pk_orphaned_reports")),
    )
    _where_present("orphaned_reports", "awaits_since_ns")
    connection = op.get_bind()
    _read_references(connection)
    connection.execute(sa.text(_LINK))
    _decide(connection)


def _where_present(table: str, column: str) -> None:
    present = sa.text(f"{column} IS NOT NULL")
    op.create_index(
        op.f(f"ix_{table}_{column}"), table, [column], sqlite_where=present, postgresql_where=present
    )


def _pages(connection: sa.Connection, statement: str) -> Iterator[Sequence[Sequence[Any]]]:
    """The rows of a statement, some at a time, in the order of their first column, a key."""
    found = connection.execute(sa.text(statement), {"after": -1}).all()
    while found:
        yield found
        found = connection.execute(sa.text(statement), {"after": found[-1][0]}).all()


def _read_references(connection: sa.Connection) -> None:
    for page in _pages(connection, _REPORTS):
        found = [{"key": key, "uid": uid} for key, packed in page for uid in _references(packed)]
        if found:
            connection.execute(sa.text(_ADD_REFERENCE), found)


def _references(packed: bytes | None) -> tuple[str, ...]:
    try:
        return () if packed is None else references(RawHeader.unpack(packed), TDR_STORAGE)
    except (ValueError, SCPServerError):
        return ()


def _decide(connection: sa.Connection) -> None:
    for page in _pages(connection, _SCANS):
        for (key,) in page:
            reports = {}
            for uid, kind, decision, time, received_at_ns, has_operator in connection.execute(
                sa.text(_REPORTS_OF), {"key": key}
            ):
                report = Report(uid, kind, decision, moment_of(time), received_at_ns or 0, bool(has_operator))
                reports[report] = time
            decides = current(reports)
            if decides is not None:
                values = (decides.decision, reports[decides], decides.tdr_type, decides.sop_instance_uid)
                named = dict(zip(_COLUMNS, map(_text, values), strict=True))
                connection.execute(sa.text(_DECIDE), {"key": key, **named})


def _text(value: str | None) -> str | None:
    """The driver takes no enumeration."""
    return None if value is None else str(value)
