"""Settings of a server on free loopback ports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scp_server.settings import Settings


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings with free loopback ports and `tmp_path / "data"`; sections are merged over that."""

    def make(**sections: Any) -> Settings:
        chosen: dict[str, Any] = {
            "listen": {"port": 0},
            "http": {"port": 0},
            "data_dir": tmp_path / "data",
            "drain_timeout_seconds": 1,
            "storage": {"durability": "process"},
            "index": {"busy_timeout_seconds": 0.1},
        }
        for name, section in sections.items():
            known = chosen.get(name)
            chosen[name] = {**known, **section} if isinstance(known, dict) else section
        return Settings(**chosen)

    return make
