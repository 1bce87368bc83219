"""What a backup says of itself: one JSON line for each object, between a first and a last line.

::

    {"format": 1, "kind": "scp-server backup", "created": "2026-01-01T00:00:00Z"}
    {"location": "objects/...", "size_bytes": 1, "digest": "<BLAKE3 of the file>"}
    {"index": "index/index.sqlite", "size_bytes": 1, "digest": "..."}
    {"complete": true, "objects": 1, "parts": 1, "bytes": 1}

It gets its name when it is whole: a folder without `manifest.jsonl` is no backup.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from scp_server.errors import ConfigurationError
from scp_server.storage.layout import is_location
from scp_server.storage.sync import sync_directory

NAME = "manifest.jsonl"
INDEX = "index/index.sqlite"
_KIND = {"format": 1, "kind": "scp-server backup"}
_LINE_CHARACTERS = 4_096
_DIGEST = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a backup. `damaged`: it had not the digest that the index gives it when it was taken."""

    location: str
    size_bytes: int
    digest: str
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Outline:
    """What the last line says: objects in the backup, parts in its index, bytes of the objects."""

    objects: int
    parts: int
    bytes: int


class ManifestWriter:
    """Writes a manifest beside its name; `finish` gives it the name. Blocks; raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{NAME}.tmp"
        self._file = self._path.open("x", encoding="ascii")
        self._line({**_KIND, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})

    def add(self, entry: Entry) -> None:
        """An object."""
        damaged = {"damaged": True} if entry.damaged else {}
        self._line({"location": entry.location, **_content(entry), **damaged})

    def finish(self, index: Entry, outline: Outline) -> None:
        """The index and the last line; then it is durable, and has its name."""
        self._line({"index": INDEX, **_content(index)})
        totals = {"objects": outline.objects, "parts": outline.parts, "bytes": outline.bytes}
        self._line({"complete": True, **totals})
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        self._path.replace(self._folder / NAME)
        sync_directory(str(self._folder))

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _line(self, document: dict[str, Any]) -> None:
        self._file.write(json.dumps(document) + "\n")


def _content(entry: Entry) -> dict[str, Any]:
    return {"size_bytes": entry.size_bytes, "digest": entry.digest}


class Manifest:
    """A backup's manifest, read as often as wanted. Nothing in it is trusted. Blocks."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def outline(self) -> tuple[Entry, Outline]:
        """The index and the last line, once every line was looked at. Raises ConfigurationError."""
        index: Entry | None = None
        count = 0
        for document in self._lines():
            if "complete" in document and index is not None:
                outline = Outline(*[self._number(document, name) for name in ("objects", "parts", "bytes")])
                if outline.objects != count:
                    raise self._wrong("is not whole")
                return index, outline
            if document.get("index") == INDEX:
                index = self._entry(document, INDEX)
            else:
                self._object(document)
                count += 1
        raise self._wrong("is not whole")

    def objects(self) -> Iterator[Entry]:
        """Every object. Raises ConfigurationError."""
        for document in self._lines():
            if "index" in document:
                return
            yield self._object(document)

    def _object(self, document: dict[str, Any]) -> Entry:
        location = document.get("location")
        if not isinstance(location, str) or not is_location(location):
            raise self._wrong("names something that is no object")
        return self._entry(document, location)

    def _entry(self, document: dict[str, Any], location: str) -> Entry:
        digest = document.get("digest")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise self._wrong("has a line without a digest")
        damaged = document.get("damaged") is True
        return Entry(location, self._number(document, "size_bytes"), digest, damaged)

    def _number(self, document: dict[str, Any], name: str) -> int:
        number = document.get(name)
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise self._wrong(f"has a line without {name}")
        return number

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            with self._path.open(encoding="ascii") as file:
                first = True
                while line := file.readline(_LINE_CHARACTERS):
                    document = json.loads(line) if line.endswith("\n") else None
                    if not isinstance(document, dict):
                        raise self._wrong("has a line that is no JSON object")
                    if first and any(document.get(key) != value for key, value in _KIND.items()):
                        raise self._wrong("is of a kind that this version does not know")
                    if not first:
                        yield document
                    first = False
        except FileNotFoundError as error:
            raise ConfigurationError(f"{self._path.parent} is no backup: it has no {NAME}") from error
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise self._wrong("has a line that is no JSON object") from error

    def _wrong(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"{self._path} {what}")


def file_entry(root: Path, location: str) -> Entry:
    """Read a file whole. Blocks; raises OSError."""
    digest, size_bytes = blake3(), 0
    with open_beneath(root, location) as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
            size_bytes += len(data)
    return Entry(location, size_bytes, digest.hexdigest())


def open_beneath(root: Path, location: str) -> Any:
    """Open a file for reading, no symbolic link. Raises OSError."""
    return os.fdopen(os.open(root / location, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb", buffering=0)
