"""A receiver of webhooks for tests: it keeps what is posted to it, and answers what it is told.

It reads HTTP/1.1 by itself, so that it is a second witness of what is sent.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Post:
    """One request that came whole. Names of headers are in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def event(self) -> dict[str, Any]:
        """The body as JSON."""
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with. Without a status the connection is closed."""

    status: int | None = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def encoded(self) -> bytes:
        """The response, as bytes."""
        lines = [f"HTTP/1.1 {self.status} Status"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"content-length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode("ascii") + self.body


class WebhookReceiver:
    """Answers each request with what `answer` says of it: 204, unless the test has set something else."""

    def __init__(self) -> None:
        self.port = 0
        self.posts: list[Post] = []
        """In the order in which they came."""
        self.connections = 0
        self.answer: Callable[[Post], Answer] = lambda _: Answer()
        self.before_answer: Callable[[], Awaitable[object]] | None = None
        """Awaited once a request has come whole, so that a test can hold its answer back."""
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        """The port that it listens on, of the loopback."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self.port
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("not in a task")
        self._tasks.add(task)
        self.connections += 1
        try:
            while (post := await _read(reader)) is not None:
                self.posts.append(post)
                answer = self.answer(post)
                if self.before_answer is not None:
                    await self.before_answer()
                if answer.status is None:
                    return
                writer.write(answer.encoded())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            # By `listening`; asyncio's streams of Python 3.11 take a cancelled task for a failure.
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Post | None:
    """The next request; None where the connection ends before one."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.split("\r\n")
    method, path, _version = first.split(" ")
    if method != "POST":
        raise AssertionError(f"a {method} to a webhook")
    pairs = (line.split(":", 1) for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    return Post(path, headers, await reader.readexactly(int(headers["content-length"])))
