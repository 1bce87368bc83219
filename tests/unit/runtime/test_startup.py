"""What a start asks of index and disk does not grow with the archive (its time: `benchmarks/startup.py`)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from scp_server.runtime.build import build_index
from scp_server.runtime.server import Server
from scp_server.settings import Settings
from scp_server.testing.archive import Archive
from scp_server.testing.objects import ct_image

MakeSettings = Callable[..., Settings]
LOOKING = ("stat", "lstat", "listdir", "scandir", "open")


class _Work:
    """Counts what the database's machine does, and what is looked at below a folder."""

    def __init__(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self._data_dir = str(data_dir)
        for name in LOOKING:
            monkeypatch.setattr(os, name, self._counting(name, getattr(os, name)))

    def watch(self, connection: Any, _record: object) -> None:
        """Count the steps of the virtual machine: a statement that walks a table has many."""
        connection.set_progress_handler(self._step, 1)

    def _step(self) -> int:
        self.counts["database"] += 1
        return 0

    def _counting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if str(path).startswith(self._data_dir):
                self.counts[name] += 1
            return call(path, *arguments, **options)

        return counted


async def _settle(settings: Settings) -> None:
    """Only studies that something came for in the last minute are not settled, however many there are."""
    index = build_index(settings)
    await index.open()
    await index.event_log.settle_studies(2**62)
    await index.close()


async def _work_of_start(settings: Settings, instances: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The work of starting with so many instances, each in a study of its own."""
    settings = settings.model_copy(update={"data_dir": settings.data_dir / str(instances)})
    objects = [
        ct_image(seed=number, rows=2, columns=2, study_instance_uid=f"1.2.{number}", series_instance_uid="1")
        for number in range(instances)
    ]
    assert set(await Archive(settings).store(objects)) == {0}
    await _settle(settings)
    server = Server(settings)
    with monkeypatch.context() as patched:
        work = _Work(settings.data_dir, patched)
        event.listen(Engine, "connect", work.watch)
        try:
            await server.start()
            totals = await server.index.totals()
        finally:
            event.remove(Engine, "connect", work.watch)
    await server.stop()
    assert totals.parts == instances
    return work.counts


async def test_a_start_with_many_objects_is_as_much_work_as_with_one(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(index={"compare_at_start": False})
    one = await _work_of_start(settings, 1, monkeypatch)
    many = await _work_of_start(settings, 60, monkeypatch)
    assert many == one
    assert one["database"] > 0
    assert one["listdir"] > 0
