"""Where the time of an object goes is told for those that went through all stages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scp_server.errors import IndexUnavailable, StorageFull
from scp_server.observability.measures import ReceptionMeasures
from scp_server.services.storage import StorageService
from scp_server.testing.fake_operation import store_operation
from scp_server.testing.objects import ct_image
from scp_server.testing.storage_bench import StorageBench


@pytest.fixture
def measures() -> ReceptionMeasures:
    return ReceptionMeasures()


@pytest.fixture
async def bench(tmp_path: Path, measures: ReceptionMeasures) -> AsyncIterator[StorageBench]:
    async with StorageBench(tmp_path) as bench:
        bench.service = StorageService(bench.storage, bench.index, bench.config, measures)
        yield bench


def _told(measures: ReceptionMeasures) -> list[int]:
    stages = (measures.receive, measures.parse, measures.persist, measures.index)
    return [sum(histogram.counts) for histogram in stages]


async def test_each_stage_of_a_kept_object_is_told_once(
    bench: StorageBench, measures: ReceptionMeasures
) -> None:
    for _ in range(2):
        assert await bench.status(store_operation(ct_image())) == 0x0000
    assert _told(measures) == [2, 2, 2, 2]
    assert min(measures.parse.sum, measures.persist.sum, measures.index.sum) > 0


@pytest.mark.parametrize(
    ("step", "error"), [("begin", StorageFull("full")), ("add", IndexUnavailable("locked"))]
)
async def test_an_object_that_fails_on_the_way_is_not_told(
    bench: StorageBench, measures: ReceptionMeasures, step: str, error: Exception
) -> None:
    bench.steps.fail_at(step, error)
    assert await bench.status(store_operation(ct_image())) == 0xA700
    assert _told(measures) == [0, 0, 0, 0]
