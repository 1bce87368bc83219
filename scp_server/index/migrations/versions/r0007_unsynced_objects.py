"""The bytes of files that are not durable yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "unsynced_objects",
        sa.Column(
            "part_key",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["part_key"],
            ["parts.part_key"],
            name=op.f("fk_unsynced_objects_part_key"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("part_key", name=op.f("pk_unsynced_objects")),
    )
