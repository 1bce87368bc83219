"""How long work tells how far it is; the command line draws a bar from it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One stage after another, each of a number of objects."""

    def begin(self, stage: str, total: int | None) -> None:
        """A stage begins; `total` objects, None where that is not known."""
        ...

    def advance(self, count: int = 1) -> None:
        """So many more objects are done."""
        ...


class NoProgress:
    """Nobody watches."""

    def begin(self, stage: str, total: int | None) -> None:
        """See `Progress.begin`."""

    def advance(self, count: int = 1) -> None:
        """See `Progress.advance`."""
