"""kill -9 while objects are forwarded, posted and followed: everybody gets all that is theirs, in order.

Objects arrive from several senders, each with a series of its own. They go on to a remote that is down at
first and slow after that, to one that refuses a class, and to a server of ours; events go to a webhook
receiver that fails half the time, and to a follower of the event stream that resumes by id.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from scp_server.testing.daemon import DaemonFailed, DaemonProcess, stored_files
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image, structured_report
from scp_server.testing.scripted_destination import StorageScript
from scp_server.testing.scripted_peer import ScriptedPeer, UnexpectedAnswer, storage_contexts
from scp_server.testing.webhook_receiver import Answer, Post, WebhookReceiver
from scp_server.testing.wire import Tag
from tests.interop.archives import free_port

ROUNDS = int(os.environ.get("SCP_KILL_ROUNDS", "4"))
SENDERS = 3
REPORT_EVERY = 5
"""Each sender's fifth object is a structured report: the class that one remote refuses."""
SETTLED_SECONDS = 120.0
REPORTS = structured_report().sop_class_uid


@dataclass(slots=True)
class World:
    """What everybody knows: how often the gateway was killed, and when something has arrived somewhere."""

    kills: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def changed(self) -> None:
        self._changed.set()

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something holds, looking whenever something has arrived."""
        try:
            async with asyncio.timeout(SETTLED_SECONDS):
                while not holds():
                    self._changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"not in time: {what}")


@dataclass(slots=True)
class Destination:
    """A storage SCP that notes what it is sent: its UID, and how many kills there were before."""

    world: World
    refused: tuple[str, ...] = ()
    seconds: float = 0.0
    """How long it takes for each object."""
    taken: list[tuple[str, int]] = field(default_factory=list)
    datasets: dict[str, bytes] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._follow, "127.0.0.1", port)
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Also cancelled, by `listening`: asyncio's streams of Python 3.11 take that for a failure.
        with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.CancelledError):
            async with StorageScript(reader, writer, SETTLED_SECONDS) as peer:
                await peer.accept(refused=self.refused)
                while (store := await peer.read_store()) is not None:
                    command, dataset = store
                    uid = command[Tag.AFFECTED_SOP_INSTANCE_UID].rstrip(b"\0").decode("ascii")
                    await asyncio.sleep(self.seconds)
                    self.taken.append((uid, self.world.kills))
                    self.datasets[uid] = dataset
                    await peer.respond(command)
                    self.world.changed()

    def in_order(self) -> list[str]:
        """What it has, each as it came for the first time."""
        return list(dict.fromkeys(uid for uid, _ in self.taken))


@dataclass(slots=True)
class Follower:
    """Reads the event stream; where that breaks off it goes on after the last id it had."""

    world: World
    events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    connections: int = 0

    async def follow(self, port: Callable[[], int]) -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError, DaemonFailed):
                await self._read(f"http://127.0.0.1:{port()}/events")
            await asyncio.sleep(0.05)

    async def _read(self, url: str) -> None:
        headers = {"last-event-id": str(self.events[-1][0])} if self.events else {}
        parameters = {} if self.events else {"after": "0"}
        async with (
            httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(5, read=None)) as client,
            client.stream("GET", url, headers=headers, params=parameters) as response,
        ):
            assert response.status_code == 200, response.status_code
            self.connections += 1
            fields: dict[str, str] = {}
            async for line in response.aiter_lines():
                name, _, value = line.partition(":")
                if line and name:
                    fields[name] = value.removeprefix(" ")
                elif not line and "data" in fields:
                    event = (int(fields["id"]), fields["event"], json.loads(fields["data"]))
                    self.events.append(event)
                    fields = {}
                    self.world.changed()

    def stored(self) -> list[str]:
        """The SOP Instance UIDs of the objects that it heard of, in order."""
        return [data["sop_instance_uid"] for _, kind, data in self.events if kind == "object.stored"]


def objects(sender: int) -> Iterator[EncodedObject]:
    """One series without end; UIDs end with the sender's number and the object's."""
    series = f"1.2.826.0.77.{sender}"
    names: dict[str, Any] = {"study_instance_uid": f"{series}.1", "series_instance_uid": f"{series}.2"}
    for number in itertools.count():
        uid = f"{series}.3.{number}"
        if number % REPORT_EVERY == REPORT_EVERY - 1:
            yield structured_report(sop_instance_uid=uid, **names)
        else:
            yield ct_image(rows=16, columns=16, seed=number, sop_instance_uid=uid, **names)


async def send_until_killed(port: int, series: Iterator[EncodedObject], acknowledged: set[str]) -> None:
    """Send one object after another. One that was not acknowledged is not sent again: either is right."""
    with contextlib.suppress(OSError, EOFError, UnexpectedAnswer, TimeoutError):
        async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
            await peer.associate(storage_contexts(ct_image(), structured_report()))
            while True:
                one = next(series)
                assert await peer.store(one) == 0x0000
                acknowledged.add(one.sop_instance_uid)
                await asyncio.sleep(0.002)


def gateway(folder: Path, ports: dict[str, int], hook_port: int) -> DaemonProcess:
    """The daemon that is killed."""
    remotes = [
        {"ae_title": title, "host": "127.0.0.1", "port": port, "max_associations": 2}
        for title, port in ports.items()
    ]
    hook = {"name": "hook", "url": f"http://127.0.0.1:{hook_port}/", "secret": "key", "timeout_seconds": 2}
    environment = {
        "SCP_SERVER_REMOTES": json.dumps(remotes),
        "SCP_SERVER_FORWARD": json.dumps([{"name": "all", "to": list(ports)}]),
        "SCP_SERVER_WEBHOOK": json.dumps([hook]),
        "SCP_SERVER_TIMEOUTS__REMOTE_RETRY_SECONDS": "0.1",
        "SCP_SERVER_OUTBOX__FIRST_RETRY_SECONDS": "0.05",
        "SCP_SERVER_OUTBOX__MAX_RETRY_SECONDS": "0.5",
        "SCP_SERVER_OUTBOX__MAX_ATTEMPTS": "1000",
        "SCP_SERVER_LOG__LEVEL": "debug",
    }
    return DaemonProcess(folder, environment=environment)


def fails_half_the_time(chance: random.Random) -> Callable[[Post], Answer]:
    """Statuses, and connections that end without one."""

    def answer(_post: Post) -> Answer:
        return Answer(chance.choice([None, 500, 503, 204, 204, 204]))

    return answer


def by_sender(uids: list[str]) -> dict[str, list[int]]:
    """The numbers of each sender's objects, in their order."""
    found: dict[str, list[int]] = {}
    for uid in uids:
        series, _, number = uid.rpartition(".")
        found.setdefault(series, []).append(int(number))
    return found


def expect_each_once_and_in_order(destination: Destination, expected: list[str]) -> None:
    """Everything it should have; each series in order; nothing twice but where a kill lies between."""
    assert set(destination.in_order()) == set(expected)
    assert by_sender(destination.in_order()) == by_sender(expected)
    assert len(set(destination.taken)) == len(destination.taken), "repeated though nothing had ended"


def expect_repeats_marked(posts: list[Post]) -> None:
    """Whatever is posted again is marked as that, and has the id that it had."""
    seen: set[str] = set()
    for post in posts:
        identity = post.event["id"]
        assert identity == post.headers["webhook-id"]
        if identity in seen:
            assert post.event.get("mayberepeated") is True, f"{identity} is repeated silently"
        seen.add(identity)
    assert len(seen) == len({post.event["eventid"] for post in posts})


@pytest.mark.slow
async def test_everybody_gets_everything_in_order_whenever_the_gateway_is_killed(tmp_path: Path) -> None:
    world, chance = World(), random.Random(23)
    ports = {"SLOW": free_port(), "PICKY": free_port(), "OURS": 0}
    slow, picky = Destination(world, seconds=0.005), Destination(world, refused=(REPORTS,))
    receiver, follower = WebhookReceiver(), Follower(world)
    taken_by_hook: list[dict[str, Any]] = []
    answer = fails_half_the_time(chance)

    def noted(post: Post) -> Answer:
        given = answer(post)
        if given.status == 204:
            taken_by_hook.append(post.event)
        world.changed()
        return given

    receiver.answer = noted

    def ids() -> list[int]:
        return [event_id for event_id, _, _ in follower.events]

    acknowledged: set[str] = set()
    series = [objects(sender) for sender in range(SENDERS)]
    ours = DaemonProcess(tmp_path / "ours")
    async with contextlib.AsyncExitStack() as stack:
        ports["OURS"] = (await asyncio.to_thread(ours.start)).dicom_port
        hook_port = await stack.enter_async_context(receiver.listening())
        await stack.enter_async_context(picky.listening(ports["PICKY"]))
        daemon = gateway(tmp_path / "gateway", ports, hook_port)
        following: asyncio.Task[None] | None = None
        for round_number in range(ROUNDS):
            port = (await asyncio.to_thread(daemon.start)).dicom_port
            following = following or asyncio.create_task(follower.follow(lambda: daemon.ready.http_port))
            if round_number == ROUNDS // 2:
                await stack.enter_async_context(slow.listening(ports["SLOW"]))
            async with asyncio.TaskGroup() as senders:
                for each in series:
                    senders.create_task(send_until_killed(port, each, acknowledged))
                await asyncio.sleep(chance.uniform(0.2, 1.2))
                if round_number == ROUNDS - 1:
                    async with asyncio.timeout(SETTLED_SECONDS):
                        while len(acknowledged) <= ROUNDS * SENDERS:
                            await asyncio.sleep(0.01)
                await asyncio.to_thread(daemon.kill)
                world.kills += 1
        await asyncio.to_thread(daemon.start)
        kept = {each.sop_instance_uid: each.dataset for each in stored_files(tmp_path / "gateway")}
        assert acknowledged <= kept.keys()
        await world.until(lambda: len(set(follower.stored())) >= len(kept), "the event stream")
        order = follower.stored()
        images = [uid for uid in order if int(uid.rpartition(".")[2]) % REPORT_EVERY != REPORT_EVERY - 1]
        await world.until(lambda: len(slow.in_order()) >= len(order), "the slow remote")
        await world.until(lambda: len(picky.in_order()) >= len(images), "the remote that refuses a class")
        await world.until(lambda: len(stored_files(tmp_path / "ours")) >= len(order), "the server of ours")
        await world.until(
            lambda: {event["eventid"] for event in taken_by_hook} >= {str(event_id) for event_id in ids()},
            "the webhook",
        )
        assert following is not None
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await asyncio.to_thread(daemon.terminate)
        await asyncio.to_thread(ours.terminate)

    # The stream: every object that is kept, once; ids without a gap.
    assert sorted(order) == sorted(kept)
    assert ids() == list(range(ids()[0], ids()[0] + len(ids())))
    assert follower.connections > 1
    # The remotes: what is theirs, as it is kept.
    expect_each_once_and_in_order(slow, order)
    expect_each_once_and_in_order(picky, images)
    for destination in (slow, picky):
        assert destination.datasets == {uid: kept[uid] for uid in destination.datasets}
    assert {each.sop_instance_uid: each.dataset for each in stored_files(tmp_path / "ours")} == kept
    # The webhook: every event, repeats marked.
    expect_repeats_marked(receiver.posts)
    assert {event["eventid"] for event in taken_by_hook} == {str(event_id) for event_id in ids()}
    told = [event["data"]["sop_instance_uid"] for event in taken_by_hook if event["type"] == "object.stored"]
    assert by_sender(list(dict.fromkeys(told))) == by_sender(order)
    traced = [n for n, line in enumerate(daemon.output) if "Traceback" in line]
    assert not traced, "\n".join(daemon.output[traced[0] - 5 : traced[0] + 40])
