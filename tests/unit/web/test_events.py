"""The event stream, read over a real connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from scp_server.errors import IndexUnavailable
from scp_server.index.base import DuplicatePolicy
from scp_server.index.events import ASSOCIATION_ACCEPTED, LogRequest
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.observability.logs import captured_logs
from scp_server.observability.measures import FollowerEnd, OutboxMeasures
from scp_server.pipeline.log_keeper import LogKeeper, LogKeeperConfig
from scp_server.testing.index_contract import index_entry
from scp_server.web.events import PAGE, FollowerLimits, Followers
from scp_server.web.health import HealthState, health_app
from scp_server.web.server import HttpServer

PATIENCE_SECONDS = 10
TOKEN = "0123456789abcdef-token"
LIMITS = FollowerLimits(max_followers=2, heartbeat_seconds=30.0, follower_seconds=30.0)


@dataclass(frozen=True, slots=True)
class Sent:
    """One event of the stream, or a comment."""

    event: str = ""
    id: str = ""
    data: str = ""
    comment: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Stream:
    """What a follower reads."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> Sent:
        """The next block of the stream, without that which only says when to come back."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in self._lines:
                if line:
                    name, _, value = line.partition(": ")
                    fields[name or "comment"] = value
                elif fields.keys() != {"retry"}:
                    return Sent(**fields)
                else:
                    fields = {}
        raise EOFError

    async def rest(self) -> list[Sent]:
        """All that comes before its end."""
        sent = []
        with suppress(EOFError):
            while True:
                sent.append(await self.next())
        return sent


class Scene:
    """An index, and a server for who follows it."""

    def __init__(self, path: Path, limits: FollowerLimits = LIMITS, token: str | None = None) -> None:
        self.index = SqlIndex(IndexConfig(path, synchronous_full=False))
        self.measures = OutboxMeasures()
        self.followers = Followers(self.index.event_log, limits, self.measures, token)
        self.http = HttpServer("127.0.0.1", 0, health_app(HealthState(), self.followers.route))
        self.port = 0
        self.stored = 0

    async def start(self) -> None:
        await self.index.open()
        _, self.port = await self.http.start()

    async def stop(self) -> None:
        await self.followers.close()
        await self.http.stop()
        await self.index.close()

    async def store(self, count: int = 1) -> None:
        for _ in range(count):
            self.stored += 1
            entry = replace(index_entry(str(self.stored)), association_id='a"1')
            await self.index.add(entry, DuplicatePolicy.KEEP_FIRST)

    @asynccontextmanager
    async def follow(self, query: str = "", last_event_id: str = "") -> AsyncIterator[Stream]:
        headers = {"last-event-id": last_event_id} if last_event_id else {}
        url = f"http://127.0.0.1:{self.port}/events{query}"
        async with (
            httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            yield Stream(response)

    async def gone(self, end: FollowerEnd, count: int = 1) -> None:
        """Wait until so many followers are, in that way."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.measures.followers_ended[end] < count:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        ("Bearer \u00e9", 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
    ],
)
async def test_where_there_is_a_token_only_who_knows_it_may_follow(
    tmp_path: Path, sent: str, status: int
) -> None:
    scene = Scene(tmp_path / "index.sqlite", token=TOKEN)
    await scene.start()
    headers = {b"authorization": sent.encode("latin_1")} if sent else {}
    with captured_logs() as logs:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
            client.stream("GET", f"http://127.0.0.1:{scene.port}/events", headers=headers) as response,
        ):
            assert response.status_code == status
            if status == 401:
                assert response.headers["www-authenticate"] == 'Bearer realm="events"'
            health = await client.get(f"http://127.0.0.1:{scene.port}/healthz")
            assert health.status_code == 200
    await scene.stop()
    refused = [record for record in logs if record["event"] == "follower.refused"]
    assert [record["peer_host"] for record in refused] == ["127.0.0.1"] * (status == 401)
    assert TOKEN not in str(logs)


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path / "index.sqlite")
    await scene.start()
    yield scene
    await scene.stop()


async def test_who_follows_is_told_of_what_happens_from_then_on(scene: Scene) -> None:
    await scene.store(2)
    async with scene.follow() as stream:
        assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        await scene.store()
        sent = await stream.next()
    assert (sent.event, sent.id) == ("object.stored", "3")
    assert sent.json["event_id"] == 3
    assert sent.json["kind"] == "object.stored"
    assert sent.json["association_id"] == 'a"1'
    assert sent.json["sop_instance_uid"] == "1.2.840.99.3.3"
    assert sent.json["at_ns"] == sent.json["stored_at_ns"]
    assert "location" not in sent.json


@pytest.mark.parametrize("by_header", [True, False])
async def test_who_was_away_gets_all_that_was_missed_and_nothing_twice(scene: Scene, by_header: bool) -> None:
    await scene.store(250)
    header, query = ("3", "?after=200") if by_header else ("", "?after=3")
    async with scene.follow(query, header) as stream:
        seen = [int((await stream.next()).id) for _ in range(247)]
        await scene.store()
        seen.append(int((await stream.next()).id))
    assert seen == list(range(4, 252))


async def test_a_follower_goes_on_over_a_restart(tmp_path: Path) -> None:
    seen: list[int] = []
    for life in range(3):
        scene = Scene(tmp_path / "index.sqlite")
        scene.stored = 10 * life
        await scene.start()
        async with scene.follow("?after=0", str(seen[-1]) if seen else "") as stream:
            await scene.store(10)
            seen += [int((await stream.next()).id) for _ in range(8)]
            await scene.stop()
            seen += [int(sent.id) for sent in await stream.rest()]
        assert scene.measures.followers_ended[FollowerEnd.STOPPED] == 1
    scene = Scene(tmp_path / "index.sqlite")
    await scene.start()
    async with scene.follow(last_event_id=str(seen[-1])) as stream:
        seen += [int((await stream.next()).id) for _ in range(30 - len(seen))]
    assert seen == list(range(1, 31))
    await scene.stop()


async def test_only_the_kinds_that_are_asked_for_are_sent_and_the_id_goes_on(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "index.sqlite", replace(LIMITS, heartbeat_seconds=0.05))
    await scene.start()
    await scene.store(3)
    async with scene.follow("?after=0&kinds=study.settled,association.ended") as stream:
        sent = await stream.next()
        assert (sent.id, sent.event, sent.data) == ("3", "", "")
        assert (await stream.next()).comment == "still here"
        await scene.index.event_log.settle_studies(2**62)
        while not (sent := await stream.next()).event:
            pass
        assert (sent.id, sent.event) == ("4", "study.settled")
    await scene.stop()


async def test_who_comes_back_too_late_is_told_what_is_missing(scene: Scene) -> None:
    await scene.store(10)
    await LogKeeper(scene.index.event_log, LogKeeperConfig(keep_events=4), lambda: 10).trim()
    async with scene.follow("?after=2") as stream:
        gap = await stream.next()
        assert (gap.event, gap.id) == ("gap", "6")
        assert gap.json == {"missed_after": 2, "goes_on_after": 6}
        assert [(await stream.next()).id for _ in range(4)] == ["7", "8", "9", "10"]
    async with scene.follow("?after=6") as stream:
        assert (await stream.next()).id == "7"


async def test_who_followed_another_log_is_told_and_begins_with_this_one(scene: Scene) -> None:
    await scene.store(2)
    async with scene.follow("?after=4711") as stream:
        gap = await stream.next()
        assert (gap.event, gap.json) == ("gap", {"missed_after": 4711, "goes_on_after": 0})
        assert [(await stream.next()).id for _ in range(2)] == ["1", "2"]


@pytest.mark.parametrize(
    ("query", "header"),
    [
        *(("?after=x", ""), ("?after=-1", ""), ("?after=99999999999999999999", ""), ("?after=", "")),
        *(("", "two"), ("?kinds=all", ""), ("?kinds=", ""), ("?since=1", "")),
    ],
)
async def test_what_makes_no_sense_is_refused(scene: Scene, query: str, header: str) -> None:
    async with scene.follow(query, header) as stream:
        assert stream.response.status_code == 400
        await stream.response.aread()
        assert set(stream.response.json()) == {"error"}


async def test_above_max_followers_the_answer_is_503_until_one_leaves(scene: Scene) -> None:
    async with scene.follow():
        async with scene.follow(), scene.follow() as refused:
            assert refused.response.status_code == 503
            assert scene.measures.followers == 2
        await scene.gone(FollowerEnd.LEFT)
        async with scene.follow() as again:
            assert again.response.status_code == 200


async def test_who_takes_nothing_is_cut_off_and_goes_on_when_it_comes_back(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "index.sqlite", replace(LIMITS, follower_seconds=0.2))
    await scene.start()
    log = scene.index.event_log
    for number in range(PAGE + 10):
        # More than sockets buffer.
        log.note(LogRequest(ASSOCIATION_ACCEPTED, str(number), 1, json.dumps({"x": "y" * 200_000})))
    await log.perform(lambda connection: None, at_once=True)
    reader, writer = await asyncio.open_connection("127.0.0.1", scene.port, limit=1024)
    writer.write(b"GET /events?after=0 HTTP/1.1\r\nHost: x\r\n\r\n")
    await scene.gone(FollowerEnd.SLOW)
    writer.transport.abort()
    assert reader.exception() is None
    async with scene.follow(f"?after={PAGE + 9}") as stream:
        assert (await stream.next()).id == str(PAGE + 10)
    await scene.stop()


async def _ids_until_it_breaks(stream: Stream) -> AsyncIterator[str]:
    with suppress(httpx.HTTPError):
        while True:
            yield (await stream.next()).id


async def test_an_index_that_fails_ends_the_stream_and_its_client_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(after: int, limit: int) -> None:
        raise IndexUnavailable("gone")

    async with scene.follow("?after=0") as stream:
        await scene.store()
        assert (await stream.next()).id == "1"
        with monkeypatch.context() as patched:
            patched.setattr(scene.index.event_log, "page", fail)
            await scene.store()
            await scene.gone(FollowerEnd.FAILED)
        # What was being read when the index began to fail may still come.
        seen = ["1", *[event_id async for event_id in _ids_until_it_breaks(stream)]][-1]
    await scene.store()
    async with scene.follow(last_event_id=seen) as stream:
        assert (await stream.next()).id == str(int(seen) + 1)


async def test_a_stream_is_not_given_up_for_another_request_on_its_connection(tmp_path: Path) -> None:
    """A stream owes its client an answer for ever: it is not one that waits for a request."""
    scene = Scene(tmp_path / "index.sqlite")
    await scene.start()
    async with scene.follow() as stream:
        idle = [await asyncio.open_connection("127.0.0.1", scene.port) for _ in range(140)]
        await scene.store()
        assert (await stream.next()).id == "1"
        for _, writer in idle:
            writer.close()
    await scene.stop()
