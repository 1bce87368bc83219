"""How much of the event loop the reading of data sets may take: little of each turn, all together.

A header of nothing but empty elements costs a microsecond for each eight bytes, and a deflated one inflates
to two hundred times what was sent. Peers that send such things, however many, must not make others wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Final, TypeVar

TURN_SECONDS: Final = 0.002
"""Of one turn of the loop. A C-ECHO takes about three turns; usual headers are read in a tenth of this."""

T = TypeVar("T")


class LoopShare:
    """The share of a loop's time that its readers have together; who wants more waits in the order of asking.

    A turn takes at most `seconds`, and two steps more: the one that reaches the limit, and the one of who has
    waited.
    """

    def __init__(self, seconds: float = TURN_SECONDS, clock: Callable[[], float] = time.perf_counter) -> None:
        self._seconds = seconds
        self._clock = clock
        self._spent_seconds = 0.0
        self._turn_is_coming = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def run(self, steps: Generator[None, None, T]) -> T:
        """Take all of `steps`, resting between two once the turn is used up; returns what they return.

        Raises what they raise.
        """
        while True:
            if self._spent_seconds >= self._seconds:
                await self._wait()
            began = self._clock()
            try:
                next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                self._spent_seconds += self._clock() - began
                self._ask_for_turn()

    async def _wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _ask_for_turn(self) -> None:
        if not self._turn_is_coming:
            self._turn_is_coming = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_is_coming = False
        self._spent_seconds = 0.0
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():
                first.set_result(None)
                self._ask_for_turn()
                return
