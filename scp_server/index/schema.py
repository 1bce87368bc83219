"""The tables of the index, one schema for SQLite and PostgreSQL.

::

    patients 1──n studies 1──n series 1──n instances 1──n parts 1──1 headers
                                           instances 1──n instance_references
    discarded_objects      totals                         parts 1──? unsynced_objects
                                                          parts 1──n findings

    studies n──n instances (scan_reports)          scans          orphaned_reports

    event_log   events     open_associations     unsettled_studies     subscriptions 1──n parked

A column that holds an attribute is called by its keyword (PS3.6), so `study_id` is Study ID (0020,0010);
the tables' own primary keys end in `_key` and mean nothing outside the index. They are given out from
`key_allocation` in blocks, so that a batch knows its keys before it inserts, with any number of writers.

An Object of Inspection (DICOS) is a patient here, a scan a study. An object without a Patient ID belongs to
a patient of its own study, named by `unidentified_study_instance_uid`, so that unknown patients of different
studies never become one. Absent text is the empty string in a key, NULL elsewhere. Text is in normal form C,
dates are YYYYMMDD where they can be read, and `patient_name_folded` is what names are looked for in
(`objects/folding.py`).

`discarded_objects` names files whose rows are gone and that are still to be deleted.

`unsynced_objects` has the whole file of parts that may not be durable in the storage yet; it is empty but for
the last second or so. Such a row goes with its part, so nothing that was deleted or replaced is ever written
anew from it.

`findings` is what the validation found in a part, numbered from 1; most parts have none, and cost nothing.

`totals` is one row that says how many rows the other tables have. Triggers keep it, in the transaction of
whatever is inserted or deleted: counting a million rows when somebody asks takes a quarter of a second, and
over one with cold caches.

`events` is the event log (`events.py`), `event_log` its one row of what outlives trimming. An association has
a row in `open_associations` until nobody needs to know any more which events are its own, a study one in
`unsettled_studies` until it is settled. A subscription has been given everything up to its `position`; what
it may have been given is up to `started_to`, and `parked` are events before the position that it still waits
for or never got.

A DICOS scan's reports are in `scan_reports`, and which of them decides in four columns of `studies`
(`deciding.py`). `scans` has what is known of a scan only while it happens: whose it is, and since when it
waits for a report; `orphaned_reports` since when a report waits for an image (`awaiting.py`). Both go by
UIDs, so that they outlive a rebuild; their times are NULL where nothing is waited for any more.

Every index costs time on the way in: there are those that a query of the hierarchy needs, and partial ones
for attributes that few objects have.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    event,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Key = BigInteger().with_variant(Integer, "sqlite")
"""64 bits everywhere; by this name alone SQLite makes a primary key the row's own number."""


def _primary_key(name: str) -> Column[int]:
    return Column(name, Key, primary_key=True, autoincrement=False)


def _belongs_to(column: str) -> Column[int]:
    return Column(column.split(".")[1], Key, ForeignKey(column, ondelete="CASCADE"), nullable=False)


def _key_of(column: str) -> Column[int]:
    """The key of another table's row, as this one's own or a part of it."""
    return Column(
        column.split(".")[1],
        Key,
        ForeignKey(column, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )


def _text(*names: str) -> list[Column[str]]:
    return [Column(name, Text) for name in names]


def _integers(*names: str) -> list[Column[int]]:
    return [Column(name, BigInteger) for name in names]


def _where_present(table: Table, name: str) -> Index:
    """An index of the rows that have the attribute; it costs the others nothing."""
    column = table.c[name]
    return Index(None, column, sqlite_where=column.is_not(None), postgresql_where=column.is_not(None))


key_allocation = Table(
    "key_allocation",
    metadata,
    Column("name", Text, primary_key=True),
    Column("next_key", BigInteger, nullable=False),
)

patients = Table(
    "patients",
    metadata,
    _primary_key("patient_key"),
    Column("patient_id", Text, nullable=False),
    Column("issuer_of_patient_id", Text, nullable=False),
    Column("unidentified_study_instance_uid", Text, nullable=False),
    *_text("type_of_patient_id", "patient_name", "patient_birth_date", "patient_sex", "ooi_type"),
    *_text("patient_name_folded"),
    UniqueConstraint(
        "patient_id", "issuer_of_patient_id", "unidentified_study_instance_uid", name="uq_patients_identity"
    ),
)
Index(None, patients.c.patient_name_folded)
_where_present(patients, "ooi_type")

DECISION_COLUMNS = (
    *("current_alarm_decision", "current_alarm_decision_time", "current_tdr_type"),
    "deciding_sop_instance_uid",
)
"""What is derived from a scan's reports: the one that decides, and what it says."""

studies = Table(
    "studies",
    metadata,
    _primary_key("study_key"),
    _belongs_to("patients.patient_key"),
    Column("study_instance_uid", Text, nullable=False),
    *_text("study_date", "study_time", "accession_number", "study_id", "study_description"),
    *_text("referring_physician_name", "scan_type"),
    *_text(*DECISION_COLUMNS),
    UniqueConstraint("study_instance_uid"),
)
Index(None, studies.c.patient_key)
Index(None, studies.c.study_date)
Index(None, studies.c.accession_number)
Index(None, studies.c.study_id)
_where_present(studies, "scan_type")
_where_present(studies, "current_alarm_decision")

series = Table(
    "series",
    metadata,
    _primary_key("series_key"),
    _belongs_to("studies.study_key"),
    Column("series_instance_uid", Text, nullable=False),
    *_text("modality"),
    *_integers("series_number"),
    *_text("series_description", "series_date", "series_time", "body_part_examined", "station_name"),
    *_text("institution_name", "manufacturer", "manufacturer_model_name", "device_serial_number"),
    *_text("protocol_name", "acquisition_status"),
    UniqueConstraint("study_key", "series_instance_uid"),
)
Index(None, series.c.series_instance_uid)
Index(None, series.c.modality, series.c.study_key)

SPARSE_INSTANCE_COLUMNS = ("alarm_decision", "alarm_decision_time", "threat_categories", "assessment_flags")
"""What only threat detection reports have, and is searched for in the whole archive."""

instances = Table(
    "instances",
    metadata,
    _primary_key("instance_key"),
    _belongs_to("series.series_key"),
    Column("sop_class_uid", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False),
    *_integers("instance_number", "number_of_frames", "rows", "columns", "bits_allocated"),
    *_text("content_date", "content_time", "acquisition_date_time", "frame_of_reference_uid"),
    *_text("specific_character_set", "dicos_version", "tdr_type", "alarm_decision", "alarm_decision_time"),
    *_text("abort_flag"),
    *_integers("number_of_total_objects", "number_of_alarm_objects"),
    *_text("threat_categories", "assessment_flags"),
    UniqueConstraint("sop_instance_uid"),
)
Index(None, instances.c.series_key)
for _sparse in SPARSE_INSTANCE_COLUMNS:
    _where_present(instances, _sparse)

parts = Table(
    "parts",
    metadata,
    _primary_key("part_key"),
    _belongs_to("instances.instance_key"),
    Column("part_number", Integer, nullable=False),
    Column("digest_algorithm", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("transfer_syntax_uid", Text, nullable=False),
    Column("location", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("dataset_offset_bytes", BigInteger, nullable=False),
    Column("arrival_id", Text, nullable=False),
    Column("received_at_ns", BigInteger, nullable=False),
    Column("calling_ae_title", Text, nullable=False),
    Column("called_ae_title", Text, nullable=False),
    Column("stored_digest", LargeBinary),
    UniqueConstraint("instance_key", "part_number"),
    UniqueConstraint(
        "instance_key", "digest", "digest_algorithm", "transfer_syntax_uid", name="uq_parts_identity"
    ),
    UniqueConstraint("location"),
)

headers = Table(
    "headers",
    metadata,
    _key_of("parts.part_key"),
    Column("header", LargeBinary, nullable=False),
)

instance_references = Table(
    "instance_references",
    metadata,
    _key_of("instances.instance_key"),
    Column("referenced_sop_instance_uid", Text, primary_key=True),
)
Index(None, instance_references.c.referenced_sop_instance_uid)

scan_reports = Table(
    "scan_reports",
    metadata,
    _key_of("studies.study_key"),
    Column(
        "report_key",
        Key,
        ForeignKey("instances.instance_key", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
)
Index(None, scan_reports.c.report_key)

discarded_objects = Table(
    "discarded_objects",
    metadata,
    Column("location", Text, primary_key=True),
)

event_log = Table(
    "event_log",
    metadata,
    _primary_key("log_key"),
    Column("archive_id", Text, nullable=False),
    Column("trimmed_to", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    _primary_key("event_id"),
    Column("kind", Text, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("association_id", Text, nullable=False),
    Column("location", Text),
    Column("data", Text, nullable=False),
)

open_associations = Table(
    "open_associations",
    metadata,
    Column("association_id", Text, primary_key=True),
    Column("began_event_id", BigInteger, nullable=False),
    Column("ended_event_id", BigInteger),
    Column("data", Text, nullable=False),
)

unsettled_studies = Table(
    "unsettled_studies",
    metadata,
    Column("study_instance_uid", Text, primary_key=True),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("started_to", BigInteger, nullable=False),
)

parked = Table(
    "parked",
    metadata,
    Column("name", Text, primary_key=True),
    Column("event_id", BigInteger, primary_key=True),
    Column("order_key", Text, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at_ns", BigInteger, nullable=False),
    Column("is_dead", Integer, nullable=False),
    Column("may_be_repeated", Integer, nullable=False),
    Column("error", Text, nullable=False),
)
Index(None, parked.c.event_id)

unsynced_objects = Table(
    "unsynced_objects",
    metadata,
    _key_of("parts.part_key"),
    Column("content", LargeBinary, nullable=False),
)

findings = Table(
    "findings",
    metadata,
    _key_of("parts.part_key"),
    Column("number", Integer, primary_key=True, autoincrement=False),
    *(
        Column(name, Text, nullable=False)
        for name in ("severity", "code", "path", "keyword", "vr", "sentence")
    ),
)
Index(None, findings.c.severity, findings.c.part_key, findings.c.number)

scans = Table(
    "scans",
    metadata,
    Column("study_instance_uid", Text, primary_key=True),
    Column("peer_name", Text),
    Column("first_image_at_ns", BigInteger, nullable=False),
    Column("awaits_since_ns", BigInteger),
)
_where_present(scans, "awaits_since_ns")

orphaned_reports = Table(
    "orphaned_reports",
    metadata,
    Column("sop_instance_uid", Text, primary_key=True),
    Column("awaits_since_ns", BigInteger),
)
_where_present(orphaned_reports, "awaits_since_ns")

COUNTED = (patients, studies, series, instances, parts)

totals = Table(
    "totals",
    metadata,
    _primary_key("totals_key"),
    *(Column(table.name, BigInteger, nullable=False) for table in COUNTED),
    Column("bytes", BigInteger, nullable=False),
)


def _counting_trigger(table: Table, verb: str, sign: str, row: str) -> DDL:
    """Count a row of `table` that was inserted or deleted."""
    size = f", bytes = bytes {sign} {row}.size_bytes" if table is parts else ""
    # Untyped in the library.
    return DDL(  # type: ignore[no-untyped-call]
        f"CREATE TRIGGER count_{table.name}_{verb.lower()} AFTER {verb} ON {table.name} "
        f"BEGIN UPDATE totals SET {table.name} = {table.name} {sign} 1{size}; END"
    )


_first_row = DDL("INSERT INTO totals VALUES (1, 0, 0, 0, 0, 0, 0)")  # type: ignore[no-untyped-call]
event.listen(metadata, "after_create", _first_row)
for _table in COUNTED:
    for _trigger in (
        _counting_trigger(_table, "INSERT", "+", "NEW"),
        _counting_trigger(_table, "DELETE", "-", "OLD"),
    ):
        event.listen(metadata, "after_create", _trigger.execute_if(dialect="sqlite"))
