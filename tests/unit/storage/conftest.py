"""What the tests of the filesystem storage share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.testing.system_calls import SystemCalls


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The data folder, not made yet."""
    return tmp_path / "data"


@pytest.fixture
def calls(root: Path, monkeypatch: pytest.MonkeyPatch) -> SystemCalls:
    """The system calls on `root`."""
    return SystemCalls(root, monkeypatch)


@pytest.fixture
def opened() -> Callable[..., AbstractAsyncContextManager[FilesystemStorage]]:
    """`async with opened(root, durability, **settings) as storage`: open, without a reserve, then closed."""

    @asynccontextmanager
    async def opened(
        root: Path, durability: Durability = Durability.FULL, **settings: Any
    ) -> AsyncIterator[FilesystemStorage]:
        storage = FilesystemStorage(
            FilesystemStorageConfig(root, durability, **{"reserve_bytes": 0} | settings)
        )
        await storage.open()
        try:
            yield storage
        finally:
            await storage.close()

    return opened


@pytest.fixture
async def visits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was done in threads, in order."""
    loop = asyncio.get_running_loop()
    visits: list[Any] = []
    real = loop.run_in_executor

    def counted(*args: Any) -> Any:
        visits.append(args[1])
        return real(*args)

    monkeypatch.setattr(loop, "run_in_executor", counted)
    return visits


@pytest.fixture
def files() -> Callable[[Path], list[str]]:
    """Names everything below a data folder but the ledgers; folders end in a slash."""

    def files(root: Path) -> list[str]:
        found = (f"{path.relative_to(root)}{'/' if path.is_dir() else ''}" for path in root.rglob("*"))
        return sorted(name for name in found if not name.startswith("incoming/directories."))

    return files
