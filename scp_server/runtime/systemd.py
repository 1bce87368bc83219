"""systemd's two protocols, for daemons: sockets that it opened (sd_listen_fds(3)), and what it is told
(sd_notify(3)). Outside systemd the variables are not set, and all of this does nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from scp_server.errors import ConfigurationError
from scp_server.observability.logs import get_logger

log = get_logger(__name__)

_FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START: inherited descriptors follow standard error."""
_MAX_SOCKETS = 16
"""More than anybody names by mistake; a wrong LISTEN_FDS is not counted through."""
DICOM, HTTP = "dicom", "http"
"""What a socket's `FileDescriptorName=` may be."""


@dataclass(frozen=True, slots=True)
class InheritedSockets:
    """Listening sockets that were opened for us; what is None we open ourselves."""

    dicom: socket.socket | None = None
    http: socket.socket | None = None

    def close(self) -> None:
        """Close those that nobody took over. Harmless for the others once they are closed."""
        for listener in (self.dicom, self.http):
            if listener is not None:
                listener.close()


def inherited_sockets(environment: Mapping[str, str]) -> InheritedSockets:
    """The sockets that LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES pass to this process.

    They are kept from programs that we start. Raises ConfigurationError for one that is no listening stream
    socket, whose name is neither `dicom` nor `http`, or whose name comes twice.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return InheritedSockets()
    text = environment.get("LISTEN_FDS", "")
    if not (text.isascii() and text.isdigit()) or int(text) > _MAX_SOCKETS:
        raise ConfigurationError(f"LISTEN_FDS: {text[:20]!r} is no number of at most {_MAX_SOCKETS}")
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, socket.socket] = {}
    try:
        for position in range(int(text)):
            name = names[position] if position < len(names) else ""
            listener = _listener(_FIRST_DESCRIPTOR + position, name)
            if found.setdefault(name, listener) is not listener:
                listener.close()
                raise ConfigurationError(f"LISTEN_FDNAMES: two sockets are called {name}")
    except BaseException:
        for listener in found.values():
            listener.close()
        raise
    return InheritedSockets(found.get(DICOM), found.get(HTTP))


def _listener(descriptor: int, name: str) -> socket.socket:
    where = f"LISTEN_FDS: the inherited socket {name[:64]!r}"
    if name not in (DICOM, HTTP):
        raise ConfigurationError(f"{where} is called neither {DICOM} nor {HTTP} (FileDescriptorName=)")
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigurationError(f"{where} cannot be used: {error.strerror}") from error
    try:
        if listener.family not in (socket.AF_INET, socket.AF_INET6):
            raise ConfigurationError(f"{where} is no TCP socket")
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ConfigurationError(f"{where} does not listen")
        listener.set_inheritable(False)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


class Notifier:
    """Tells systemd how the service fares: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID of `environment`.

    The watchdog is fed by the event loop itself, twice in its time: a loop that hangs feeds it no more, and
    systemd restarts the service. A message that does not get through is logged, once.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog_seconds = _watchdog_seconds(environment)
        self._socket: socket.socket | None = None
        self._failed = False
        self._timer: asyncio.TimerHandle | None = None

    def ready(self, status: str) -> None:
        """READY=1: the service has started, or has ended a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """RELOADING=1; `ready` must follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}", "STATUS=Reloading")

    def stopping(self, status: str) -> None:
        """STOPPING=1: the end has begun."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """STATUS=: what `systemctl status` shows."""
        self._send(f"STATUS={status}")

    def feed_watchdog(self) -> None:
        """Feed it now and from now on, in the running event loop, until `close`. Once."""
        if self._address is None or self._watchdog_seconds is None:
            return
        self._send("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(self._watchdog_seconds / 2, self.feed_watchdog)

    def close(self) -> None:
        """Say no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        # A line is an assignment: a line end in a value would begin another.
        message = "\n".join(assignment.replace("\n", " ") for assignment in assignments)
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            self._socket.sendto(message.encode("utf-8", "replace"), self._address)
        except OSError as error:
            if not self._failed:
                self._failed = True
                log.warning("systemd.not_told", error=error.strerror or str(error))


def _address(name: str) -> str | None:
    """A path, or a name in the abstract namespace, which is written with @."""
    if name.startswith("/"):
        return name
    if name.startswith("@"):
        return "\0" + name[1:]
    return None


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """How long systemd waits for the next WATCHDOG=1; None when it does not wait for ours."""
    text = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15) or int(text) == 0:
        return None
    return int(text) / 1_000_000
