"""`scp-server validate`: every file is read piece by piece and judged; findings are told as they come."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from scp_server.cli.maintenance import MAX_LISTED, progress_bar
from scp_server.cli.output import ExitCode, say, say_json
from scp_server.cli.store_plan import Unsendable, files_below
from scp_server.objects.validation.finding import Code, Report
from scp_server.objects.validation.whole_file import FileValidation
from scp_server.observability.text import printable

_CHUNK_BYTES: Final = 1 << 20
_PREFIX: Final = slice(128, 132)


class NotJudged(Exception):
    """A file that has no report, and why. `is_failure`: it should have had one."""

    def __init__(self, reason: str, *, is_failure: bool) -> None:
        super().__init__(reason)
        self.is_failure = is_failure


def run_validate(paths: Sequence[Path], *, as_json: bool) -> ExitCode:
    """Judge all files, and tell what was found. 1 when there is an error, or a file could not be read."""
    told = _Told(as_json=as_json)
    with progress_bar(as_json=as_json) as progress:
        progress.begin("validate", sum(1 for _ in _files(paths)))
        for found, named in _files(paths):
            if isinstance(found, Unsendable):
                told.not_judged(found.path, NotJudged(found.reason, is_failure=True))
            else:
                try:
                    told.judged(found, judge(found, named=named))
                except NotJudged as why:
                    told.not_judged(found, why)
            progress.advance()
    told.finish()
    return ExitCode.FAILED if told.failed else ExitCode.OK


def judge(path: Path, *, named: bool = True) -> Report:
    """The report of one file, read piece by piece. Raises NotJudged for what is no DICOM file."""
    try:
        # A pipe or device in a folder would block whoever opens it.
        if not stat.S_ISREG((status := path.stat()).st_mode):
            raise NotJudged("no regular file", is_failure=named)
        with path.open("rb", buffering=0) as file:
            chunk = file.read(_CHUNK_BYTES)
            if chunk[_PREFIX] != b"DICM":
                raise NotJudged("no DICOM Part 10 file", is_failure=named)
            validation = FileValidation(status.st_size)
            while chunk:
                for _ in validation.steps(chunk):
                    pass
                chunk = file.read(_CHUNK_BYTES)
    except OSError as error:
        raise NotJudged(f"cannot be read: {error.strerror}", is_failure=True) from error
    return validation.finish()


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path | Unsendable, bool]]:
    """All files, and whether each was named itself; of a folder those below it, by name."""
    for path in paths:
        if not path.is_dir():
            yield path, True
            continue
        for found in files_below(path):
            yield found, False


class _Told:
    """What is told of the files: at once as text, or for JSON kept, at most `MAX_LISTED` findings."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._counts: Counter[str] = Counter()
        self._files: list[dict[str, Any]] = []
        self._listed = 0

    @property
    def failed(self) -> bool:
        """An error was found, or a file could not be read."""
        return bool(self._counts["errors"] or self._counts["unreadable"])

    def judged(self, path: Path, report: Report) -> None:
        """A file has its report."""
        self._counts["files"] += 1
        self._counts["errors"] += report.errors
        self._counts["warnings"] += report.warnings
        self._counts["infos"] += report.infos
        self._counts["files_with_errors"] += bool(report.errors)
        self._counts["unreadable"] += any(finding.code is Code.UNREADABLE for finding in report.findings)
        if not report.findings:
            return
        if self._as_json:
            self._keep({"file": str(path), **report.as_json()}, len(report.findings))
            return
        say(f"{printable(str(path))}: {_counted(report.errors, report.warnings, report.infos)}")
        for finding in report.findings:
            where = f" {finding.path}" if finding.path else ""
            say(f"  {finding.severity} {finding.code}{where}: {printable(finding.sentence)}")

    def not_judged(self, path: Path, why: NotJudged) -> None:
        """A file has none."""
        outcome = "unreadable" if why.is_failure else "skipped"
        self._counts[outcome] += 1
        if self._as_json:
            self._keep({"file": str(path), outcome: str(why)}, 1)
        else:
            say(f"{printable(str(path))}: {outcome}: {printable(str(why))}")

    def _keep(self, document: dict[str, Any], findings: int) -> None:
        if self._listed + findings <= MAX_LISTED:
            self._files.append(document)
            self._listed += findings
        else:
            self._counts["files_not_listed"] += 1

    def finish(self) -> None:
        """The summary, or the whole JSON document."""
        counts = self._counts
        if self._as_json:
            names = ("files", "files_with_errors", "unreadable", "skipped", "errors", "warnings", "infos")
            summary = {name: counts[name] for name in (*names, "files_not_listed")}
            say_json({"files": self._files, "summary": summary})
            return
        say(
            f"{counts['files']} files, {counts['files_with_errors']} with errors: "
            f"{_counted(counts['errors'], counts['warnings'], counts['infos'])}; "
            f"{counts['unreadable']} unreadable, {counts['skipped']} skipped"
        )


def _counted(errors: int, warnings: int, infos: int) -> str:
    return f"{errors} errors, {warnings} warnings, {infos} infos"
