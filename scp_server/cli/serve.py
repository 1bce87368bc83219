"""`scp-server serve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scp_server.errors import ConfigurationError


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


def remotes(options: Sequence[str]) -> list[dict[str, object]] | None:
    """`AET=HOST:PORT` of each `--remote` as a table; an IPv6 address is in brackets. None without any.

    Raises ConfigurationError for another form; what the parts say is judged with the settings.
    """
    tables: list[dict[str, object]] = []
    for option in options:
        ae_title, equals, address = option.rpartition("=")
        host, colon, port = address.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            colon = ""
        if not (equals and colon and port.isascii() and port.isdigit()):
            raise ConfigurationError(f"--remote {option!r}: must be AET=HOST:PORT, such as PACS=10.1.2.3:104")
        tables.append({"ae_title": ae_title, "host": host, "port": int(port[:6])})
    return tables or None


def run_server(config: Path | None, overrides: Mapping[str, Any]) -> int:
    """Load the settings and run the server; returns its exit code. Raises ConfigurationError."""
    from scp_server.settings import load_settings

    settings = load_settings(config, overrides)
    from scp_server.runtime.daemon import run

    return run(settings, lambda: load_settings(config, overrides))
