"""An archive that all queries of this room are put to, and retrieves on their bench."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pydicom.config
import pytest

from scp_server.index.store import SqlIndex
from scp_server.testing.archive import Archive
from scp_server.testing.encoded_object import make_uid
from scp_server.testing.objects import ct_image
from scp_server.testing.retrieve_bench import RetrieveBench
from tests.unit.services.query_retrieve.asking import archived

SLICES = 5


@pytest.fixture(autouse=True)
def uids_of_any_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydicom is to read the UIDs of DICOS scanners, too."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)


@pytest.fixture(scope="session")
def queried_archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Made once; nobody changes it."""
    archive = Archive.at(tmp_path_factory.mktemp("queried"))
    objects = archived()
    with asyncio.Runner() as runner:
        assert runner.run(archive.store(objects)) == [0] * len(objects)
    return archive


@pytest.fixture
async def archive(queried_archive: Archive) -> AsyncIterator[SqlIndex]:
    """Its index."""
    async with queried_archive.opened() as (_, index):
        yield index


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[RetrieveBench]:
    """An archive of one CT with five slices, of the study `make_uid("study")`."""
    slices = [ct_image(seed=n, study_instance_uid=make_uid("study")) for n in range(SLICES)]
    async with await RetrieveBench.of(tmp_path, slices) as bench:
        yield bench
