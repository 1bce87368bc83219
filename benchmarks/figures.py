"""What was measured, its medians and spreads, and the goals: as Markdown tables, and as JSON between runs."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeVar

RATE = "per_second"
OURS = "scp_server"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a workload: its key in `Sample.values`, and how it is shown."""

    key: str
    heading: str
    decimals: int = 0
    spread: bool = False
    """Whether the least and the greatest are shown beside the median."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one server showed in one turn; no values where it failed, and `notes` say why."""

    workload: str
    at: int
    """How many senders, associations or instances."""
    server: str
    values: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several turns."""

    least: float
    median: float
    greatest: float


def spread(values: Iterable[float]) -> Spread | None:
    """Median, least and greatest; None of nothing."""
    found = sorted(values)
    return Spread(found[0], statistics.median(found), found[-1]) if found else None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that so much of an ordered sequence is not above; 0 of an empty one."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def rotated(these: Sequence[_T], turn: int) -> list[_T]:
    """The same in another order, so that over the turns each comes first as often as the others."""
    first = turn % len(these) if these else 0
    return [*these[first:], *these[:first]]


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio that is to be reached: one figure, by another server's or by the same one's elsewhere."""

    workload: str
    at: int
    against: str
    """The other server, or the same one where `against_at` says at what else."""
    factor: float
    server: str = OURS
    against_at: int = 0
    """0: the same."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A value that is not to be passed."""

    workload: str
    at: int
    key: str
    what: str
    most: float = float("inf")
    least: float = float("-inf")
    server: str = OURS


@dataclass(slots=True)
class Figures:
    """All samples of a run, in the order they were taken; `about` says on what machine and how."""

    about: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def of(self, workload: str, at: int, server: str, key: str = RATE) -> Spread | None:
        """Of all turns; None where there is nothing."""
        return spread(
            each.values[key]
            for each in self.samples
            if (each.workload, each.at, each.server) == (workload, at, server) and key in each.values
        )

    def sizes(self, workload: str) -> list[int]:
        """What a workload was measured with: numbers of senders, associations or instances."""
        return sorted({each.at for each in self.samples if each.workload == workload})

    def servers(self, workload: str) -> list[str]:
        """The servers in a workload, in the order of their first turns in the whole run."""
        order = list(dict.fromkeys(each.server for each in self.samples))
        there = {each.server for each in self.samples if each.workload == workload}
        return [each for each in order if each in there]

    def notes(self, workload: str) -> list[str]:
        """What went otherwise than it should have, each once."""
        return list(
            dict.fromkeys(
                f"{each.server} at {each.at}: {note}"
                for each in self.samples
                if each.workload == workload
                for note in each.notes
            )
        )

    def ratio(self, goal: Goal) -> float | None:
        """What was reached of a goal: the ratio of the medians."""
        ours = self.of(goal.workload, goal.at, goal.server)
        theirs = self.of(goal.workload, goal.against_at or goal.at, goal.against)
        return ours.median / theirs.median if ours and theirs and theirs.median else None

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps({"about": self.about, "samples": [asdict(each) for each in self.samples]}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Figures:
        """Raises ValueError, KeyError, TypeError for what `to_json` did not write."""
        read = json.loads(text)
        samples = [Sample(**{**each, "notes": tuple(each["notes"])}) for each in read["samples"]]
        return cls(dict(read["about"]), samples)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; what is in all columns but the first is on the right."""
    lines = [headings, ["---", *("---:" for _ in headings[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float, decimals: int = 0) -> str:
    """A figure as people read it: thousands apart."""
    return f"{value:,.{decimals}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def times(ratio: float) -> str:
    """A ratio as people read it."""
    return f"{ratio:.{0 if ratio >= 100 else 3}{'f' if ratio >= 100 else 'g'}}\N{MULTIPLICATION SIGN}"


def workload_table(
    figures: Figures, workload: str, columns: Sequence[Column], size_heading: str = "at once"
) -> str:
    """A row for each server, with each number of senders."""
    rows = []
    for server in figures.servers(workload):
        for at in figures.sizes(workload):
            found = [figures.of(workload, at, server, column.key) for column in columns]
            if any(found):
                cells = [_cell(each, column) for each, column in zip(found, columns, strict=True)]
                rows.append([server, str(at), *cells])
    return table(["", size_heading, *(column.heading for column in columns)], rows)


def _cell(found: Spread | None, column: Column) -> str:
    if found is None:
        return ""
    text = number(found.median, column.decimals)
    if column.spread and found.least < found.greatest:
        text += f" ({number(found.least, column.decimals)} to {number(found.greatest, column.decimals)})"
    return text


def goals_table(
    figures: Figures, goals: Sequence[Goal], bounds: Sequence[Bound], titles: Mapping[str, str]
) -> str:
    """Every goal with what was reached of it; those that this run has no figures for are left out.

    Empty where there are none.
    """
    rows = []
    for goal in goals:
        ratio = figures.ratio(goal)
        if ratio is None:
            continue
        against = f"itself with {goal.against_at}" if goal.against_at else goal.against
        rows.append(
            [
                f"{titles.get(goal.workload, goal.workload)}, {goal.server}",
                str(goal.at),
                against,
                times(goal.factor),
                times(ratio),
                "reached" if ratio >= goal.factor else "missed",
            ]
        )
    for bound in bounds:
        found = figures.of(bound.workload, bound.at, bound.server, bound.key)
        if found is None:
            continue
        wanted = (
            f"at most {number(bound.most)}"
            if bound.most < float("inf")
            else f"at least {number(bound.least)}"
        )
        met = bound.least <= found.median <= bound.most
        rows.append(
            [
                f"{titles.get(bound.workload, bound.workload)}, {bound.server}",
                str(bound.at),
                bound.what,
                wanted,
                number(found.median, 1),
                "reached" if met else "missed",
            ]
        )
    return table(["workload", "at once", "against", "goal", "in this run", ""], rows) if rows else ""


def ratios_table(
    figures: Figures, workloads: Sequence[str], titles: Mapping[str, str], ours: str, others: Sequence[str]
) -> str:
    """How many times as fast as others ours is, a row for each workload and number of senders.

    Others that no row has anything of are left out. Empty where nothing is left.
    """
    others = [other for other in others if any(other in figures.servers(workload) for workload in workloads)]
    rows = []
    for workload in workloads:
        for at in figures.sizes(workload):
            found = figures.of(workload, at, ours)
            if found is None:
                continue
            ratios = [figures.ratio(Goal(workload, at, other, 1, ours)) for other in others]
            rows.append(
                [
                    titles.get(workload, workload),
                    str(at),
                    number(found.median, 0 if found.median >= 10 else 2),
                    *("" if each is None else times(each) for each in ratios),
                ]
            )
    headings = ["", "at once", f"{ours}, a second", *(f"\N{DIVISION SIGN} {other}" for other in others)]
    return table(headings, rows) if rows and others else ""


def replaced(page: str, name: str, content: str) -> str:
    """A page with other content between `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises ValueError unless each of them is there once.
    """
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    result, count = pattern.subn(lambda found: f"{found[1]}{content}\n{found[2]}", page)
    if count != 1:
        raise ValueError(f"the marks of {name} are there {count} times")
    return result
