"""A whole server with callbacks: what happens to a peer of it, and what they are told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from scp_server import Reject, Server, callback
from scp_server.observability.logs import captured_logs
from scp_server.testing import wire
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import Rejection, ScriptedPeer, storage_contexts
from scp_server.testing.wire import ProposedContext

StartServer = Callable[..., Awaitable[Server]]
VERIFICATION = ProposedContext(99, wire.VERIFICATION, ("1.2.840.10008.1.2",))


class Diary:
    """Callbacks of every stage that write down what they are told."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Any]] = []
        self.disconnected = asyncio.Event()

    def at(self, stage: str) -> Any:
        async def write(subject: Any) -> None:
            self.entries.append((stage, subject))
            if stage == "disconnected":
                self.disconnected.set()

        return callback(stage, name=stage)(write)


async def test_every_stage_of_an_association_is_told_in_order_with_its_id(start_server: StartServer) -> None:
    diary, stored = Diary(), ct_image()
    stages = ["connected", "associated", "accepted", "echo", "received", "invalid", "ended", "disconnected"]
    server = await start_server(callbacks=list(map(diary.at, stages)))
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate([*storage_contexts(stored), VERIFICATION], calling_ae_title="CT1")
        assert await peer.echo() == 0x0000
        assert await peer.store(stored) == 0x0000
        other = ct_image(seed=9, sop_instance_uid=stored.sop_instance_uid)
        assert await peer.store(other) == 0xC111
        await peer.release()
    await asyncio.wait_for(diary.disconnected.wait(), 10)
    async with httpx.AsyncClient() as client:
        metrics = await client.get("http://{}:{}/metrics".format(*server.http_address))
    order = ["connected", "associated", "accepted", "echo", "received", "received", "invalid", "ended"]
    assert [stage for stage, _ in diary.entries] == [*order, "disconnected"]
    told = dict(diary.entries)
    association = told["associated"]
    assert association.calling_ae_title == "CT1"
    assert association.implementation_class_uid
    for stage in ("echo", "received", "invalid", "ended"):
        assert told[stage].association.association_id == association.association_id
    assert (told["ended"].outcome, told["ended"].operations) == ("released", 3)
    assert told["ended"].dataset_bytes == len(stored.dataset) + len(other.dataset)
    assert told["invalid"].status == 0xC111
    assert told["connected"].peer_port == association.peer_port
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text)
        for sample in family.samples
    }
    assert samples["scp_callback_calls_total", "received", "returned"] == 2
    assert samples["scp_callback_duration_seconds_count", "echo"] == 1


async def test_a_peer_that_a_callback_refuses_is_told_1_1_1_and_others_are_not(
    start_server: StartServer,
) -> None:
    @callback("associated", calling_ae_titles=["MR*"], run_in="thread")
    def no_mr(association: Any) -> None:
        raise Reject(comment="no MR here")

    server = await start_server(callbacks=[no_mr])
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.send(wire.associate_rq([VERIFICATION], calling_ae_title="MR1"))
        assert await peer.expect_reject() == Rejection(1, 1, 1)
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate([VERIFICATION], calling_ae_title="CT1")
        assert await peer.echo() == 0x0000
        await peer.release()


async def test_a_callback_that_never_answers_costs_its_time_limit_and_nobody_else(
    start_server: StartServer,
) -> None:
    asked = asyncio.Event()

    @callback("received", modalities=["CT"], timeout_seconds=0.3)
    async def endless(instance: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    stored = ct_image()
    server = await start_server(callbacks=[endless])
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(storage_contexts(stored))
        with captured_logs() as lines:
            storing = asyncio.create_task(peer.store(stored))
            await asyncio.wait_for(asked.wait(), 10)
            async with await ScriptedPeer.connect(*server.address) as other:
                await other.associate([VERIFICATION])
                assert await other.echo() == 0x0000
                await other.release()
            assert await storing == 0xA700
        await peer.release()
        assert (await server.index.totals()).parts == 0
    assert [line["outcome"] for line in lines if line["event"] == "callback.failed"] == ["timed_out"]


async def test_a_server_that_stops_waits_for_no_callback_beyond_its_drain_time(
    start_server: StartServer,
) -> None:
    asked, leave = asyncio.Event(), threading.Event()

    @callback("received")
    async def endless(instance: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    @callback("connected")
    def also_endless(connection: Any) -> None:
        leave.wait(60)

    stored = ct_image()
    server = await start_server(callbacks=[endless, also_endless], drain_timeout_seconds=0.1)
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(storage_contexts(stored))
        await peer.send_store(stored)
        await asyncio.wait_for(asked.wait(), 10)
        with captured_logs():
            assert not await asyncio.wait_for(server.stop(), 10)
    leave.set()
