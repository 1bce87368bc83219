"""Which data folder a command means, for those that speak to a running server or look at its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scp_server.settings import Settings


def data_folder(given: Path | None) -> Path:
    """`--data-dir`, else what the environment says, else the default. Raises ConfigurationError."""
    return given if given is not None else offline_settings(None).data_dir


def offline_settings(data_dir: Path | None) -> Settings:
    """The settings of the environment, for `data_dir` where one is given. Raises ConfigurationError."""
    from scp_server.settings import load_settings

    overrides: dict[str, Any] = {} if data_dir is None else {"data_dir": data_dir}
    return load_settings(None, overrides)
