"""What a matcher can tell a database: tests that every matching value passes, and perhaps others too.

Text is in normal form C, dates are `YYYYMMDD`, person names are folded (`matching.folded_name`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The value is one of these."""

    values: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class StartsWith:
    """The text begins with this, which is not empty."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Contains:
    """The text has this in it; it is not empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Between:
    """The text lies between these in the order of its code points, both included; None is no bound."""

    low: str | None
    high: str | None


Hint = AnyOf | StartsWith | Contains | Between
