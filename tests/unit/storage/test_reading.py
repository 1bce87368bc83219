from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scp_server.storage.base import StoredObject
from scp_server.storage.layout import MAX_FOLDERS
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


@pytest.mark.parametrize(("length", "reads"), [(50, 3), (None, 6)], ids=["known length", "to the end"])
def test_the_read_that_comes_to_the_end_closes_the_file(file: Path, length: int | None, reads: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = FileReader(str(file), 0, length)
    for _ in range(reads - 1):
        assert reader.read(20)
        assert not reader.is_closed
    reader.read(20)
    assert reader.is_closed
    assert len(os.listdir("/proc/self/fd")) == before


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


def test_objects_are_listed_at_any_depth_and_one_directory_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = set[StoredObject]()
    for depth in range(1, MAX_FOLDERS + 2):
        directory = "/".join(["objects", *["A"] * depth])
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "B-0f.dcm").write_bytes(b"1" * depth)
        if depth <= MAX_FOLDERS:
            expected.add(StoredObject(f"{directory}/B-0f.dcm", depth))
    (tmp_path / "objects" / "B-0f.dcm").write_bytes(b"none of ours")
    (tmp_path / "objects" / ".hidden").mkdir()
    (tmp_path / "objects" / ".hidden" / "B-0f.dcm").write_bytes(b"none of ours")
    (tmp_path / "objects" / "A" / "C-0f.dcm").mkdir()
    monkeypatch.setattr(os, "listdir", None)
    found = list(objects_below(str(tmp_path), "objects"))
    assert set(found) == expected
    assert len(found) == len(expected)


def test_a_listing_that_ends_early_closes_its_directories(tmp_path: Path) -> None:
    for number in range(50):
        directory = tmp_path / f"objects/A/B/{number}"
        directory.mkdir(parents=True)
        (directory / "C-0f.dcm").touch()
    before = len(os.listdir("/proc/self/fd"))
    batches = Batches(objects_below(str(tmp_path), "objects"))
    assert len(batches.next(10)) == 10
    assert len(os.listdir("/proc/self/fd")) > before
    batches.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_wide_directory_is_listed_in_bounded_memory(tmp_path: Path) -> None:
    for number in range(5_000):
        (tmp_path / "objects" / f"{number:0180}").mkdir(parents=True)
    tracemalloc.start()
    try:
        assert list(objects_below(str(tmp_path), "objects")) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 18


def test_a_directory_that_disappears_while_listing_is_passed_over(tmp_path: Path) -> None:
    directory = f"objects/ab/ab{'0' * 18}/{'1' * 20}"
    (tmp_path / directory).mkdir(parents=True)
    (tmp_path / directory / f"{'2' * 20}-ff.dcm").write_bytes(b"12345")
    walk = objects_below(str(tmp_path), "objects")
    assert next(walk) == StoredObject(f"{directory}/{'2' * 20}-ff.dcm", 5)
    assert list(walk) == []
    assert list(objects_in(str(tmp_path), "objects/ab/gone/gone")) == []
    assert list(objects_below(str(tmp_path), "nothing")) == []
