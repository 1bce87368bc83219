"""The book of an archive: everything that it has to notice is done to one."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from scp_server.testing.archive import Archive
from scp_server.testing.objects import ct_image
from scp_server.testing.witness import Witness

KEPT = [ct_image(rows=8, columns=8, seed=seed) for seed in range(3)]
OTHER = ct_image(rows=8, columns=8, seed=9)


async def _told(data_dir: Path) -> Witness:
    """Of an archive that keeps what it should."""
    witness = Witness(data_dir)
    for stored in KEPT:
        witness.sending(stored)
        witness.was_acknowledged(stored)
    assert await Archive.at(data_dir).store(KEPT) == [0x0000] * len(KEPT)
    witness.testify()
    return witness


def _first(data_dir: Path) -> Path:
    return min((data_dir / "objects").rglob("*.dcm"))


def _lose(data_dir: Path) -> None:
    _execute(data_dir, "DELETE FROM parts WHERE location = ?", str(_first(data_dir).relative_to(data_dir)))
    _first(data_dir).unlink()


def _lose_row(data_dir: Path) -> None:
    _execute(data_dir, "DELETE FROM parts WHERE location = ?", str(_first(data_dir).relative_to(data_dir)))


def _lose_file(data_dir: Path) -> None:
    _first(data_dir).unlink()


def _damage(data_dir: Path) -> None:
    path = _first(data_dir)
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def _leave_half(data_dir: Path) -> None:
    (data_dir / "incoming" / "0123.part").touch()


def _leave_stray(data_dir: Path) -> None:
    (data_dir / "objects" / "stray").touch()


def _rename_rows(data_dir: Path) -> None:
    _execute(data_dir, "UPDATE instances SET sop_instance_uid = sop_instance_uid || '.1'")


def _execute(data_dir: Path, statement: str, *values: str) -> None:
    with closing(sqlite3.connect(data_dir / "index" / "index.sqlite", isolation_level=None)) as database:
        database.execute("PRAGMA foreign_keys = OFF")
        assert database.execute(statement, values).rowcount > 0


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_lose, "acknowledged and lost: 1"),
        (_lose_row, "a file without a row: 1"),
        (_lose_file, "a row without a file: 1"),
        (_damage, "damaged: 1"),
        (_leave_half, "half done: 1"),
        (_leave_stray, "no object: 1"),
        (_rename_rows, "another one's row: 3"),
    ],
)
async def test_whatever_is_wrong_is_told(tmp_path: Path, harm: Callable[[Path], None], says: str) -> None:
    witness = await _told(tmp_path)
    harm(tmp_path)
    with pytest.raises(AssertionError, match=re.escape(says)):
        witness.testify(anew=True)


async def test_what_was_sent_and_not_acknowledged_may_be_there_or_not(tmp_path: Path) -> None:
    witness = await _told(tmp_path)
    witness.sending(OTHER)
    witness.testify()
    await Archive.at(tmp_path).store([OTHER])
    witness.testify()


async def test_what_nobody_sent_is_told(tmp_path: Path) -> None:
    witness = await _told(tmp_path)
    await Archive.at(tmp_path).store([OTHER])
    with pytest.raises(AssertionError, match="damaged: 1"):
        witness.testify()


async def test_what_was_to_be_deleted_may_be_there_whole_or_not_at_all(tmp_path: Path) -> None:
    witness = await _told(tmp_path)
    witness.deleting(stored.sop_instance_uid for stored in KEPT)
    witness.testify()
    _lose(tmp_path)
    with pytest.raises(AssertionError, match="half deleted: 2"):
        witness.testify()
    _lose(tmp_path)
    _lose(tmp_path)
    witness.testify()


async def test_what_was_deleted_must_be_gone(tmp_path: Path) -> None:
    witness = await _told(tmp_path)
    uids = [stored.sop_instance_uid for stored in KEPT]
    witness.deleting(uids)
    witness.were_deleted(uids)
    with pytest.raises(AssertionError, match="deleted and still there: 3"):
        witness.testify()
