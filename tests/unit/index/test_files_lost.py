"""An index whose files are deleted, moved, replaced or spoilt while open: nothing is said to be kept."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Connection

from scp_server.errors import IndexUnavailable
from scp_server.index.base import AddOutcome, DuplicatePolicy
from scp_server.index.spare import SpareFile
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.index.writer import EntryWriter
from scp_server.testing.index_contract import index_entry

KEEP_FIRST = DuplicatePolicy.KEEP_FIRST
LOST = "was deleted, moved or replaced while it was open"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The index's own folder."""
    return tmp_path / "index"


@pytest.fixture
def path(folder: Path) -> Path:
    """Where the index lies."""
    return folder / "index.sqlite"


@pytest_asyncio.fixture
async def index(path: Path) -> AsyncIterator[SqlIndex]:
    """An open index with one entry, whose readers have connections too."""
    index = SqlIndex(IndexConfig(path, busy_timeout_seconds=0.05))
    await index.open()
    await index.add(index_entry("0"), KEEP_FIRST)
    assert (await index.totals()).parts == 1
    yield index
    await index.close()


def _delete_file(folder: Path) -> None:
    (folder / "index.sqlite").unlink()


def _delete_log(folder: Path) -> None:
    (folder / "index.sqlite-wal").unlink()


def _delete_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def _move_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def _replace_file(folder: Path) -> None:
    copy = folder / "copy"
    shutil.copyfile(folder / "index.sqlite", copy)
    copy.replace(folder / "index.sqlite")


LOSSES = [_delete_file, _delete_log, _delete_folder, _move_folder, _replace_file]


@pytest.mark.parametrize("lose", LOSSES)
async def test_what_no_start_would_find_is_not_recorded(
    index: SqlIndex, folder: Path, lose: Callable[[Path], None]
) -> None:
    lose(folder)
    left = sorted(folder.parent.rglob("*"))
    for number in (1, 2):
        with pytest.raises(IndexUnavailable, match=LOST):
            await index.add(index_entry(str(number)), KEEP_FIRST)
    with pytest.raises(IndexUnavailable, match=LOST):
        await index.remove(["somewhere"])
    assert sorted(folder.parent.rglob("*")) == left, "an empty index in its place would hide that it is gone"


@pytest.mark.parametrize("lose", LOSSES)
async def test_what_is_lost_during_a_transaction_is_noticed_after_it(
    index: SqlIndex, folder: Path, lose: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = EntryWriter.write_batch

    def written_then_lost(self: EntryWriter, connection: Connection, requests: Any) -> Any:
        results = real(self, connection, requests)
        lose(folder)
        return results

    monkeypatch.setattr(EntryWriter, "write_batch", written_then_lost)
    with pytest.raises(IndexUnavailable, match=LOST):
        await index.add(index_entry("1"), KEEP_FIRST)


async def test_put_back_it_goes_on(index: SqlIndex, folder: Path) -> None:
    _move_folder(folder)
    with pytest.raises(IndexUnavailable):
        await index.add(index_entry("1"), KEEP_FIRST)
    folder.with_name("elsewhere").rename(folder)
    assert (await index.add(index_entry("1"), KEEP_FIRST)).outcome is AddOutcome.ADDED
    assert (await index.totals()).parts == 2


async def test_no_other_database_is_taken_after_a_failure(index: SqlIndex, folder: Path, path: Path) -> None:
    """A failure closes the connection: the next one must not make, or find, another database."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(IndexUnavailable, match="locked"):
            await index.add(index_entry("1"), KEEP_FIRST)
        other.execute("ROLLBACK")
    _delete_folder(folder)
    folder.mkdir()
    with pytest.raises(IndexUnavailable, match=LOST):
        await index.add(index_entry("1"), KEEP_FIRST)
    assert list(folder.iterdir()) == []


async def test_a_database_that_is_spoilt_while_it_is_open_is_said_to_be(index: SqlIndex, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # Another process has written, so pages are read anew.
        other.execute("PRAGMA user_version = 1")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    for number in (1, 2):
        with pytest.raises(IndexUnavailable, match="malformed"):
            await index.add(index_entry(str(number)), KEEP_FIRST)
    with pytest.raises(IndexUnavailable, match="malformed"):
        await index.totals()


def test_the_spare_file_is_laid_up_once_and_given_up_once(tmp_path: Path) -> None:
    spare = SpareFile(tmp_path / "spare", 5_000)
    assert not spare.is_short_of_space
    assert not spare.give_up()
    for _ in range(2):
        spare.lay_up()
        assert (tmp_path / "spare").read_bytes() == bytes(5_000)
    assert spare.give_up()
    assert list(tmp_path.iterdir()) == []


def test_a_spare_file_that_does_not_fit_is_none(tmp_path: Path) -> None:
    spare = SpareFile(tmp_path / "spare", 1 << 62)
    assert spare.is_short_of_space
    spare.lay_up()
    assert list(tmp_path.iterdir()) == []
    none = SpareFile(tmp_path / "spare", 0)
    none.lay_up()
    assert list(tmp_path.iterdir()) == []
