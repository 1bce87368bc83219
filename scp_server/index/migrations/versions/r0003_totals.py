"""How many rows the tables have, kept by triggers. They are SQLite's: another database needs its own here."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COUNTED = ("patients", "studies", "series", "instances", "parts")


def upgrade() -> None:
    op.create_table(
        "totals",
        sa.Column(
            "totals_key",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in (*_COUNTED, "bytes")),
        sa.PrimaryKeyConstraint("totals_key", name=op.f("pk_totals")),
    )
    counts = ", ".join(f"(SELECT count(*) FROM {name})" for name in _COUNTED)
    op.execute(f"INSERT INTO totals SELECT 1, {counts}, (SELECT coalesce(sum(size_bytes), 0) FROM parts)")
    for name in _COUNTED:
        for verb, sign, row in (("INSERT", "+", "NEW"), ("DELETE", "-", "OLD")):
            size = f", bytes = bytes {sign} {row}.size_bytes" if name == "parts" else ""
            op.execute(
                f"CREATE TRIGGER count_{name}_{verb.lower()} AFTER {verb} ON {name} "
                f"BEGIN UPDATE totals SET {name} = {name} {sign} 1{size}; END"
            )
