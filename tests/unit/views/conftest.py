from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scp_server.testing.encoded_object import EncodedObject

Store = Callable[[EncodedObject], Path]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Write an object as a Part 10 file; another call, another file."""

    def write(one: EncodedObject) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir())):03d}.dcs"
        path.write_bytes(one.part10())
        return path

    return write
