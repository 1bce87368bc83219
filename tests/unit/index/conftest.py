"""A database file, the index over it, and a writing connection beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import Connection

from scp_server.index import migrations
from scp_server.index.sqlite import writer_engine
from scp_server.index.store import IndexConfig, SqlIndex


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the index will lie."""
    return tmp_path / "index.sqlite"


@pytest_asyncio.fixture
async def index(path: Path) -> AsyncIterator[SqlIndex]:
    """An open, empty index at `path`."""
    index = SqlIndex(IndexConfig(path, busy_timeout_seconds=0.05))
    await index.open()
    yield index
    await index.close()


@pytest.fixture
def connection(path: Path) -> Iterator[Connection]:
    """A connection to an empty migrated database at `path`."""
    engine = writer_engine(path, synchronous_full=False, busy_timeout_seconds=1.0)
    with engine.begin() as connection:
        migrations.upgrade(connection)
    with engine.connect() as connection:
        yield connection
    engine.dispose()
