"""The listening socket of the acceptor."""

from __future__ import annotations

import asyncio
import socket

from scp_server.errors import ConfigurationError
from scp_server.net.association_manager import AssociationManager

_BACKLOG = 1024


class Listener:
    """Accepts connections for an `AssociationManager`, on host and port or on a socket opened for us.

    `inherited` belongs to the listener, which closes it with the rest.
    """

    def __init__(
        self, manager: AssociationManager, host: str, port: int, inherited: socket.socket | None = None
    ) -> None:
        self._manager = manager
        self._host = host
        self._port = port
        self._inherited = inherited
        self._server: asyncio.Server | None = None

    async def start(self) -> tuple[str, int]:
        """Bind and accept; returns the bound host and port. Raises ConfigurationError when it cannot."""
        loop, accept = asyncio.get_running_loop(), self._manager.new_connection
        try:
            if self._inherited is not None:
                self._server = await loop.create_server(accept, sock=self._inherited, backlog=_BACKLOG)
            else:
                self._server = await loop.create_server(
                    accept, self._host, self._port, backlog=_BACKLOG, reuse_address=True
                )
        except (OSError, socket.gaierror) as error:
            raise ConfigurationError(
                f"listen: cannot listen on {self._host}:{self._port}: {error.strerror or error}"
            ) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    async def stop(self) -> None:
        """Accept no more; what is connected stays connected."""
        if self._server is not None:
            self._server.close()
            self._server = None
