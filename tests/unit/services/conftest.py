"""The storage service on its bench."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scp_server.testing.storage_bench import StorageBench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[StorageBench]:
    """The storage service with its defaults."""
    async with StorageBench(tmp_path) as bench:
        yield bench
