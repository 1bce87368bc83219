"""What the maintenance commands share: settings, a progress bar, and findings for people and for machines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scp_server.cli.output import say
from scp_server.cli.serve import tables
from scp_server.observability.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from scp_server.runtime.maintenance.findings import Finding
    from scp_server.runtime.maintenance.progress import Progress
    from scp_server.settings import Settings

MAX_LISTED = 10_000
"""Findings in a JSON document; all are counted, and without --json all are printed."""


def load(config: Path | None, data_dir: Path | None) -> Settings:
    """The settings that the server would have; logs go to standard error. Raises ConfigurationError."""
    from scp_server.observability.logs import configure_logging
    from scp_server.settings import load_settings

    settings = load_settings(config, tables({"data_dir": None if data_dir is None else str(data_dir)}))
    configure_logging(settings.log.format, settings.log.level)
    return settings


class Listing:
    """Takes findings: prints each, or keeps the first MAX_LISTED for the document."""

    def __init__(self, *, as_json: bool, most: int = MAX_LISTED) -> None:
        self._as_json = as_json
        self._most = most
        self._kept: list[dict[str, Any]] = []
        self._count = 0

    def take(self, finding: Finding) -> None:
        """One more."""
        self._count += 1
        if not self._as_json:
            repaired = " (repaired)" if finding.repaired else ""
            detail = f": {printable(finding.detail)}" if finding.detail else ""
            say(f"{finding.kind.value}: {printable(finding.location)}{detail}{repaired}")
        elif len(self._kept) < self._most:
            self._kept.append(
                {
                    "kind": finding.kind.value,
                    "location": finding.location,
                    "detail": finding.detail,
                    "repaired": finding.repaired,
                }
            )

    def document(self) -> dict[str, Any]:
        """What was kept, and whether that is less than all."""
        return {"findings": self._kept, "findings_cut": self._count > len(self._kept)}


class _RichProgress:
    """A bar for each stage."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def begin(self, stage: str, total: int | None) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(stage, total=total)

    def advance(self, count: int = 1) -> None:
        if self._task is not None:
            self._bar.advance(self._task, count)


@contextlib.contextmanager
def progress_bar(*, as_json: bool) -> Iterator[Progress]:
    """A bar on standard error when that is a terminal and nobody wants JSON; otherwise nothing."""
    from scp_server.runtime.maintenance.progress import NoProgress

    if as_json or not sys.stderr.isatty():
        yield NoProgress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _RichProgress(bar)
