"""What `scp-server store` says: a progress bar while it works, every file and a summary at its end."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scp_server.cli.output import say, say_json, status_text
from scp_server.cli.store import FileResult, Outcome
from scp_server.observability.text import peer_text, printable


@dataclass(frozen=True, slots=True)
class Report:
    """The results of all files, the data set bytes that were sent, and how long it took."""

    results: Sequence[FileResult]
    sent_bytes: int
    seconds: float

    def write(self, *, as_json: bool) -> None:
        """Print it: one JSON document, or a line for each file and a summary."""
        if as_json:
            say_json({"files": [_plain(result) for result in self.results], "summary": self.summary()})
            return
        for result in self.results:
            say(_line(result))
        say(self._summary_line())

    def summary(self) -> dict[str, Any]:
        """The counts by outcome, bytes, seconds and rate."""
        counts = Counter(result.outcome for result in self.results)
        return {
            "files": len(self.results),
            **{outcome.value.replace(" ", "_"): counts[outcome] for outcome in Outcome},
            "bytes": self.sent_bytes,
            "seconds": round(self.seconds, 3),
            "bytes_per_second": round(self.sent_bytes / self.seconds) if self.seconds > 0 else 0,
        }

    def _summary_line(self) -> str:
        counts = Counter(result.outcome for result in self.results)
        parts = [f"{counts[outcome]} {outcome.value}" for outcome in Outcome if counts[outcome]]
        rate = self.sent_bytes / self.seconds / 1e6 if self.seconds > 0 else 0.0
        return (
            f"{len(self.results)} files: {', '.join(parts) or 'none'}; "
            f"{self.sent_bytes / 1e6:.1f} MB in {self.seconds:.2f} s ({rate:.1f} MB/s)"
        )


def _plain(result: FileResult) -> dict[str, Any]:
    candidate = result.candidate
    return {
        "file": str(result.path),
        "outcome": result.outcome.value.replace(" ", "_"),
        "status": None if result.status is None else status_text(result.status),
        "reason": result.reason,
        "error_comment": peer_text(result.comment),
        "sop_class_uid": candidate.sop_class_uid if candidate else None,
        "sop_instance_uid": candidate.sop_instance_uid if candidate else None,
        "transfer_syntax_uid": candidate.transfer_syntax_uid if candidate else None,
        "dataset_bytes": candidate.dataset_bytes if candidate else None,
    }


def _line(result: FileResult) -> str:
    status = "" if result.status is None else f"{status_text(result.status)} "
    reason = f": {printable(result.reason)}" if result.reason and result.outcome is not Outcome.STORED else ""
    comment = f" ({peer_text(result.comment)})" if result.comment else ""
    return f"{result.outcome.value}: {status}{printable(str(result.path))}{reason}{comment}"


@contextlib.contextmanager
def progress_bar(
    total_bytes: int, total_files: int, *, at_terminal: bool
) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error that follows the bytes, when that is a terminal; otherwise nothing.

    Gives a function that takes further bytes and further finished files.
    """
    if not (at_terminal and total_files and sys.stderr.isatty()):
        yield _no_advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.fields[files]}/{task.fields[total_files]} files"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("store", total=total_bytes, files=0, total_files=total_files)
        files = 0

        def advance(size_bytes: int, finished: int) -> None:
            nonlocal files
            files += finished
            bar.update(task, advance=size_bytes, files=files)

        yield advance


def _no_advance(_size_bytes: int, _finished: int) -> None:
    """Nobody watches."""
