"""The index of this server fulfils the contract of indexes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scp_server.index.base import Index
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.testing.decision_contract import DecisionContract
from scp_server.testing.event_log_contract import EventLogContract
from scp_server.testing.findings_contract import FindingsContract
from scp_server.testing.index_contract import IndexContract, MakeIndex, MakeUnavailable
from scp_server.testing.unsynced_contract import UnsyncedContract
from tests.contract.satellites_index import SatellitesIndex


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


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
        return lambda: _locked(tmp_path / "index.sqlite")


class TestSqlIndex(_SqlIndex, IndexContract, EventLogContract):
    """All that is not about searches."""


class TestSqlIndexDeciding(DecisionContract):
    """What is decided on scans."""

    @pytest.fixture
    def make_index(self, tmp_path: Path) -> MakeIndex:
        return lambda: SqlIndex(IndexConfig(tmp_path / "index.sqlite", synchronous_full=False))


class TestSqlIndexKeepingFiles(_SqlIndex, UnsyncedContract):
    """Those that are not durable yet."""


class TestSqlIndexWithFindings(_SqlIndex, FindingsContract):
    """What validations have found."""


class TestIndexWrittenByAnotherProcess(IndexContract, FindingsContract):
    """What a satellite has: its own readers, and the primary's writer at the other end of a connection."""

    @pytest.fixture
    def make_index(self, tmp_path: Path) -> MakeIndex:
        config = IndexConfig(tmp_path / "index.sqlite", synchronous_full=False, busy_timeout_seconds=0.05)
        return lambda: SatellitesIndex(config)

    @pytest.fixture
    def make_unavailable(self, tmp_path: Path) -> MakeUnavailable:
        return lambda: _locked(tmp_path / "index.sqlite")
