"""What `scp-server info` tells of an object: facts in blocks and tables, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

JSONValue = str | int | float | bool | None | Sequence["JSONValue"] | dict[str, "JSONValue"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One value with its name; `shown` is how people read it, where that is another text."""

    name: str
    value: JSONValue
    shown: str | None = None

    @property
    def text(self) -> str:
        """For people; empty where there is nothing to show."""
        return plain(self.value) if self.shown is None else self.shown


@dataclass(frozen=True, slots=True)
class Block:
    """Facts about one thing."""

    name: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The same facts about several things, a row for each."""

    name: str
    rows: tuple[tuple[Fact, ...], ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """Lines, each with how deep it is."""

    name: str
    lines: tuple[tuple[int, str, dict[str, JSONValue]], ...]
    """Depth, for people, for machines."""


Part = Block | Table | Outline


@dataclass(frozen=True, slots=True)
class Description:
    """All that is told of one object. `problems` are what could not be read."""

    title: str
    parts: tuple[Part, ...]
    problems: tuple[str, ...] = ()

    def as_json(self) -> dict[str, JSONValue]:
        """Names with underscores; facts without a value are null."""
        document: dict[str, JSONValue] = {"kind": self.title}
        for part in self.parts:
            document[_key(part.name)] = _json(part)
        document["problems"] = list(self.problems)
        return document


def plain(value: JSONValue) -> str:
    """A value as people read it."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case str() | int():
            return str(value)
        case dict():
            return ", ".join(f"{name} {plain(one)}" for name, one in value.items())
        case _:
            return ", ".join(plain(one) for one in value)


def by(values: Iterable[float], unit: str = "") -> str:
    """Numbers that belong together: `1 x 1 x 2 mm`."""
    return " x ".join(f"{value:.6g}" for value in values) + (f" {unit}" if unit else "")


def moment(text: str) -> str:
    """A date, a time or both of the standard's form (PS3.5 6.2) as people read them; other text as it is."""
    number, zone = text, ""
    for sign in "+-":
        if sign in text:
            number, _, rest = text.partition(sign)
            zone = f" {sign}{rest}"
    digits, _, fraction = number.strip().partition(".")
    if not digits.isdigit() or (fraction and not fraction.isdigit()):
        return text
    seconds = f".{fraction}" if fraction.strip("0") else ""
    if len(digits) == 8 and not fraction:
        return _date(digits)
    if len(digits) == 6:
        return _time(digits) + seconds + zone
    if len(digits) == 14:
        return f"{_date(digits[:8])} {_time(digits[8:])}{seconds}{zone}"
    return text


def moments(date: str, time: str) -> str:
    """A date and its time."""
    return " ".join(part for part in (moment(date), moment(time)) if part)


def pixel_type(dtype: str) -> str:
    """numpy's `<u2` in words."""
    kind = {"u": "unsigned", "i": "signed", "f": "floating point"}[dtype[1]]
    return f"{kind}, {int(dtype[2:]) * 8} bits"


def _date(digits: str) -> str:
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:]}"


def _time(digits: str) -> str:
    return f"{digits[:2]}:{digits[2:4]}:{digits[4:]}"


def _key(name: str) -> str:
    return name.replace(" ", "_")


def _json(part: Part) -> JSONValue:
    match part:
        case Block():
            return _facts(part.facts)
        case Table():
            return [_facts(row) for row in part.rows]
        case Outline():
            return [{"depth": depth, **values} for depth, _, values in part.lines]


def _facts(facts: Iterable[Fact]) -> dict[str, JSONValue]:
    return {_key(fact.name): None if fact.value == "" else fact.value for fact in facts}
