"""The HTTP listener: uvicorn inside the daemon's own event loop, bounded against slow and greedy clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from scp_server.errors import ConfigurationError
from scp_server.observability.logs import get_logger

log = get_logger(__name__)

ABORT = "scp_server.abort"
"""The extension of an ASGI scope that ends its connection at once, whatever has not been taken."""

_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of the HTTP listener. Sizes in bytes, times in seconds."""

    max_connections: int = 128
    """Connections at once; for a further one, that which has waited longest for a request is closed."""
    max_request_bytes: int = 16_384
    """Longest request, with line, headers and body: nothing served here takes a body."""
    request_seconds: float = 10.0
    """From the connection, or from the first byte on a kept one, to the end of a request."""
    keep_alive_seconds: int = 5
    """Longest silence between requests."""
    stop_seconds: int = 2
    """How long answers may take when the listener stops."""


class HttpServer:
    """Serves an ASGI application on one address in the running event loop. Signals are left to the daemon.

    `inherited` is a listening socket that takes the place of the address; it is closed with the server.
    """

    def __init__(
        self,
        host: str,
        port: int,
        app: ASGIApp,
        limits: HttpLimits | None = None,
        inherited: socket.socket | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._app = app
        self._limits = limits or HttpLimits()
        self._inherited = inherited
        self._server: _EmbeddedServer | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> tuple[str, int]:
        """Bind and serve; returns the bound host and port. Raises ConfigurationError when it cannot."""
        listener = self._inherited or await self._bind()
        host, port = listener.getsockname()[:2]
        server = _EmbeddedServer(_config(self._app, self._limits))
        self._server = server
        self._task = asyncio.create_task(server.serve(sockets=[listener]), name="http server")
        accepting = asyncio.create_task(server.accepting.wait(), name="http server start")
        try:
            await asyncio.wait({self._task, accepting}, return_when=asyncio.FIRST_COMPLETED)
            if not server.accepting.is_set():
                raise ConfigurationError(f"http: cannot serve on {host}:{port}: {self._task.exception()}")
        except BaseException:
            listener.close()
            await self.stop()
            raise
        finally:
            accepting.cancel()
        return str(host), int(port)

    async def stop(self) -> None:
        """Accept no more, let answers in hand end within `stop_seconds`, close every connection."""
        server, task = self._server, self._task
        self._server = self._task = None
        if server is None or task is None:
            return
        server.should_exit = True
        server.abort_waiting()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("http.failed", error=str(error))

    async def _bind(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        where = f"{self._host}:{self._port}"
        try:
            found = await loop.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise ConfigurationError(f"http: cannot listen on {where}: {error.strerror or error}") from error
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise ConfigurationError(f"http: cannot listen on {where}: {error.strerror or error}") from error
        return listener


def _config(app: ASGIApp, limits: HttpLimits) -> uvicorn.Config:
    waiting: dict[_BoundedProtocol, None] = {}

    class Protocol(_BoundedProtocol):
        pass

    Protocol.limits = limits
    Protocol.waiting = waiting
    return uvicorn.Config(
        app,
        loop="none",
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=limits.keep_alive_seconds,
        timeout_graceful_shutdown=limits.stop_seconds,
    )


class _EmbeddedServer(uvicorn.Server):
    """A uvicorn server that says when it accepts, and leaves the process's signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The daemon handles SIGTERM and SIGINT itself."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell who waits for it."""
        await super().startup(sockets)
        self.accepting.set()

    def abort_waiting(self) -> None:
        """End the connections that have not sent a whole request: nothing is owed to them."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, _BoundedProtocol):
                connection.abort_if_waiting()


class _BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a deadline and a size for each request, and a bound on the connections.

    uvicorn bounds neither the headers of a request nor the time that it may take to arrive.
    """

    limits: HttpLimits
    waiting: dict[_BoundedProtocol, None]
    """Connections to which no answer is owed, those first that have been waiting longest."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._deadline: asyncio.TimerHandle | None = None
        self._request_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, in the place of the oldest when there are too many."""
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > self.limits.max_connections:
            next(iter(self.waiting)).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._request_is_whole()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what a request takes; the first byte of a further request starts its deadline."""
        if self._deadline is None:
            self._await_request()
        self._request_bytes += len(data)
        if self._request_bytes > self.limits.max_request_bytes:
            self.transport.abort()
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins; whoever answers it may end the connection instead."""
        super().on_message_begin()
        extensions: dict[str, dict[object, object]] = {ABORT: {"abort": self.transport.abort}}
        self.scope["extensions"] = extensions

    def on_message_complete(self) -> None:
        """The request has arrived."""
        self._request_is_whole()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Between requests a connection may be closed for another one."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self.waiting[self] = None

    def abort_if_waiting(self) -> None:
        """End the connection unless an answer is owed."""
        if self in self.waiting:
            self.transport.abort()

    def _await_request(self) -> None:
        self._request_bytes = 0
        self.waiting[self] = None
        self._deadline = self.loop.call_later(self.limits.request_seconds, self.transport.abort)

    def _request_is_whole(self) -> None:
        self._request_bytes = 0
        self.waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
