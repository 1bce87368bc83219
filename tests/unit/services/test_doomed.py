"""What is sent while an administrator's deletion of the same is under way is kept in its own right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pytest

from scp_server.errors import StorageError
from scp_server.services.storage import StorageService
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_operation import store_operation
from scp_server.testing.objects import ct_image
from scp_server.testing.storage_bench import StorageBench

STORED = ct_image()
OTHER_BYTES = dataclasses.replace(STORED, dataset=STORED.dataset[:-2] + b"\xaa\xbb")


class _Decided:
    """Deletions that were decided."""

    def __init__(self, *locations: str, error: Exception | None = None) -> None:
        self._locations = set(locations)
        self._error = error

    async def doomed(self, wanted: Iterable[str]) -> set[str]:
        if self._error is not None:
            raise self._error
        return self._locations & set(wanted)


async def _kept(bench: StorageBench) -> str:
    await bench.service.store(store_operation(STORED))
    (part,) = await bench.index.parts(STORED.sop_instance_uid)
    return part.location


@pytest.mark.parametrize("sent", [STORED, OTHER_BYTES], ids=["same bytes", "other bytes"])
async def test_what_meets_only_what_is_doomed_is_kept_itself(tmp_path: Path, sent: EncodedObject) -> None:
    async with StorageBench(tmp_path) as bench:
        doomed = await _kept(bench)
        bench.service = StorageService(bench.storage, bench.index, bench.config, deletions=_Decided(doomed))
        assert await bench.status(store_operation(sent)) == 0x0000
        (part,) = await bench.index.parts(STORED.sop_instance_uid)
        assert part.location != doomed
        assert bench.place.objects[part.location].endswith(sent.dataset)
        assert doomed in bench.place.objects, "the file is the deletion's to remove"
        assert await bench.left_in_flight() == set()


async def test_what_meets_something_else_than_what_is_doomed_is_decided_as_ever(tmp_path: Path) -> None:
    async with StorageBench(tmp_path) as bench:
        kept = await _kept(bench)
        bench.service = StorageService(bench.storage, bench.index, bench.config, deletions=_Decided("else"))
        assert await bench.status(store_operation(STORED)) == 0x0000
        assert await bench.status(store_operation(OTHER_BYTES)) == 0xC111
        assert list(bench.place.objects) == [kept]


async def test_where_nobody_can_say_what_is_doomed_nothing_is_acknowledged(tmp_path: Path) -> None:
    async with StorageBench(tmp_path) as bench:
        kept = await _kept(bench)
        decided = _Decided(error=StorageError("the record cannot be read"))
        bench.service = StorageService(bench.storage, bench.index, bench.config, deletions=decided)
        assert await bench.status(store_operation(STORED)) == 0xA700
        assert list(bench.place.objects) == [kept]
