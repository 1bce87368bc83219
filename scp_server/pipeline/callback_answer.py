"""What the process of a callback answers. Not in its program, whose module has another name there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scp_server.objects.changes import Changes
from scp_server.pipeline.verdicts import NotDelivered, Reject, Undeliverable
from scp_server.reports.report import ThreatReport

ANSWERED: Final = 0
FORKED: Final = 1
"""An answer, too, and the callback has forked meanwhile: the process is not to be used again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended: with one of `verdict` and `raised`, or by returning.

    `returned` is the name of the type of what it returned; None for None, as it should be. `changes` are what
    the callback asked for of an instance, where it did; `report` is what came of an examination.
    """

    returned: str | None = None
    verdict: Reject | NotDelivered | Undeliverable | None = None
    raised: str = ""
    place: str = ""
    """Of what was raised the type and where, without its words."""
    traceback: str = ""
    changes: Changes | None = None
    report: ThreatReport | None = None
