"""A data folder with objects in it, made by the storage service itself, and looked at from outside."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scp_server.errors import OperationRefused
from scp_server.index.store import SqlIndex
from scp_server.runtime.build import build_index, build_storage, build_storage_service, index_path
from scp_server.services.unsettled import UnsettledObjects
from scp_server.settings import Settings
from scp_server.storage.filesystem import FilesystemStorage
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_operation import store_operation

TABLES: dict[str, str] = {
    "patients": "SELECT patients.* FROM patients",
    "studies": "SELECT studies.*, patient_id, issuer_of_patient_id, unidentified_study_instance_uid "
    "FROM studies JOIN patients USING (patient_key)",
    "series": "SELECT series.*, study_instance_uid FROM series JOIN studies USING (study_key)",
    "instances": "SELECT instances.*, series_instance_uid FROM instances JOIN series USING (series_key)",
    "parts": "SELECT parts.*, sop_instance_uid FROM parts JOIN instances USING (instance_key)",
    "headers": "SELECT header, location FROM headers JOIN parts USING (part_key)",
    "references": "SELECT referenced_sop_instance_uid, sop_instance_uid FROM instance_references "
    "JOIN instances USING (instance_key)",
    "scan_reports": "SELECT study_instance_uid, sop_instance_uid FROM scan_reports "
    "JOIN studies USING (study_key) JOIN instances ON instance_key = report_key",
}


@dataclass(frozen=True, slots=True)
class Archive:
    """A data folder that no server uses."""

    settings: Settings

    @classmethod
    def at(cls, data_dir: Path, **sections: Any) -> Archive:
        """An archive in `data_dir`, with sections of settings by name."""
        return cls(Settings(**{"data_dir": data_dir, "storage": {"durability": "process"}, **sections}))

    @property
    def data_dir(self) -> Path:
        """Its folder."""
        return self.settings.data_dir

    @property
    def index_path(self) -> Path:
        """Its index."""
        return index_path(self.settings)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[FilesystemStorage, SqlIndex]]:
        """Its storage and its index."""
        storage, index = build_storage(self.settings), build_index(self.settings)
        await storage.open()
        try:
            await index.open()
            yield storage, index
        finally:
            await index.close()
            await storage.close()

    async def store(
        self,
        objects: Iterable[EncodedObject],
        calling_ae_title: str = "SCANNER",
        unsettled: UnsettledObjects | None = None,
    ) -> list[int]:
        """Store objects one after the other; returns the status of each. With `unsettled`, and durability
        full, the index keeps small ones when this has ended."""
        statuses: list[int] = []
        async with self.opened() as (storage, index):
            service = build_storage_service(self.settings, storage, index, unsettled=unsettled)
            for each in objects:
                try:
                    await service.store(store_operation(each, calling_ae_title=calling_ae_title))
                    statuses.append(0x0000)
                except OperationRefused as refusal:
                    statuses.append(refusal.status)
        return statuses

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every table of the index without surrogate keys, rows with their parents' UIDs, sorted."""
        found: dict[str, list[tuple[Any, ...]]] = {}
        with closing(sqlite3.connect(self.index_path)) as database:
            for name, statement in TABLES.items():
                cursor = database.execute(statement)
                wanted = [n for n, column in enumerate(cursor.description) if not column[0].endswith("_key")]
                found[name] = sorted((tuple(row[n] for n in wanted) for row in cursor), key=repr)
        return found

    def files(self) -> dict[str, bytes]:
        """Every object by its location."""
        objects = self.data_dir / "objects"
        return {
            str(path.relative_to(self.data_dir)): path.read_bytes()
            for path in sorted(objects.rglob("*.dcm"))
            if path.is_file()
        }

    def location_of(self, stored: EncodedObject) -> str:
        """Where the bytes of one object lie. Raises ValueError unless that is one place."""
        (location,) = [name for name, data in self.files().items() if data.endswith(stored.dataset)]
        return location
