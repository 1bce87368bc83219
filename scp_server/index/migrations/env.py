"""Run by Alembic for every command; the connection, and its transaction, are the caller's."""

from __future__ import annotations

from alembic import context

from scp_server.index.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
