"""What every room's tests share: hypothesis profiles, a manual clock, and the rule for missing peers."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import settings

# The test kit's assertions explain themselves, too; before anything of it is imported.
pytest.register_assert_rewrite("scp_server.testing")

from scp_server.testing.clock import ManualClock  # noqa: E402

settings.register_profile("bounded", max_examples=60, deadline=None)
settings.register_profile("long", max_examples=5_000, deadline=None)
settings.load_profile(os.environ.get("SCP_HYPOTHESIS_PROFILE", "bounded"))


@pytest.fixture
def manual_clock() -> ManualClock:
    """A clock that stands still until `advance`."""
    return ManualClock()


@pytest.fixture
def require_peer() -> Callable[[str, object], None]:
    """Call it with a real peer's name and whether it is there; a missing one skips, and fails in CI."""

    def require(name: str, there: object) -> None:
        if there:
            return
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed, and CI may not do without it")
        pytest.skip(f"{name} is not installed")

    return require
