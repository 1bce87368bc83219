"""The language of the control socket: one JSON object on each line, a request and then its answer.

A long command says before its answer how far it is, at least every TELL_SECONDS, and what it finds, on lines
of at most ITEMS_IN_LINE items. So whoever asked waits for silence to end, not for the command.

::

    {"version": 1, "command": "quarantine.show", "arguments": {"id": "18f0..."}}
    {"version": 1, "progress": {"stage": "deleting files", "done": 12, "total": 200}}
    {"version": 1, "items": [{...}, {...}]}
    {"version": 1, "ok": true, "result": {...}}
    {"version": 1, "ok": false, "code": "not_found", "error": "no such object in quarantine"}

The next request follows on the same connection. The socket is `control.sock` in the data folder, and only its
owner may open it (mode 0600).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from scp_server.errors import ConfigurationError

VERSION: Final = 1
SOCKET_NAME: Final = "control.sock"
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
"""Longest answer that a client reads; lists come in pages far below it."""

TELL_SECONDS: Final = 0.5
"""How often a long command says how far it is."""
ITEMS_IN_LINE: Final = 200
"""Findings on one line; a command that has more to tell waits until they were sent."""
MAX_SILENCE_SECONDS: Final = 60.0
"""After this long without a line of a long command its server hangs, as far as a client can tell."""

_MAX_ADDRESS_BYTES = 100
"""An address of a Unix socket has room for 107 bytes on Linux, 103 elsewhere."""


class FailureCode(StrEnum):
    """Why a command was not done."""

    REQUEST = "request"
    """The request is no request: no JSON, too long, another version, an unknown command or argument."""
    NOT_FOUND = "not_found"
    FAILED = "failed"
    """The command was understood and could not be done."""
    TIMEOUT = "timeout"
    INTERNAL = "internal"


def encode_line(document: dict[str, Any]) -> bytes:
    """A request or an answer, ready to be sent: ASCII, one line."""
    return json.dumps({"version": VERSION, **document}).encode("ascii") + b"\n"


def decode_line(line: bytes) -> dict[str, Any]:
    """A line as it arrived. Raises ValueError when it is no object of this version."""
    try:
        document = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    if document.get("version") != VERSION:
        raise ValueError(f"this server speaks version {VERSION}")
    return document


@contextmanager
def socket_address(data_dir: Path) -> Iterator[str]:
    """The control socket's address while the block runs, also where the folder's path is too long for one.

    Raises ConfigurationError where the system has no way around that, OSError when there is no such folder.
    """
    address = str(data_dir.absolute() / SOCKET_NAME)
    if len(os.fsencode(address)) <= _MAX_ADDRESS_BYTES:
        yield address
        return
    if not os.path.isdir("/proc/self/fd"):
        raise ConfigurationError(f"data_dir: the path is too long for a socket in it: {data_dir}")
    folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET_NAME}"
    finally:
        os.close(folder)
