"""Of a series everything comes in its order, once in a life, whatever happens in whatever order."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from scp_server.pipeline import log_reader, outbox, parking, window
from scp_server.pipeline.outbox import OutboxConfig
from tests.unit.pipeline.stepped_outbox import CONFIG, Choice, SteppedOutbox

SCHEDULES = int(os.environ.get("SCP_OUTBOX_SCHEDULES", "20"))
STEPS = 80
LIFE = 45
"""Steps of the life that ends at each of them."""
Make = Callable[..., SteppedOutbox]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that few events reach. Whatever is to be written is written at once."""
    _bounds(monkeypatch, page=512, lent=512)


def _bounds(
    monkeypatch: pytest.MonkeyPatch, page: int, lent: int, chain: int = 64, size: int = 1_024, lazy: float = 0
) -> None:
    monkeypatch.setattr(log_reader, "PAGE", page)
    monkeypatch.setattr(outbox, "PAGE", page)
    monkeypatch.setattr(parking, "LENT", lent)
    monkeypatch.setattr(parking, "CHAIN", chain)
    monkeypatch.setattr(window, "WINDOW", size)
    monkeypatch.setattr(outbox, "LAZY_SECONDS", lazy)


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Make]:
    made: list[SteppedOutbox] = []

    def make(series: str, concurrency: int = 4, config: OutboxConfig = CONFIG) -> SteppedOutbox:
        made.append(SteppedOutbox(series, concurrency, config))
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def test_what_comes_while_its_series_is_tried_does_not_overtake_what_fails_then(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bounds(monkeypatch, page=512, lent=4)
    stepped = make("aaaa")
    await stepped.start()
    await stepped.do("stored", "stored", "stored", "answers", "1 no", "answers", "later")
    await stepped.do("stored", *["answered"] * 4)
    assert stepped.one.under_way == [1]
    await stepped.do("1 no", "answers")
    assert stepped.one.under_way == []
    await stepped.end()
    assert [each.event.event_id for each in stepped.one.delivered] == [1, 2, 3, 4]


async def test_a_life_that_is_killed_before_it_has_read_everything_forgets_no_doubt(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bounds(monkeypatch, page=2, lent=512)
    stepped = make("abcd")
    await stepped.start()
    await stepped.do(*["stored"] * 4, "answers")
    assert stepped.one.under_way == [1, 2, 3, 4]
    await stepped.do("killed", "answered", "done and killed")
    await stepped.end()
    assert all(each.may_be_repeated for each in stepped.one.delivered)
    assert len(stepped.one.delivered) == 4


@pytest.mark.parametrize("end", ["killed", "stopped"])
async def test_what_is_parked_behind_the_position_is_not_delivered_twice_in_the_next_life(
    make: Make, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    _bounds(monkeypatch, page=1, lent=512)
    stepped = make("bab")
    await stepped.start()
    await stepped.do("stored", "answers", "1 no", "stored", "stored", "answers", "2 down", "answers")
    await stepped.do(end, "later")
    await stepped.end(deliveries_first=True)
    assert sorted(each.event.event_id for each in stepped.one.delivered) == [1, 2, 3]


async def test_what_is_due_is_tried_although_the_index_failed_when_it_was_to_be_read(make: Make) -> None:
    stepped = make("aa")
    await stepped.start()
    await stepped.do("stored", "stored", "answers", "1 no", "answers", "later", "failed", "later")
    await stepped.end()
    assert [each.event.event_id for each in stepped.one.delivered] == [1, 2]


@pytest.mark.parametrize("end", ["killed", "done and killed", "stopped"])
async def test_it_may_end_at_any_step(make: Make, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    _bounds(monkeypatch, page=2, lent=3, chain=2, size=3)
    first = make("aababaab", concurrency=2)
    await first.start()
    await _live(first, random.Random(1), LIFE, ends=0)
    ended = 0
    for step in range(LIFE + 1):
        stepped = make("aababaab", concurrency=2)
        await stepped.start()
        await stepped.do(*first.history[:step])
        if any(each.name == end for each in stepped.choices()):
            await stepped.do(end)
            await stepped.end()
            ended += 1
    assert ended > LIFE // 4


@pytest.mark.parametrize("seed", range(SCHEDULES))
async def test_everything_comes_in_order_whatever_happens(
    make: Make, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    _bounds(
        monkeypatch,
        page=chance.choice([2, 4, 512]),
        lent=chance.choice([3, 5, 512]),
        chain=chance.choice([2, 3, 64]),
        size=chance.choice([3, 6, 1_024]),
        lazy=chance.choice([0, 1_000]),
    )
    config = OutboxConfig(
        first_retry_seconds=10,
        max_retry_seconds=chance.choice([10, 100]),
        max_attempts=50,
        gather_seconds=0,
        max_parked=chance.choice([4, 10_000]),
    )
    series = "".join(chance.choice("aab") for _ in range(chance.choice([8, 15, 30])))
    stepped = make(series, chance.choice([1, 2, 4]), config)
    ends = chance.choice([0.0, 0.02, 0.08])
    await stepped.start()
    await _live(stepped, chance, STEPS, ends)
    await stepped.end()


async def _live(stepped: SteppedOutbox, chance: random.Random, steps: int, ends: float) -> None:
    """Anything happens, so many times."""
    for _ in range(steps):
        choices = stepped.choices()
        weights = [_weight(each, ends) for each in choices]
        await stepped.choose(chance.choices(choices, weights)[0])


def _weight(choice: Choice, ends: float) -> float:
    """How likely it is, beside others. A life ends with `ends`."""
    if choice.end is not None or choice.name == "failed":
        return ends
    often = {"answered": 3.0, "stored": 2.0, "later": 0.7, "delivered": 1.2, "no": 1.2, "down": 0.15}
    return often.get(choice.name.split()[-1], 0.04)
