"""What the process needs of its host: one daemon for a data folder, and enough descriptors."""

from __future__ import annotations

import fcntl
import os
import resource
import time
from pathlib import Path

from scp_server.errors import ConfigurationError
from scp_server.storage.sync import make_folder

_OTHER_DESCRIPTORS = 256
"""Files, databases, listeners and pipes beside the connections."""


_DYING_SECONDS = 5.0
"""How long the workers of a killed server may take to end, which the kernel ends with it."""
_LOOK_SECONDS = 0.02


class DataFolderLock:
    """Holds a data folder for this process; the kernel lets go of it whatever way the process ends.

    Whoever inherits its descriptor holds the folder too: so nobody begins while a worker of a server that was
    killed is still there.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "lock"
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """What to pass on. Raises RuntimeError where it is not held."""
        if self._descriptor is None:
            raise RuntimeError("the data folder is not held")
        return self._descriptor

    def acquire(self) -> None:
        """Raises ConfigurationError naming the process that has the folder, or why it cannot be used."""
        try:
            make_folder(os.path.abspath(self._path.parent), durable=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise ConfigurationError(f"data_dir: cannot use {self._path.parent}: {error.strerror}") from error
        try:
            _lock(descriptor)
            # Over what is there, then cut: on a full disk there would be no room for it anew.
            os.ftruncate(descriptor, os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0))
        except BlockingIOError as error:
            holder = _holder(descriptor) or "unknown"
            os.close(descriptor)
            raise ConfigurationError(
                f"data_dir: {self._path.parent} is in use by the process with id {holder}"
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise ConfigurationError(f"data_dir: cannot lock {self._path}: {error.strerror}") from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another daemon have the folder. The file stays: its lock is what counts."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()


def _lock(descriptor: int) -> None:
    """Lock at once, or once the workers of a holder that is gone have ended. Raises BlockingIOError."""
    until = time.monotonic() + _DYING_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _is_alive(_holder(descriptor)) or time.monotonic() > until:
                raise
            # The kernel is ending them at this moment; nothing tells when it has.
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _is_alive(pid: str) -> bool:
    """Whether there is such a process; where that cannot be told there is."""
    if not (pid.isascii() and pid.isdigit()):
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def open_files_needed(max_connections: int, max_associations: int, max_outbound: int = 0) -> int:
    """Open files that the caps need: each socket, a file that each association writes or reads, the rest."""
    return max_connections + max_associations + 2 * max_outbound + _OTHER_DESCRIPTORS


def raise_descriptor_limit(max_connections: int, max_associations: int, max_outbound: int = 0) -> int:
    """Raise the soft limit of open files so that the caps fit; returns the limit in force.

    Raises ConfigurationError when the hard limit is lower, or the system refuses.
    """
    needed = open_files_needed(max_connections, max_associations, max_outbound)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return soft
    caps = f"limits.max_connections: {max_connections} connections and {max_associations} associations"
    if max_outbound:
        caps += f", and {max_outbound} to remotes,"
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigurationError(
            f"{caps} need {needed} open files, and the hard limit of this process is {hard}; "
            f"{_way_out(needed, hard - 2 * max_outbound, max_associations)}"
        )
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{caps} need {needed} open files: {error}") from error
    return needed


def _way_out(needed: int, hard: int, max_associations: int) -> str:
    """What to write so that the process starts: a higher limit, or the largest caps that fit below `hard`."""
    raising = (
        f"raise it to {needed} (LimitNOFILE= of a systemd service, --ulimit nofile= of a container, "
        "ulimit -n of a shell)"
    )
    associations = min(max_associations, (hard - _OTHER_DESCRIPTORS) // 3)
    if associations < 1:
        return raising
    connections = hard - _OTHER_DESCRIPTORS - associations
    return (
        f"{raising}, or set limits.max_associations = {associations} and limits.max_connections = "
        f"{connections} (SCP_SERVER_LIMITS__MAX_ASSOCIATIONS={associations} "
        f"SCP_SERVER_LIMITS__MAX_CONNECTIONS={connections})"
    )
