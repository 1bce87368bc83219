from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scp_server.storage import directories as module
from scp_server.storage.directories import DirectoryTree
from scp_server.storage.sync import sync_directory

SERIES = "objects/ab/study/series"


@pytest.fixture
def tree(tmp_path: Path) -> DirectoryTree:
    (tmp_path / "objects").mkdir()
    return DirectoryTree(str(tmp_path), durable=True)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    paths: list[str] = []
    monkeypatch.setattr(module, "sync_directory", lambda path: paths.append(os.path.relpath(path, tmp_path)))
    return paths


def test_parents_are_synced_even_of_directories_that_exist(
    tmp_path: Path, tree: DirectoryTree, synced: list[str]
) -> None:
    (tmp_path / SERIES).mkdir(parents=True)
    tree.ensure(SERIES)
    assert synced == ["objects", "objects/ab", "objects/ab/study"]
    tree.ensure(SERIES)
    assert len(synced) == 3


def test_a_directory_whose_parent_could_not_be_synced_stays_unknown(
    tmp_path: Path, tree: DirectoryTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str) -> None:
        raise OSError("broken")

    with monkeypatch.context() as during:
        during.setattr(module, "sync_directory", broken)
        with pytest.raises(OSError, match="broken"):
            tree.ensure(SERIES)
    seen: list[str] = []
    monkeypatch.setattr(module, "sync_directory", seen.append)
    tree.ensure(SERIES)
    assert len(seen) == 3


def test_nobody_uses_a_directory_before_its_maker_has_synced_it(
    tmp_path: Path, tree: DirectoryTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, let_through = threading.Event(), threading.Event()

    def slow(path: str) -> None:
        reached.set()
        assert let_through.wait(10)

    monkeypatch.setattr(module, "sync_directory", slow)
    with ThreadPoolExecutor(2) as pool:
        maker = pool.submit(tree.ensure, SERIES)
        assert reached.wait(10)
        other = pool.submit(tree.ensure, "objects/ab/study/other")
        with pytest.raises(TimeoutError):
            other.result(0.05)
        let_through.set()
        maker.result(10)
        other.result(10)


def test_prune_removes_empty_parents_up_to_objects(
    tmp_path: Path, tree: DirectoryTree, synced: list[str]
) -> None:
    tree.ensure(SERIES)
    tree.ensure("objects/ab/study/other")
    tree.prune(SERIES)
    assert sorted(os.listdir(tmp_path / "objects/ab/study")) == ["other"]
    tree.prune("objects/ab/study/other")
    assert os.listdir(tmp_path / "objects") == []
    tree.prune(SERIES)
    synced.clear()
    tree.ensure(SERIES)
    assert synced == ["objects", "objects/ab", "objects/ab/study"]


def test_prune_keeps_what_is_not_empty_known(tmp_path: Path, tree: DirectoryTree, synced: list[str]) -> None:
    tree.ensure(SERIES)
    (tmp_path / SERIES / "object").touch()
    synced.clear()
    tree.prune(SERIES)
    tree.ensure(SERIES)
    assert synced == []


def test_a_known_parent_removed_by_hand_is_made_again(tmp_path: Path, tree: DirectoryTree) -> None:
    tree.ensure(SERIES)
    for level in (SERIES, "objects/ab/study", "objects/ab"):
        (tmp_path / level).rmdir()
    tree.ensure("objects/ab/study/other")
    assert (tmp_path / "objects/ab/study/other").is_dir()


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was synced, and was there to be synced."""
    paths: list[str] = []

    def noted(path: str) -> None:
        sync_directory(path)
        paths.append(os.path.relpath(path, tmp_path))

    monkeypatch.setattr(module, "sync_directory", noted)
    return paths


def test_sync_nearest_takes_the_first_directory_that_is_left(
    tmp_path: Path, tree: DirectoryTree, done: list[str]
) -> None:
    (tmp_path / "objects/ab").mkdir()
    tree.sync_nearest([SERIES])
    (tmp_path / "objects/ab").rmdir()
    tree.sync_nearest([SERIES])
    assert done == ["objects/ab", "objects"]


def test_sync_nearest_syncs_each_directory_once_and_a_parent_after_what_was_missing_below_it(
    tmp_path: Path, tree: DirectoryTree, done: list[str]
) -> None:
    left = "objects/ab/study/left"
    (tmp_path / left).mkdir(parents=True)
    tree.sync_nearest(["objects/ab/study", *(f"objects/ab/study/{number}" for number in range(3)), left])
    assert done == [left, "objects/ab/study"]
    done.clear()
    tree.sync_nearest(["objects/cd/study/series", "objects/cd", "objects/ab/gone"])
    assert done == ["objects/ab", "objects"]
    done.clear()
    tree.sync_nearest([])
    assert done == []


def test_what_is_known_is_bounded(
    tmp_path: Path, tree: DirectoryTree, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_KNOWN", 10)
    for number in range(50):
        tree.ensure(f"objects/ab/study/{number}")
        assert len(tree._known) <= 10
    assert len(os.listdir(tmp_path / "objects/ab/study")) == 50


def test_making_and_removing_at_once_never_fails(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    tree = DirectoryTree(str(tmp_path), durable=False)

    def work(_: Any) -> None:
        for _ in range(300):
            tree.ensure(SERIES)
            tree.prune(SERIES)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert os.listdir(tmp_path / "objects") == []
