"""`scp-server serve`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def tables(options: Mapping[str, object]) -> dict[str, Any]:
    """Options by dotted key as tables in tables; those that were not given (None) are left out."""
    tree: dict[str, Any] = {}
    for key, value in options.items():
        if value is None:
            continue
        *sections, name = key.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = value
    return tree


def run_server(config: Path | None, overrides: Mapping[str, Any]) -> int:
    """Load the settings and run the server; returns its exit code. Raises ConfigurationError."""
    from scp_server.settings import load_settings

    settings = load_settings(config, overrides)
    from scp_server.runtime.daemon import run

    return run(settings, lambda: load_settings(config, overrides))
