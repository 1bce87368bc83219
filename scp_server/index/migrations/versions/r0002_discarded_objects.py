"""Files whose rows are gone, until they are gone too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "discarded_objects",
        sa.Column("location", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("location", name=op.f("pk_discarded_objects")),
    )
