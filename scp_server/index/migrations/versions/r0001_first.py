"""The first schema: patients, studies, series, instances, parts, their headers and references."""

from __future__ import annotations

from typing import TypedDict

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


class _Where(TypedDict):
    sqlite_where: sa.TextClause
    postgresql_where: sa.TextClause


def _where(condition: str) -> _Where:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    op.create_table(
        "key_allocation",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("next_key", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_key_allocation")),
    )
    op.create_table(
        "patients",
        sa.Column("patient_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("issuer_of_patient_id", sa.Text(), nullable=False),
        sa.Column("unidentified_study_instance_uid", sa.Text(), nullable=False),
        sa.Column("type_of_patient_id", sa.Text()),
        sa.Column("patient_name", sa.Text()),
        sa.Column("patient_birth_date", sa.Text()),
        sa.Column("patient_sex", sa.Text()),
        sa.Column("ooi_type", sa.Text()),
        sa.PrimaryKeyConstraint("patient_key", name=op.f("pk_patients")),
        sa.UniqueConstraint(
            "patient_id",
            "issuer_of_patient_id",
            "unidentified_study_instance_uid",
            name="uq_patients_identity",
        ),
    )
    op.create_index(op.f("ix_patients_ooi_type"), "patients", ["ooi_type"], **_where("ooi_type IS NOT NULL"))
    op.create_index(op.f("ix_patients_patient_name"), "patients", ["patient_name"])
    op.create_table(
        "studies",
        sa.Column("study_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("patient_key", _KEY, nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("study_date", sa.Text()),
        sa.Column("study_time", sa.Text()),
        sa.Column("accession_number", sa.Text()),
        sa.Column("study_id", sa.Text()),
        sa.Column("study_description", sa.Text()),
        sa.Column("referring_physician_name", sa.Text()),
        sa.Column("scan_type", sa.Text()),
        sa.ForeignKeyConstraint(
            ["patient_key"], ["patients.patient_key"], name=op.f("fk_studies_patient_key"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_key", name=op.f("pk_studies")),
        sa.UniqueConstraint("study_instance_uid", name=op.f("uq_studies_study_instance_uid")),
    )
    op.create_index(op.f("ix_studies_accession_number"), "studies", ["accession_number"])
    op.create_index(op.f("ix_studies_patient_key"), "studies", ["patient_key"])
    op.create_index(op.f("ix_studies_scan_type"), "studies", ["scan_type"], **_where("scan_type IS NOT NULL"))
    op.create_index(op.f("ix_studies_study_date"), "studies", ["study_date"])
    op.create_index(op.f("ix_studies_study_id"), "studies", ["study_id"])
    op.create_table(
        "series",
        sa.Column("series_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("study_key", _KEY, nullable=False),
        sa.Column("series_instance_uid", sa.Text(), nullable=False),
        sa.Column("modality", sa.Text()),
        sa.Column("series_number", sa.BigInteger()),
        sa.Column("series_description", sa.Text()),
        sa.Column("series_date", sa.Text()),
        sa.Column("series_time", sa.Text()),
        sa.Column("body_part_examined", sa.Text()),
        sa.Column("station_name", sa.Text()),
        sa.Column("institution_name", sa.Text()),
        sa.Column("manufacturer", sa.Text()),
        sa.Column("manufacturer_model_name", sa.Text()),
        sa.Column("device_serial_number", sa.Text()),
        sa.Column("protocol_name", sa.Text()),
        sa.Column("acquisition_status", sa.Text()),
        sa.ForeignKeyConstraint(
            ["study_key"], ["studies.study_key"], name=op.f("fk_series_study_key"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("series_key", name=op.f("pk_series")),
        sa.UniqueConstraint(
            "study_key", "series_instance_uid", name=op.f("uq_series_study_key_series_instance_uid")
        ),
    )
    op.create_index(op.f("ix_series_modality_study_key"), "series", ["modality", "study_key"])
    op.create_index(op.f("ix_series_series_instance_uid"), "series", ["series_instance_uid"])
    op.create_table(
        "instances",
        sa.Column("instance_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("series_key", _KEY, nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("instance_number", sa.BigInteger()),
        sa.Column("number_of_frames", sa.BigInteger()),
        sa.Column("rows", sa.BigInteger()),
        sa.Column("columns", sa.BigInteger()),
        sa.Column("bits_allocated", sa.BigInteger()),
        sa.Column("content_date", sa.Text()),
        sa.Column("content_time", sa.Text()),
        sa.Column("acquisition_date_time", sa.Text()),
        sa.Column("frame_of_reference_uid", sa.Text()),
        sa.Column("specific_character_set", sa.Text()),
        sa.Column("dicos_version", sa.Text()),
        sa.Column("tdr_type", sa.Text()),
        sa.Column("alarm_decision", sa.Text()),
        sa.Column("alarm_decision_time", sa.Text()),
        sa.Column("abort_flag", sa.Text()),
        sa.Column("number_of_total_objects", sa.BigInteger()),
        sa.Column("number_of_alarm_objects", sa.BigInteger()),
        sa.ForeignKeyConstraint(
            ["series_key"], ["series.series_key"], name=op.f("fk_instances_series_key"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("instance_key", name=op.f("pk_instances")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_instances_sop_instance_uid")),
    )
    op.create_index(
        op.f("ix_instances_alarm_decision"),
        "instances",
        ["alarm_decision"],
        **_where("alarm_decision IS NOT NULL"),
    )
    op.create_index(op.f("ix_instances_series_key"), "instances", ["series_key"])
    op.create_table(
        "instance_references",
        sa.Column("instance_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("referenced_sop_instance_uid", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_key"],
            ["instances.instance_key"],
            name=op.f("fk_instance_references_instance_key"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "instance_key", "referenced_sop_instance_uid", name=op.f("pk_instance_references")
        ),
    )
    op.create_index(
        op.f("ix_instance_references_referenced_sop_instance_uid"),
        "instance_references",
        ["referenced_sop_instance_uid"],
    )
    op.create_table(
        "parts",
        sa.Column("part_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("instance_key", _KEY, nullable=False),
        sa.Column("part_number", sa.Integer(), nullable=False),
        sa.Column("digest_algorithm", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("dataset_offset_bytes", sa.BigInteger(), nullable=False),
        sa.Column("arrival_id", sa.Text(), nullable=False),
        sa.Column("received_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("calling_ae_title", sa.Text(), nullable=False),
        sa.Column("called_ae_title", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_key"],
            ["instances.instance_key"],
            name=op.f("fk_parts_instance_key"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("part_key", name=op.f("pk_parts")),
        sa.UniqueConstraint(
            "instance_key", "digest", "digest_algorithm", "transfer_syntax_uid", name="uq_parts_identity"
        ),
        sa.UniqueConstraint("instance_key", "part_number", name=op.f("uq_parts_instance_key_part_number")),
        sa.UniqueConstraint("location", name=op.f("uq_parts_location")),
    )
    op.create_table(
        "headers",
        sa.Column("part_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("header", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["part_key"], ["parts.part_key"], name=op.f("fk_headers_part_key"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("part_key", name=op.f("pk_headers")),
    )
