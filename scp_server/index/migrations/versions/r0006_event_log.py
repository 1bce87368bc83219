"""The event log, and how far each subscription is in it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "event_log",
        _key("log_key"),
        sa.Column("archive_id", sa.Text(), nullable=False),
        sa.Column("trimmed_to", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("log_key", name=op.f("pk_event_log")),
    )
    op.create_table(
        "events",
        _key("event_id"),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("association_id", sa.Text(), nullable=False),
        sa.Column("location", sa.Text()),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_events")),
    )
    op.create_table(
        "open_associations",
        sa.Column("association_id", sa.Text(), nullable=False),
        sa.Column("began_event_id", sa.BigInteger(), nullable=False),
        sa.Column("ended_event_id", sa.BigInteger()),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("association_id", name=op.f("pk_open_associations")),
    )
    op.create_table(
        "unsettled_studies",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("study_instance_uid", name=op.f("pk_unsettled_studies")),
    )
    op.create_table(
        "subscriptions",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("started_to", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_subscriptions")),
    )
    op.create_table(
        "parked",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("order_key", sa.Text(), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at_ns", sa.BigInteger(), nullable=False),
        sa.Column("is_dead", sa.Integer(), nullable=False),
        sa.Column("may_be_repeated", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", "event_id", name=op.f("pk_parked")),
    )
    op.create_index(op.f("ix_parked_event_id"), "parked", ["event_id"])


def _key(name: str) -> sa.Column[int]:
    return sa.Column(
        name, sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
    )
