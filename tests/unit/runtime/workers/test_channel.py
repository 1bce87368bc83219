"""Questions and answers between two processes."""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from scp_server.errors import SCPServerError, StorageFull
from scp_server.observability.logs import captured_logs
from scp_server.runtime.workers.channel import Channel, ChannelEnded, Notice, Question


@dataclass(frozen=True, slots=True)
class Double(Question[int]):
    number: int


@dataclass(frozen=True, slots=True)
class Said(Notice):
    text: str


class Other:
    """Answers, and remembers in which order it was asked and told."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.hold: asyncio.Event | None = None

    async def answer(self, question: Question[Any]) -> object:
        assert isinstance(question, Double)
        self.heard.append(question.number)
        if self.hold is not None:
            await self.hold.wait()
        if question.number == 0:
            raise StorageFull("nothing is left")
        if question.number < 0:
            raise ValueError("a bug")
        return 2 * question.number

    def hear(self, notice: Notice) -> None:
        self.heard.append(notice)


@dataclass
class Pair:
    here: Channel
    there: Channel
    other: Other


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    first, second = socket.socketpair()
    other = Other()
    pair = Pair(
        await Channel.over(first, Other().answer, Other().hear),
        await Channel.over(second, other.answer, other.hear),
        other,
    )
    yield pair
    pair.here.close()
    await pair.there.ended.wait()


async def test_each_question_gets_its_own_answer(pair: Pair) -> None:
    answers = await asyncio.gather(*(pair.here.ask(Double(number)) for number in range(1, 100)))
    assert answers == [2 * number for number in range(1, 100)]
    assert await pair.there.ask(Double(4)) == 8


async def test_what_is_sent_in_one_turn_goes_out_in_one_write(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[bytes] = []
    transport = pair.here._transport
    assert transport is not None

    class Counting:
        def write(self, data: bytes) -> None:
            writes.append(data)
            assert transport is not None
            transport.write(data)

    monkeypatch.setattr(pair.here, "_transport", Counting())
    await asyncio.gather(*(pair.here.ask(Double(number)) for number in range(1, 50)))
    monkeypatch.setattr(pair.here, "_transport", transport)
    assert len(writes) == 1


async def test_what_is_told_is_heard_in_order_and_before_later_questions(pair: Pair) -> None:
    pair.here.tell(Said("a"))
    pair.here.tell(Said("b"))
    await pair.here.ask(Double(1))
    assert pair.other.heard == [Said("a"), Said("b"), 1]


async def test_our_exceptions_reach_who_asked_and_bugs_are_logged_there(pair: Pair) -> None:
    with pytest.raises(StorageFull, match="nothing is left"):
        await pair.here.ask(Double(0))
    with captured_logs() as logs, pytest.raises(SCPServerError, match="its log says why"):
        await pair.here.ask(Double(-1))
    assert [line["event"] for line in logs] == ["worker.not_understood"]
    assert await pair.here.ask(Double(1)) == 2


async def test_who_waits_learns_that_the_other_end_is_gone(pair: Pair) -> None:
    pair.other.hold = asyncio.Event()
    waiting = pair.here.asked(Double(1))
    dropped = pair.here.asked(Double(2))
    while len(pair.other.heard) < 2:
        await asyncio.sleep(0)
    pair.there.close()
    with pytest.raises(ChannelEnded):
        await waiting
    del dropped
    assert pair.here.ended.is_set()
    with pytest.raises(ChannelEnded):
        await pair.here.ask(Double(3))
    pair.here.tell(Said("to nobody"))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 3) + b"xyz",
        struct.pack(">I", 4) + pickle.dumps(1)[:4],
    ],
)
async def test_what_cannot_be_understood_ends_the_channel(data: bytes) -> None:
    first, second = socket.socketpair()
    channel = await Channel.over(first, Other().answer, Other().hear)
    with captured_logs() as logs, second:
        second.sendall(data)
        await channel.ended.wait()
    assert [line["event"] for line in logs] == ["worker.not_understood"]
