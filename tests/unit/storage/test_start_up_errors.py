"""A start that cannot read everything: the rest is examined, nothing is deleted, and it looks again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scp_server.observability.logs import captured_logs
from scp_server.storage.filesystem import FilesystemStorage
from scp_server.storage.template import LayoutTemplate
from scp_server.testing.stored_objects import arrival_id, in_flight, listed, object_key, store

Opened = Callable[..., AbstractAsyncContextManager[FilesystemStorage]]
Files = Callable[[Path], list[str]]


@pytest.fixture
async def series(opened: Opened, root: Path) -> list[str]:
    """The locations of two objects in two series, which the last process left in flight."""
    async with opened(root) as storage:
        return [
            (await store(storage, b"x", key=object_key(arrival_id(), series=f"1.2.{number}"))).location
            for number in (1, 2)
        ]


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch, root: Path) -> Callable[[str], None]:
    """Call it with a directory that cannot be listed from now on."""

    def make(directory: str) -> None:
        real = os.scandir

        def scandir(path: Any) -> Any:
            if str(path) == f"{root}/{directory}":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)

    return make


async def test_a_directory_that_cannot_be_read_is_logged_and_looked_into_at_the_next_start(
    opened: Opened,
    files: Files,
    root: Path,
    series: list[str],
    unreadable: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = files(root)
    unreadable(os.path.dirname(series[0]))
    async with opened(root) as storage:
        with captured_logs() as logs:
            assert await in_flight(storage) == {series[1]}
        await storage.settled()
        await storage.indexed(await store(storage, b"next"))
    (record,) = [record for record in logs if record["event"] == "recovery.not_examined"]
    assert record["location"] == os.path.dirname(series[0])
    assert record["error"] == "cannot list: Input/output error"
    monkeypatch.undo()
    assert set(before) <= set(files(root))
    async with opened(root) as storage:
        assert await in_flight(storage) == set(series)
        await storage.settled()
        assert os.listdir(root / "incoming") == []


async def test_a_directory_that_may_name_a_person_is_not_named_in_the_log(
    opened: Opened, root: Path, unreadable: Callable[[str], None]
) -> None:
    async with opened(root, layout=LayoutTemplate("{patient}/{series}/{instance}")) as storage:
        key = replace(object_key(arrival_id()), patient_id="ZEBRA-1")
        stored = await store(storage, b"x", key=key)
    directory = os.path.dirname(stored.location)
    assert "ZEBRA-1" in directory
    unreadable(directory)
    async with opened(root) as storage:
        with captured_logs() as logs:
            assert await in_flight(storage) == set()
    (record,) = [record for record in logs if record["event"] == "recovery.not_examined"]
    assert record["location"] == "objects/**"
    assert "ZEBRA" not in repr(logs)


async def test_a_ledger_that_cannot_be_read_is_logged_and_stays(
    opened: Opened, root: Path, series: list[str]
) -> None:
    (root / "incoming" / "directories.99").mkdir()
    async with opened(root) as storage:
        with captured_logs() as logs:
            assert await in_flight(storage) == set(series)
        await storage.settled()
        assert set(await listed(storage)) == set(series)
    (record,) = [record for record in logs if record["event"] == "recovery.not_examined"]
    assert record["location"] == "incoming/directories.99"
    assert "directories.99" in os.listdir(root / "incoming")
