"""The listening sockets of the acceptor."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scp_server.errors import ConfigurationError
from scp_server.net.association_manager import AssociationManager

_BACKLOG = 1024


class BoundAddress(NamedTuple):
    """What a socket is bound to: its family (AF_INET or AF_INET6), and what `getsockname` says."""

    family: int
    name: tuple[object, ...]


class Listener:
    """Accepts connections for an `AssociationManager`, on host and port or on sockets that are bound already.

    Those belong to the listener, which closes them with the rest.
    """

    def __init__(
        self, manager: AssociationManager, host: str, port: int, bound: Sequence[socket.socket] = ()
    ) -> None:
        self._manager = manager
        self._host = host
        self._port = port
        self._bound = bound
        self._servers: list[asyncio.Server] = []

    async def start(self) -> tuple[str, int]:
        """Bind and accept; returns the bound host and port. Raises ConfigurationError when it cannot."""
        loop, accept = asyncio.get_running_loop(), self._manager.new_connection
        try:
            for bound in self._bound:
                self._servers.append(await loop.create_server(accept, sock=bound, backlog=_BACKLOG))
            if not self._bound:
                self._servers.append(
                    await loop.create_server(
                        accept, self._host, self._port, backlog=_BACKLOG, reuse_address=True
                    )
                )
        except (OSError, socket.gaierror) as error:
            self.close()
            raise _cannot_listen(self._host, self._port, error) from error
        return address_of(self._servers[0].sockets[0])

    async def stop(self) -> None:
        """Accept no more; what is connected stays connected."""
        self.close()

    def close(self) -> None:
        """`stop`, at once."""
        while self._servers:
            self._servers.pop().close()


def address_of(bound: socket.socket) -> tuple[str, int]:
    """Host and port of a bound socket."""
    host, port = bound.getsockname()[:2]
    return str(host), int(port)


async def bind_shared(host: str, port: int) -> list[socket.socket]:
    """Sockets for every address of `host`, bound so that other processes may bind there too (SO_REUSEPORT,
    socket(7)), and not listening yet.

    The kernel spreads connections over those that listen. Whoever else listens there already would get its
    share of ours: that is refused. Raises ConfigurationError.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        addresses = [BoundAddress(family, name) for family, _, _, _, name in dict.fromkeys(found)]
        for address in addresses if port else ():
            _bound(address, shared=False).close()
        return _all_bound(addresses)
    except (OSError, socket.gaierror) as error:
        raise _cannot_listen(host, port, error) from error


def bind_again(addresses: Iterable[BoundAddress]) -> list[socket.socket]:
    """Sockets bound to what another process has bound by `bind_shared`. Raises OSError."""
    return _all_bound(addresses)


def bound_addresses(bound: Iterable[socket.socket]) -> tuple[BoundAddress, ...]:
    """What another process needs for `bind_again`."""
    return tuple(BoundAddress(each.family, each.getsockname()) for each in bound)


def _all_bound(addresses: Iterable[BoundAddress]) -> list[socket.socket]:
    bound: list[socket.socket] = []
    try:
        for address in addresses:
            bound.append(_bound(address, shared=True))
    except BaseException:
        for each in bound:
            each.close()
        raise
    return bound


def _bound(address: BoundAddress, *, shared: bool) -> socket.socket:
    made = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address.name)
    except BaseException:
        made.close()
        raise
    return made


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"listen: cannot listen on {host}:{port}: {error.strerror or error}")
