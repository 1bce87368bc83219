"""Retrieves on their bench."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scp_server.testing.encoded_object import make_uid
from scp_server.testing.objects import ct_image
from scp_server.testing.retrieve_bench import RetrieveBench

SLICES = 5


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[RetrieveBench]:
    """An archive of one CT with five slices, of the study `make_uid("study")`."""
    slices = [ct_image(seed=n, study_instance_uid=make_uid("study")) for n in range(SLICES)]
    async with await RetrieveBench.of(tmp_path, slices) as bench:
        yield bench
