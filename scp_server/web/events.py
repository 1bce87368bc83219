"""The event stream: `GET /events`, server-sent events straight from the log (HTML Living Standard, 9.2).

A follower that was away says which event it saw last, and is given everything since: it misses nothing and
gets nothing twice. Each reads the log for itself, a page at a time, and is sent the next page only when it
has taken the last one, so one that is slow costs a page of memory, and one that takes nothing is cut off.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from scp_server.errors import IndexFailure
from scp_server.index.events import EventRow, EventSource
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import FollowerEnd, OutboxMeasures
from scp_server.pipeline.deliveries import EventKind
from scp_server.web.server import ABORT

log = get_logger(__name__)

PAGE: Final = 100
"""Events sent together, about a kilobyte each."""
_LARGEST_ID: Final = 2**63 - 1
_BEGIN: Final = b"retry: 2000\n\n"
"""Milliseconds after which a client connects again."""
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


_CHALLENGE: Final = {"www-authenticate": 'Bearer realm="events"'}


@dataclass(frozen=True, slots=True)
class FollowerLimits:
    """Bounds of the event stream. Times in seconds."""

    max_followers: int = 16
    heartbeat_seconds: float = 15.0
    follower_seconds: float = 30.0
    """How long a follower may not take what it is sent."""


class Followers:
    """All who follow the event stream of one server. An ASGI application for `GET /events`."""

    def __init__(
        self,
        source: EventSource,
        limits: FollowerLimits | None = None,
        measures: OutboxMeasures | None = None,
        token: str | None = None,
    ) -> None:
        """`token`: what followers must know (RFC 6750 2.1); where it is None anybody may follow."""
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._source = source
        self._limits = limits or FollowerLimits()
        self._measures = measures or OutboxMeasures()
        self._streams: set[asyncio.Task[FollowerEnd]] = set()
        self._is_closing = False

    @property
    def route(self) -> Route:
        """Where it is served."""
        return Route("/events", self, methods=["GET"])

    async def close(self) -> None:
        """End every stream. Clients come back to the next server, and say what they saw last."""
        self._is_closing = True
        streams = tuple(self._streams)
        for stream in streams:
            stream.cancel()
        if streams:
            await asyncio.wait(streams)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one follower until it leaves, or takes nothing any more, or the server stops."""
        if not self._knows_token(Headers(scope=scope)):
            log.warning("follower.refused", peer_host=_host_of(scope))
            refusal = JSONResponse({"error": "the token is missing or wrong"}, 401, headers=_CHALLENGE)
            await refusal(scope, receive, send)
            return
        try:
            after, kinds = _wanted(Headers(scope=scope), QueryParams(scope["query_string"]))
        except ValueError as error:
            await JSONResponse({"error": str(error)}, status_code=400)(scope, receive, send)
            return
        if len(self._streams) >= self._limits.max_followers or self._is_closing:
            refusal = JSONResponse({"error": "too many follow"}, 503, headers={"retry-after": "10"})
            await refusal(scope, receive, send)
            return
        following = _Following(self._source, self._limits, send, after, kinds)
        stream = asyncio.create_task(following.run(), name="follower")
        gone = asyncio.create_task(_until_gone(receive), name="follower gone")
        self._streams.add(stream)
        self._measures.followers = len(self._streams)
        try:
            await asyncio.wait({stream, gone}, return_when=asyncio.FIRST_COMPLETED)
            end = FollowerEnd.LEFT
            if stream.done():
                end = FollowerEnd.STOPPED if stream.cancelled() else stream.result()
        finally:
            for task in (stream, gone):
                task.cancel()
            await asyncio.wait({stream, gone})
            self._streams.discard(stream)
            self._measures.followers = len(self._streams)
        self._measures.followers_ended[end] += 1
        if end is FollowerEnd.STOPPED:
            await following.say_end()
        elif end is not FollowerEnd.LEFT:
            log.warning("follower.cut_off", reason=end.value, peer_host=_host_of(scope))
            # Whoever takes nothing does not take an end either.
            scope["extensions"][ABORT]["abort"]()

    def _knows_token(self, headers: Headers) -> bool:
        if self._expected is None:
            return True
        scheme, _, token = headers.get("authorization", "").strip().partition(" ")
        sent = f"{scheme.capitalize()} {token.strip()}".encode()  # Schemes know no case (RFC 9110 11.1).
        return hmac.compare_digest(sent, self._expected)


class _Following:
    """One stream. `kinds` are those of events to be sent; None is all of them."""

    def __init__(
        self,
        source: EventSource,
        limits: FollowerLimits,
        send: Send,
        after: int | None,
        kinds: frozenset[str] | None,
    ) -> None:
        self._source = source
        self._limits = limits
        self._send = send
        self._after = source.newest_id if after is None else after
        self._said = self._after
        """What the follower would come back with."""
        self._kinds = kinds
        self._news = asyncio.Event()

    async def run(self) -> FollowerEnd:
        """Send until it is cancelled, or cannot go on."""
        end_news = self._source.on_news(self._news.set)
        try:
            await self._send_in_time({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await self._say(_BEGIN)
            if self._after > self._source.newest_id:
                # Of another log: that of an index which was rebuilt, or restored.
                await self._say(self._gap(0))
            while True:
                self._news.clear()
                if not await self._page():
                    await self._wait()
        except TimeoutError:
            return FollowerEnd.SLOW
        except IndexFailure:
            return FollowerEnd.FAILED
        finally:
            end_news()

    async def _page(self) -> bool:
        """Send what is behind the last page; False when there was nothing."""
        page = await self._source.page(self._after, PAGE)
        text = b""
        if page.trimmed_to > self._after:
            text = self._gap(page.trimmed_to)
        rows = [row for row in page.rows if row.event_id > self._after]
        for row in rows:
            self._after = row.event_id
            if self._kinds is None or row.kind in self._kinds:
                text += _event(row)
                self._said = row.event_id
        if text:
            await self._say(text)
        return bool(rows)

    async def _wait(self) -> None:
        """Until there is news, with a sign of life in between."""
        while not self._news.is_set():
            try:
                async with asyncio.timeout(self._limits.heartbeat_seconds):
                    await self._news.wait()
            except TimeoutError:
                # An id without data is no event: the client notes how far it is, past what it does not want.
                await self._say(
                    b": still here\n\n" if self._said == self._after else b"id: %d\n\n" % self._after
                )
                self._said = self._after

    def _gap(self, goes_on_after: int) -> bytes:
        data = json.dumps({"missed_after": self._after, "goes_on_after": goes_on_after})
        self._after = self._said = goes_on_after
        return f"id: {goes_on_after}\nevent: gap\ndata: {data}\n\n".encode()

    async def _say(self, text: bytes) -> None:
        await self._send_in_time({"type": "http.response.body", "body": text, "more_body": True})

    async def _send_in_time(self, message: dict[str, object]) -> None:
        async with asyncio.timeout(self._limits.follower_seconds):
            await self._send(message)

    async def say_end(self) -> None:
        """The stream is over, and will go on with another connection."""
        try:
            await self._send_in_time({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            pass


def _host_of(scope: Scope) -> str:
    return str((scope["client"] or ("",))[0])


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(row: EventRow) -> bytes:
    """As it is sent: what every event has, and its data. Where its file lies is nobody's business."""
    own = f'"event_id":{row.event_id},"kind":"{row.kind}","at_ns":{row.at_ns}'
    association = json.dumps(row.association_id)
    return (
        f"id: {row.event_id}\nevent: {row.kind}\n"
        f'data: {{{own},"association_id":{association},{row.data[1:]}\n\n'
    ).encode()


def _wanted(headers: Headers, query: QueryParams) -> tuple[int | None, frozenset[str] | None]:
    """Behind which event, and which kinds. Raises ValueError for what makes no sense."""
    for name in query:
        if name not in ("after", "kinds"):
            raise ValueError("the parameters are after and kinds")
    # A browser that comes back repeats its address, and adds the header.
    text = headers.get("last-event-id") or query.get("after")
    after = None
    if text is not None:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _LARGEST_ID):
            raise ValueError("after and Last-Event-ID are the id of an event")
        after = int(text)
    kinds = None
    if "kinds" in query:
        kinds = frozenset(query["kinds"].split(","))
        if not kinds <= set(EventKind):
            raise ValueError("kinds are " + ", ".join(EventKind))
    return after, kinds
