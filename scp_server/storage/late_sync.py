"""Making objects durable after they became visible, many with one system call.

`syncfs` (Linux) writes out whatever a filesystem holds back, names and data alike, and waits for it. It is
used where it is known to do so and to tell of what could not be written: on the filesystems named here, from
Linux 5.8 on. Elsewhere (FUSE, for one, takes syncfs for nothing) each file and each directory is synced.

A sync tells of a failure once; asked again it says yes to what the first one lost. So after a failure only
writing the bytes again, and syncing those, makes them durable.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress

from scp_server.storage.directories import DirectoryTree
from scp_server.storage.layout import INCOMING, OBJECTS, PART_SUFFIX, directory_of
from scp_server.storage.sync import FILE_MODE, write_all, write_at

SYNCFS_FILESYSTEMS = frozenset({"ext4", "xfs", "btrfs", "f2fs", "tmpfs"})
"""Those whose syncfs does what the syncs of all files would do; on tmpfs that is nothing."""
_FIRST_KERNEL_THAT_TELLS = (5, 8)
"""Before it, syncfs returns 0 also when a page could not be written."""
_MOUNTS = "/proc/self/mountinfo"

SyncFilesystem = Callable[[int], None]
"""Sync the filesystem that a descriptor lies on. Raises OSError."""


class LateSync:
    """What a storage does for objects whose syncs were left out. Methods block; any thread may call them."""

    def __init__(self, root: str, directories: DirectoryTree) -> None:
        self._root = root
        self._directories = directories
        self._sync: SyncFilesystem | None = None
        self._descriptor = -1

    def open(self) -> None:
        """Before the first object: a failure is told to who had the filesystem open when it happened.
        Raises OSError."""
        self._sync = syncfs_for(f"{self._root}/{OBJECTS}")
        if self._sync is not None:
            self._descriptor = os.open(f"{self._root}/{OBJECTS}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the filesystem back."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def make_durable(self, locations: Sequence[str]) -> None:
        """Make objects durable; those that are gone are passed over. Raises OSError."""
        if self._sync is not None:
            self._sync(self._descriptor)
            return
        for location in locations:
            with suppress(FileNotFoundError):
                self.sync_bytes(location)
        self._directories.sync_nearest(set(map(directory_of, locations)))

    def sync_bytes(self, location: str) -> None:
        """Make the bytes of one object durable, not its name. Raises OSError."""
        descriptor = os.open(f"{self._root}/{location}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def rewrite(self, location: str, content: bytes) -> bool:
        """Write an object's bytes over themselves, so that a sync has them to write again. False where it is
        gone: then it is not made, for somebody has deleted it. Raises OSError."""
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(f"{self._root}/{location}", flags)
        except FileNotFoundError:
            return False
        try:
            write_at(descriptor, content, 0)
        finally:
            os.close(descriptor)
        return True

    def restore(self, location: str, content: bytes) -> bool:
        """Put an object into its place unless it is there with these bytes; whether it was not. Not durable
        yet. Nobody else may write or delete meanwhile. Raises OSError.

        One that is there is rewritten: what an earlier process was told of a failed sync nobody knows."""
        path = f"{self._root}/{location}"
        with suppress(FileNotFoundError), open(path, "rb") as file:
            if file.read(len(content) + 1) == content:
                return not self.rewrite(location, content)
        part = f"{self._root}/{INCOMING}/{location.rpartition('/')[2]}{PART_SUFFIX}"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        try:
            try:
                write_all(descriptor, [content])
            finally:
                os.close(descriptor)
            self._directories.ensure(directory_of(location))
            os.rename(part, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
        return True


def syncfs_for(path: str) -> SyncFilesystem | None:
    """syncfs, where it is to be relied on for what lies at `path`."""
    if _kernel() < _FIRST_KERNEL_THAT_TELLS or _filesystem_of(path) not in SYNCFS_FILESYSTEMS:
        return None
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None

    def sync(descriptor: int) -> None:
        if syncfs(descriptor) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    return sync


def _kernel() -> tuple[int, int]:
    system = os.uname()
    found = re.match(r"(\d+)\.(\d+)", system.release)
    if system.sysname != "Linux" or found is None:
        return (0, 0)
    return int(found[1]), int(found[2])


def _filesystem_of(path: str) -> str:
    """The type of the filesystem that `path` lies on (proc(5), mountinfo); empty where it cannot be told."""
    path = os.path.realpath(path)
    longest, kind = "", ""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
            for mount in mounts:
                place, _, source = mount.partition(" - ")
                point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), place.split(" ")[4])
                is_above = point == path or path.startswith(f"{point.rstrip('/')}/")
                # What is mounted over another comes after it.
                if is_above and len(point) >= len(longest):
                    longest, kind = point, source.split(" ")[0]
    except OSError:
        return ""
    return kind
