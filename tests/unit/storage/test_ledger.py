from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scp_server.storage import ledger as module
from scp_server.storage.layout import MAX_LOCATION_CHARACTERS, MAX_NAME_CHARACTERS
from scp_server.storage.ledger import InFlightLedger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def made(folder: Path, *, durable: bool = False) -> InFlightLedger:
    ledger = InFlightLedger(str(folder), durable=durable)
    ledger.adopt(os.listdir(folder))
    return ledger


def directory(number: int) -> str:
    study = f"{number:020x}"
    return f"objects/{study[:2]}/{study}/{number:020x}"


def unreadable(name: str, error: OSError) -> None:
    raise AssertionError(f"{name} was readable: {error}")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_series_is_named_once_however_many_objects_it_has(folder: Path) -> None:
    ledger = made(folder)
    for number in range(50):
        ledger.enter(directory(number % 2), f"object {number}")
    assert (folder / "directories.1").read_text() == f"{directory(0)}\n{directory(1)}\n"
    ledger.close()
    assert list(made(folder).left_over_directories(unreadable)) == [directory(0), directory(1)]


def test_a_generation_ends_after_256_directories(folder: Path) -> None:
    ledger = made(folder)
    for number in range(module.MAX_DIRECTORIES + 1):
        ledger.enter(directory(number), f"object {number}")
    assert names(folder) == ["directories.1", "directories.2"]
    assert (folder / "directories.1").read_text().count("\n") == 256
    assert (folder / "directories.2").read_text() == f"{directory(256)}\n"


def test_a_generation_ends_after_1024_objects_and_the_next_names_the_series_again(folder: Path) -> None:
    ledger = made(folder)
    for number in range(module.MAX_COMMITS + 1):
        ledger.enter(directory(7), f"object {number}")
    assert [(folder / name).read_text() for name in names(folder)] == [f"{directory(7)}\n"] * 2


def test_a_full_generation_goes_when_the_last_of_its_objects_is_reported(folder: Path) -> None:
    ledger = made(folder)
    for number in range(module.MAX_DIRECTORIES):
        ledger.enter(directory(number), f"object {number}")
    for number in range(1, module.MAX_DIRECTORIES):
        ledger.report(f"object {number}")
    ledger.enter(directory(1000), "another")
    assert names(folder) == ["directories.1", "directories.2"]
    ledger.report("object 0")
    ledger.report("object 0")
    ledger.enter(directory(1000), "one more")
    assert names(folder) == ["directories.2"]


def test_no_descriptor_is_kept_for_generations_whose_objects_are_never_reported(folder: Path) -> None:
    ledger = made(folder)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5 * module.MAX_COMMITS):
        ledger.enter(directory(1), f"object {number}")
    assert len(names(folder)) == 5
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    ledger.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_clean_close_leaves_no_ledger(folder: Path) -> None:
    ledger = made(folder)
    ledger.enter(directory(1), "object")
    ledger.report("object")
    ledger.close()
    assert names(folder) == []


def test_reports_of_unknown_objects_are_not_kept(folder: Path) -> None:
    ledger = made(folder)
    for number in range(1000):
        ledger.report(f"object {number}")
    assert len(ledger._reported) == 0


@pytest.mark.parametrize("kept", range(len(directory(2)) + 2))
def test_a_record_cut_anywhere_by_a_crash_is_passed_over(folder: Path, kept: int) -> None:
    whole = f"{directory(1)}\n".encode()
    last = f"{directory(2)}\n".encode()[:kept]
    (folder / "directories.3").write_bytes(whole + last)
    expected = [directory(1)] if kept <= len(directory(2)) else [directory(1), directory(2)]
    assert list(made(folder).left_over_directories(unreadable)) == expected


@pytest.mark.parametrize("kept", range(len(directory(2)) + 2))
def test_a_record_of_which_the_end_alone_was_written_is_passed_over(folder: Path, kept: int) -> None:
    """A crash may lose the first of two pages that a record lies in, and zeros are read in its place."""
    record = f"{directory(2)}\n".encode()
    (folder / "directories.3").write_bytes(f"{directory(1)}\n".encode() + bytes(kept) + record[kept:])
    expected = [directory(1), directory(2)] if not kept else [directory(1)]
    assert list(made(folder).left_over_directories(unreadable)) == expected


def test_directories_of_any_template_are_named_whatever_their_length(folder: Path) -> None:
    names_of_all = [
        directory(1),
        "objects/A/B",
        "/".join(["objects", *["N" * MAX_NAME_CHARACTERS] * 4, "A" * 150]),
        "/".join(["objects", *"ABCDEFGHIJKLMNOP"]),
    ]
    ledger = made(folder)
    for number, name in enumerate(names_of_all * 2):
        ledger.enter(name, f"object {number}")
    assert (folder / "directories.1").read_text() == "".join(f"{name}\n" for name in names_of_all)
    ledger.close()
    assert list(made(folder).left_over_directories(unreadable)) == names_of_all


def test_a_generation_of_the_longest_directories_is_read_whole(folder: Path) -> None:
    ledger = made(folder)
    longest = [
        "/".join(["objects", *["N" * MAX_NAME_CHARACTERS] * 4, f"{number:0188}"])
        for number in range(module.MAX_DIRECTORIES)
    ]
    assert {len(name) for name in longest} == {MAX_LOCATION_CHARACTERS}
    for number, name in enumerate(longest):
        ledger.enter(name, f"object {number}")
    ledger.close()
    assert list(made(folder).left_over_directories(unreadable)) == longest


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\n\n",
        bytes(53),
        b"\xff\xfe\n",
        b"/etc\n",
        b"objects/../../etc\n",
        directory(2).upper().encode() + b"a",
    ],
)
def test_what_is_no_series_directory_is_passed_over(folder: Path, junk: bytes) -> None:
    (folder / "directories.1").write_bytes(junk + f"\n{directory(1)}\n".encode())
    assert list(made(folder).left_over_directories(unreadable)) == [directory(1)]


def test_a_ledger_that_cannot_be_read_is_told_of_and_the_others_are_read(folder: Path) -> None:
    (folder / "directories.1").mkdir()
    (folder / "directories.2").write_text(f"{directory(1)}\n")
    told: list[tuple[str, int | None]] = []
    found = made(folder).left_over_directories(lambda name, error: told.append((name, error.errno)))
    assert list(found) == [directory(1)]
    assert told == [("directories.1", errno.EISDIR)]


def test_left_over_ledgers_stay_until_settled_and_new_ones_do_not_touch_them(folder: Path) -> None:
    (folder / "directories.9").write_text(f"{directory(1)}\n")
    (folder / "directories.10").write_text(f"{directory(1)}\n{directory(2)}\n")
    (folder / "directories.x").write_text(f"{directory(3)}\n")
    ledger = made(folder)
    ledger.enter(directory(4), "new")
    assert sorted(ledger.left_over_directories(unreadable)) == [directory(1), directory(2)]
    ledger.settle()
    ledger.settle()
    assert list(ledger.left_over_directories(unreadable)) == []
    assert names(folder) == ["directories.11", "directories.x"]


def test_a_record_cut_by_a_full_disk_is_overwritten_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = made(folder)
    ledger.enter(directory(1), "first")
    real = os.pwrite

    def short(descriptor: int, data: Any, offset: int) -> int:
        if len(data) > 20:
            return real(descriptor, data[:20], offset)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", short)
    with monkeypatch.context() as during:
        during.setattr(os, "pwrite", lambda fd, data, at: short(fd, data, at) if len(data) > 40 else _full())
        with pytest.raises(OSError, match="full"):
            ledger.enter(directory(2), "second")
    monkeypatch.setattr(os, "pwrite", real)
    ledger.enter("objects/A", "third")
    text = (folder / "directories.1").read_text()
    assert text.startswith(f"{directory(1)}\nobjects/A\n")
    assert not text.endswith("\n"), "of the longer record that was cut short something is left"
    assert list(made(folder).left_over_directories(unreadable)) == [directory(1), "objects/A"]
    ledger.report("first")
    ledger.report("third")
    ledger.close()
    assert names(folder) == []


def _full() -> int:
    raise OSError(errno.ENOSPC, "full")


def test_after_a_failed_sync_a_generation_is_trusted_no_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = made(folder, durable=True)
    ledger.enter(directory(1), "first")
    with monkeypatch.context() as during:
        during.setattr(os, "fdatasync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "lost")))
        with pytest.raises(OSError, match="lost"):
            ledger.enter(directory(2), "second")
    ledger.enter(directory(2), "third")
    assert names(folder) == ["directories.1", "directories.2"]
    assert (folder / "directories.2").read_text() == f"{directory(2)}\n"


def test_those_who_wait_for_a_sync_share_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = made(folder, durable=True)
    ledger.enter(directory(0), "object 0")
    syncs: list[int] = []
    reached, let_through = threading.Event(), threading.Event()
    real = os.fdatasync

    def slow(descriptor: int) -> None:
        syncs.append(os.fstat(descriptor).st_size // 53)
        if len(syncs) == 1:
            reached.set()
            assert let_through.wait(10)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(ledger.enter, directory(1), "object 1")
        assert reached.wait(10)
        others = [pool.submit(ledger.enter, directory(n), f"object {n}") for n in range(2, 7)]
        while (folder / "directories.1").stat().st_size < 7 * 53:
            threading.Event().wait(0.001)
        assert not any(each.done() for each in others)
        let_through.set()
        for each in (first, *others):
            each.result(10)
    assert syncs == [2, 7]


def test_concurrent_entries_and_reports_end_with_nothing_left(folder: Path) -> None:
    ledger = made(folder, durable=False)

    def work(worker: int) -> None:
        for number in range(2000):
            ledger.enter(directory((worker * 2000 + number) % 700), f"{worker}.{number}")
            ledger.report(f"{worker}.{number}")

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(work, worker) for worker in range(4)]:
            each.result()
    ledger.close()
    assert names(folder) == []
