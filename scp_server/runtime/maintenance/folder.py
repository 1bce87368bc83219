"""A data folder that no daemon uses, opened for maintenance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from scp_server.errors import ConfigurationError
from scp_server.objects.dictionary import sequence_tags
from scp_server.runtime.build import build_storage
from scp_server.runtime.process import DataFolderLock
from scp_server.settings import Settings
from scp_server.storage.filesystem import FilesystemStorage


@contextmanager
def held_folder(data_dir: Path) -> Iterator[None]:
    """Hold the data folder as a daemon does. Raises ConfigurationError while one does."""
    lock = DataFolderLock(data_dir)
    try:
        lock.acquire()
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; this command works while no server uses the folder") from error
    try:
        yield
    finally:
        lock.release()


@asynccontextmanager
async def offline_storage(
    settings: Settings, *, keep_part_files: bool = False
) -> AsyncIterator[FilesystemStorage]:
    """Hold an existing data folder and open its storage.

    Raises ConfigurationError when there is no such folder or a daemon uses it, StorageError otherwise.
    """
    check_is_data_folder(settings.data_dir)
    with held_folder(settings.data_dir):
        storage = build_storage(settings, keep_part_files=keep_part_files)
        await storage.open()
        try:
            sequence_tags(True)
            yield storage
        finally:
            await storage.close()


def check_is_data_folder(data_dir: Path) -> None:
    """Raises ConfigurationError for a folder that no server has used: a typing error must not make one."""
    if not any((data_dir / name).is_dir() for name in ("objects", "index")):
        raise ConfigurationError(f"data_dir: {data_dir} holds neither objects nor an index")
