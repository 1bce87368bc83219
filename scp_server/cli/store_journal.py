"""What `store --resume` remembers: the files that a peer has acknowledged, each with a line of its own.

A file is known again by its real path, size and time of change. The journal is of one peer; a line is there
only once 0x0000 has come, so that what was in hand at a kill is sent again.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from scp_server.cli.peer import Peer
from scp_server.cli.store_plan import Candidate
from scp_server.errors import ConfigurationError

_KIND: Final = "scp-server store journal 1"
Known = tuple[str, int, int]
"""Real path, size in bytes, time of change in nanoseconds."""


class StoreJournal:
    """A journal in a file, locked while it is open: `with StoreJournal(path, peer) as journal:`."""

    def __init__(self, path: Path, peer: Peer) -> None:
        self._path = path
        self._peer = [peer.host, peer.port, peer.called_ae_title]
        self._descriptor = -1
        self._acknowledged: set[Known] = set()

    def __enter__(self) -> Self:
        """Read it, or begin it. Raises ConfigurationError for a file that is no journal of this peer's."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._close()
            raise ConfigurationError(f"{self._path} is in use by another store") from None
        except OSError as error:
            self._close()
            raise ConfigurationError(f"{self._path} cannot be used: {error.strerror}") from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def has(self, candidate: Candidate) -> bool:
        """Whether the peer has acknowledged this file as it is now."""
        return _known(candidate) in self._acknowledged

    def acknowledged(self, candidate: Candidate) -> None:
        """The peer has answered 0x0000. Raises OSError."""
        known = _known(candidate)
        self._acknowledged.add(known)
        self._append(list(known))

    def _read(self) -> None:
        with open(self._descriptor, "rb", closefd=False) as file:
            first = file.readline()
            if not first:
                self._append({"kind": _KIND, "peer": self._peer})
                return
            head = _parsed(first)
            if not isinstance(head, dict) or head.get("kind") != _KIND:
                raise ConfigurationError(f"{self._path} is no journal of store")
            if head.get("peer") != self._peer:
                raise ConfigurationError(f"{self._path} is the journal of another peer: {head.get('peer')}")
            line = first
            for line in file:
                entry = _parsed(line)
                if isinstance(entry, list) and len(entry) == 3:
                    self._acknowledged.add((str(entry[0]), int(entry[1]), int(entry[2])))
        if not line.endswith(b"\n"):
            # The last line was cut off by a kill: what follows it is to be read.
            os.write(self._descriptor, b"\n")

    def _append(self, entry: object) -> None:
        data = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _known(candidate: Candidate) -> Known:
    size_bytes = candidate.dataset_offset_bytes + candidate.dataset_bytes
    return os.path.realpath(candidate.path), size_bytes, candidate.modified_ns


def _parsed(line: bytes) -> object:
    """A line's value; None for one that was cut."""
    try:
        parsed: object = json.loads(line)
    except ValueError:
        return None
    return parsed
