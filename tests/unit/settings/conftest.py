from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SCP_SERVER_") or name == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(name)
