"""The index of this server fulfils the contract of searches."""

from __future__ import annotations

from pathlib import Path

import pytest

from scp_server.index.base import Index
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.testing.index_contract import MakeIndex
from scp_server.testing.search_contract import SearchContract
from tests.contract.satellites_index import SatellitesIndex


class TestSqlIndex(SearchContract):
    @pytest.fixture(params=[1, 4], ids=["one reader", "four readers"])
    def make_index(self, tmp_path: Path, request: pytest.FixtureRequest) -> MakeIndex:
        def make() -> Index:
            path = tmp_path / "index.sqlite"
            return SqlIndex(IndexConfig(path, synchronous_full=False, readers=request.param))

        return make


class TestIndexWrittenByAnotherProcess(SearchContract):
    @pytest.fixture
    def make_index(self, tmp_path: Path) -> MakeIndex:
        return lambda: SatellitesIndex(IndexConfig(tmp_path / "index.sqlite", synchronous_full=False))
