"""What maintenance finds: each finding is handed on as it is made, and only counted here.

A million findings thus cost no memory; who wants a list keeps as much of it as it likes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is wrong with a file or a row."""

    ORPHAN = "orphan"
    """A file that the index does not know."""
    DUPLICATE = "duplicate"
    """An orphan with the bytes of a part that is kept elsewhere."""
    DANGLER = "dangler"
    """A row whose file is not there."""
    SIZE = "size"
    """A file with more or fewer bytes than its row says."""
    DIGEST = "digest"
    """A file whose data set has another digest than its row says."""
    UNREADABLE = "unreadable"
    """A file that cannot be read as the object it should be, or that the index refuses."""
    LEFT_OVER = "left_over"
    """Something half-written in `incoming`, or half-deleted, that the next start clears away."""
    DELETED_MEANWHILE = "deleted_meanwhile"
    """An object that was deleted while it should have been copied: no fault."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. `location` is relative to the data folder; `detail` says more, in words."""

    kind: Kind
    location: str
    detail: str = ""
    repaired: bool = False


Report = Callable[[Finding], None]
"""Takes each finding as it is made."""


class Findings:
    """Counts findings and hands each on."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.found: Counter[Kind] = Counter()
        self.repaired: Counter[Kind] = Counter()

    def add(self, kind: Kind, location: str, detail: str = "", *, repaired: bool = False) -> None:
        """Count one, and hand it on."""
        self.found[kind] += 1
        self.repaired[kind] += repaired
        self._report(Finding(kind, location, detail, repaired))

    @property
    def total(self) -> int:
        """All that was found."""
        return self.found.total()

    @property
    def left(self) -> int:
        """What was found and not repaired."""
        return self.found.total() - self.repaired.total()
