"""Parts whose bytes were changed on arrival have a digest of what is stored, beside that of what came."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("parts", sa.Column("stored_digest", sa.LargeBinary(), nullable=True))
