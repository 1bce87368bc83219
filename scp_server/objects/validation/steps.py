"""How much one validation may do: its limits, and the budget that keeps them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, TypeVar

_Result = TypeVar("_Result")
Steps = Generator[None, None, None]
"""Work in steps of a millisecond or so, between which others may work; to be iterated to its end."""

STEP_ELEMENTS: Final = 64
"""Elements looked at in one step."""


@dataclass(frozen=True, slots=True)
class ValidationLimits:
    """Bounds of one object's validation."""

    max_findings: int = 1_000
    """Findings that are listed; further ones are counted."""
    max_elements: int = 200_000
    """Elements and items that are looked at, at all levels; a large CT has some ten thousand."""
    max_sequence_bytes: int = 16_777_216
    """Bytes of sequences that are looked at, counted again at each depth: finding the end of a sequence of
    undefined length costs a microsecond for each eight of them. Headers have at most 4 MiB by default."""
    max_depth: int = 64
    """Sequences within sequences; what lies deeper is not looked at."""
    max_values: int = 256
    """Values of one element whose form is looked at; they are counted all the same."""


DEFAULT_LIMITS: Final = ValidationLimits()


class BudgetExhausted(Exception):
    """The object has more than is looked at. Caught where the validation ends."""


class Budget:
    """Counts what is looked at, and raises BudgetExhausted where that is all."""

    __slots__ = ("_bytes_left", "_left")

    def __init__(self, limits: ValidationLimits) -> None:
        self._left = limits.max_elements
        self._bytes_left = limits.max_sequence_bytes

    def spend(self) -> bool:
        """Take an element or item; whether a step is over with it."""
        self._left -= 1
        if self._left < 0:
            raise BudgetExhausted
        return self._left % STEP_ELEMENTS == 0

    def spend_bytes(self, count: int) -> None:
        """Take the bytes of a sequence that is about to be looked into."""
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise BudgetExhausted


def drained(steps: Generator[None, None, _Result]) -> _Result:
    """Do all steps at once; what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result
