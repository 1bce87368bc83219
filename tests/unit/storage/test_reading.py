from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scp_server.storage.base import StoredObject
from scp_server.storage.reading import Batches, FileReader, objects_below, objects_in


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    return path


def test_close_waits_for_a_read_in_hand(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, let_through = threading.Event(), threading.Event()
    real = os.pread

    def slow(*args: Any) -> bytes:
        reached.set()
        assert let_through.wait(10)
        return real(*args)

    monkeypatch.setattr(os, "pread", slow)
    reader = FileReader(str(file), 0, None)
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(reader.read, 10)
        assert reached.wait(10)
        closing = pool.submit(reader.close)
        with pytest.raises(TimeoutError):
            closing.result(0.05)
        let_through.set()
        assert reading.result(10) == bytes(range(10))
        closing.result(10)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_reader_opens_nothing(file: Path) -> None:
    reader = FileReader(str(file), 0, None)
    reader.close()
    before = len(os.listdir("/proc/self/fd"))
    assert reader.read(10) == b""
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_short_read_is_continued(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, min(size, 7), at))
    reader = FileReader(str(file), 10, 50)
    data = b""
    while piece := reader.read(20):
        data += piece
    reader.close()
    assert data == bytes(range(10, 60))


def test_batches_end_the_iterator_when_closed() -> None:
    taken: list[int] = []

    def objects() -> Iterator[StoredObject]:
        for number in range(100):
            taken.append(number)
            yield StoredObject(str(number), number)

    batches = Batches(objects())
    assert len(batches.next(3)) == 3
    batches.close()
    assert batches.next(3) == []
    assert taken == [0, 1, 2]


def test_a_directory_that_disappears_while_listing_is_passed_over(tmp_path: Path) -> None:
    directory = f"objects/ab/ab{'0' * 18}/{'1' * 20}"
    (tmp_path / directory).mkdir(parents=True)
    (tmp_path / directory / f"{'2' * 20}-ff.dcm").write_bytes(b"12345")
    walk = objects_below(str(tmp_path), "objects")
    assert next(walk) == StoredObject(f"{directory}/{'2' * 20}-ff.dcm", 5)
    assert list(walk) == []
    assert list(objects_in(str(tmp_path), "objects/ab/gone/gone")) == []
    assert list(objects_below(str(tmp_path), "nothing")) == []


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    name = f"{'0' * 20}-aa.dcm"
    (tmp_path / "objects" / "aa").mkdir(parents=True)
    (tmp_path / "objects" / "aa" / name).write_bytes(b"1")
    (tmp_path / "objects" / "bb").symlink_to(tmp_path / "objects" / "aa")
    (tmp_path / "objects" / "loop").symlink_to(tmp_path / "objects")
    assert [stored.location for stored in objects_below(str(tmp_path), "objects")] == [f"objects/aa/{name}"]


def test_a_listing_that_stops_early_leaves_no_directory_open(tmp_path: Path) -> None:
    for number in range(3):
        directory = tmp_path / "objects" / f"a{number}" / "b" / "c"
        directory.mkdir(parents=True)
        (directory / f"{'0' * 20}-aa.dcm").write_bytes(b"1")
    before = len(os.listdir("/proc/self/fd"))
    walk = objects_below(str(tmp_path), "objects")
    next(walk)
    assert len(os.listdir("/proc/self/fd")) > before
    walk.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before
