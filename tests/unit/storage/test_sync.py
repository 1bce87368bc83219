from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_server.errors import StorageError, StorageFull
from scp_server.storage import sync
from scp_server.storage.sync import (
    FreeSpace,
    SpaceReading,
    make_folder,
    storage_failure,
    write_all,
    write_at,
)


def _written(tmp_path: Path, buffers: Any) -> bytes:
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        assert write_all(descriptor, buffers) == sum(map(len, buffers))
    finally:
        os.close(descriptor)
    return path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(1, 7), st.integers(1, 4))
def test_short_writes_are_continued_where_they_ended(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], most: int, vectors: int
) -> None:
    real = os.writev

    def short(descriptor: int, buffers: Any) -> int:
        assert len(buffers) <= vectors
        return real(descriptor, [b"".join(bytes(buffer) for buffer in buffers)[:most]])

    kinds = (bytes, bytearray, memoryview)
    buffers = [kinds[number % 3](piece) for number, piece in enumerate(pieces)]
    with pytest.MonkeyPatch.context() as during:
        during.setattr(os, "writev", short)
        during.setattr(sync, "_MAX_VECTORS", vectors)
        assert _written(tmp_path_factory.mktemp("short"), buffers) == b"".join(pieces)


def test_more_buffers_than_one_writev_takes_are_all_written(tmp_path: Path) -> None:
    buffers = [number.to_bytes(2, "big") for number in range(5000)]
    assert _written(tmp_path, buffers) == b"".join(buffers)


def test_write_at_continues_a_short_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data)[:2], at))
    with open(path, "r+b") as file:
        write_at(file.fileno(), b"abcde", 3)
    assert path.read_bytes() == b"012abcde89"


@pytest.mark.parametrize("name", ["writev", "pwrite"])
def test_a_filesystem_that_takes_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(os, name, lambda *args: 0)
    with open(tmp_path / "file", "wb") as file, pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_all(file.fileno(), [b"x"]) if name == "writev" else write_at(file.fileno(), b"x", 0)


def test_enospc_in_the_middle_of_a_write_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    done: list[int] = []

    def full(descriptor: int, buffers: Any) -> int:
        if done:
            raise OSError(errno.ENOSPC, "full")
        done.append(1)
        return real(descriptor, [bytes(buffers[0])[:3]])

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(OSError, match="full"):
        _written(tmp_path, [b"0123456789"])


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EIO, StorageError),
        (errno.EACCES, StorageError),
        (errno.EROFS, StorageError),
    ],
)
def test_errors_are_told_apart_and_name_no_path(number: int, kind: type[StorageError]) -> None:
    failure = storage_failure(OSError(number, os.strerror(number), "/secret/path"), "write")
    assert type(failure) is kind
    assert str(failure) == f"cannot write: {os.strerror(number)}"


def test_an_error_without_a_text_has_one() -> None:
    assert str(storage_failure(OSError(), "write")) == "cannot write: unknown error"


def test_make_folder_accepts_what_exists_and_refuses_a_file(tmp_path: Path) -> None:
    make_folder(str(tmp_path / "a" / "b"), durable=False)
    make_folder(str(tmp_path / "a" / "b"), durable=True)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        make_folder(str(tmp_path / "file"), durable=True)


def test_make_folder_syncs_what_one_that_was_killed_may_have_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(sync, "sync_directory", synced.append)
    (tmp_path / "a").mkdir()
    make_folder(str(tmp_path / "a"), durable=True)
    assert synced == [str(tmp_path)]
    make_folder(str(tmp_path / "a/b"), durable=True)
    assert synced[1:] == [str(tmp_path), str(tmp_path / "a")]


def test_make_folder_lives_with_a_parent_that_it_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str) -> None:
        raise PermissionError(errno.EACCES, "not yours", path)

    monkeypatch.setattr(sync, "sync_directory", refused)
    make_folder(str(tmp_path), durable=True)
    with pytest.raises(PermissionError):
        make_folder(str(tmp_path / "a"), durable=True)


@pytest.mark.parametrize(
    ("configured", "blocks", "reserve"), [(None, 100_000, 2_000 * 4_096), (None, 1 << 30, 1 << 30), (5, 9, 5)]
)
def test_a_reading_tells_free_space_with_the_reserve_and_the_reserve_in_force(
    monkeypatch: pytest.MonkeyPatch, configured: int | None, blocks: int, reserve: int
) -> None:
    class Answer:
        f_frsize, f_blocks, f_bavail = 4_096, blocks, 7

    monkeypatch.setattr(os, "statvfs", lambda _folder: Answer)
    assert FreeSpace("/nowhere", configured).read() == SpaceReading(7 * 4_096, blocks * 4_096, reserve)
