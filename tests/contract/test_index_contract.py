"""The index of this server fulfils the contract of indexes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scp_server.index.base import Index
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.testing.index_contract import IndexContract, MakeIndex, MakeUnavailable
from scp_server.testing.unsynced_contract import UnsyncedContract


class _SqlIndex:
    @pytest.fixture(params=[True, False], ids=["full", "process"])
    def make_index(self, tmp_path: Path, request: pytest.FixtureRequest) -> MakeIndex:
        def make() -> Index:
            return SqlIndex(
                IndexConfig(
                    tmp_path / "index.sqlite", synchronous_full=request.param, busy_timeout_seconds=0.05
                )
            )

        return make

    @pytest.fixture
    def make_unavailable(self, tmp_path: Path) -> MakeUnavailable:
        @contextmanager
        def locked() -> Iterator[None]:
            other = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            try:
                yield
            finally:
                other.execute("ROLLBACK")
                other.close()

        return locked


class TestSqlIndex(_SqlIndex, IndexContract):
    """All that is not about searches."""


class TestSqlIndexKeepingFiles(_SqlIndex, UnsyncedContract):
    """Those that are not durable yet."""
