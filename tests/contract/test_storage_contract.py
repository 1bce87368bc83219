"""Every storage of this server, by the public contract suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.storage.memory import MemoryPlace, MemoryStorage
from scp_server.storage.template import LayoutTemplate
from scp_server.testing.storage_contract import MakeStorage, StorageContract


class TestMemoryStorage(StorageContract):
    @pytest.fixture
    def make_storage(self) -> MakeStorage:
        place = MemoryPlace()
        return lambda: MemoryStorage(place)


class TestFilesystemStorageSurvivingPowerLoss(StorageContract):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> MakeStorage:
        config = FilesystemStorageConfig(tmp_path / "data", Durability.FULL, reserve_bytes=0)
        return lambda: FilesystemStorage(config)


class TestFilesystemStorageSurvivingTheProcess(StorageContract):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> MakeStorage:
        config = FilesystemStorageConfig(tmp_path / "data", Durability.PROCESS, reserve_bytes=0)
        return lambda: FilesystemStorage(config)


class TestFilesystemStorageWithASmallBufferAndOneThread(StorageContract):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> MakeStorage:
        config = FilesystemStorageConfig(
            tmp_path / "data", Durability.PROCESS, reserve_bytes=0, write_buffer_bytes=1000, threads=1
        )
        return lambda: FilesystemStorage(config)


class TestFilesystemStorageWithUidsInItsPaths(StorageContract):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> MakeStorage:
        config = FilesystemStorageConfig(
            tmp_path / "data",
            Durability.PROCESS,
            reserve_bytes=0,
            layout=LayoutTemplate("{patient}/{study_uid}/{series_uid}/{instance_uid}"),
        )
        return lambda: FilesystemStorage(config)
