"""Copying files into a folder: durable, never half, and read only once."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from scp_server.runtime.maintenance.manifest import Entry, open_beneath
from scp_server.storage.sync import DIRECTORY_MODE, FILE_MODE, write_all

_COPY_BYTES = 1 << 20
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
"""What a file system says that cannot link this file there."""


def make_parent(path: Path) -> None:
    """Make the folder that `path` is to lie in. Raises OSError."""
    path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)


def link(source: Path, target: Path, location: str) -> bool:
    """Give a file a second name below `target`; False where the file systems cannot. Raises OSError."""
    make_parent(target / location)
    try:
        os.link(source / location, target / location, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


def copy(source: Path, target: Path, location: str, *, to: str = "", expected: Entry | None = None) -> Entry:
    """Copy a file, durably; returns what it holds. It appears under its name (`to`, where given) when whole.

    With `expected` it appears only when it holds that. Blocks; raises OSError, and then leaves nothing.
    """
    final = target / (to or location)
    make_parent(final)
    unfinished = final.with_name(final.name + ".tmp")
    digest, size_bytes = blake3(), 0
    descriptor = -1
    try:
        with open_beneath(source, location) as file:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(unfinished, flags, FILE_MODE)
            while data := file.read(_COPY_BYTES):
                digest.update(data)
                size_bytes += write_all(descriptor, [data])
        os.fdatasync(descriptor)
        found = Entry(location, size_bytes, digest.hexdigest())
        if expected is None or (found.size_bytes, found.digest) == (expected.size_bytes, expected.digest):
            unfinished.replace(final)
        return found
    finally:
        if descriptor >= 0:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                unfinished.unlink()
