"""What the validation found in each part."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "findings",
        sa.Column(
            "part_key",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("severity", "code", "path", "keyword", "vr", "sentence")
        ),
        sa.ForeignKeyConstraint(
            ["part_key"],
            ["parts.part_key"],
            name=op.f("fk_findings_part_key"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("part_key", "number", name=op.f("pk_findings")),
    )
    op.create_index(
        op.f("ix_findings_severity_part_key_number"), "findings", ["severity", "part_key", "number"]
    )
