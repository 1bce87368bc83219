"""Secrets that stand in files of their own, so that the settings can be shown and copied."""

from __future__ import annotations

from pathlib import Path

from scp_server.errors import ConfigurationError

MAX_SECRET_BYTES = 4_096


def read_secret(path: Path, where: str) -> str:
    """The text of the file without the line break at its end. `where` is the setting that names it, for what
    is raised: ConfigurationError."""
    where = f"{where} {path}"
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(MAX_SECRET_BYTES + 1).decode("utf-8")
    except OSError as error:
        raise ConfigurationError(f"{where} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, RuntimeError) as error:
        raise ConfigurationError(f"{where} cannot be read: it is no text") from error
    return text.removesuffix("\n").removesuffix("\r")
