"""`scp-server backup` and `scp-server restore`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from scp_server.cli.maintenance import Listing, load, progress_bar
from scp_server.cli.output import ExitCode, say, say_json

if TYPE_CHECKING:
    from scp_server.runtime.maintenance.backup import BackupReport


def run_backup(
    config: Path | None, data_dir: Path | None, output: Path, *, copy_objects: bool, as_json: bool
) -> ExitCode:
    """Back up, and tell what was copied. 1 when an object is missing or damaged."""
    settings = load(config, data_dir)
    from scp_server.runtime.maintenance.backup import backup

    listing = Listing(as_json=as_json)
    with progress_bar(as_json=as_json) as progress:
        report = asyncio.run(backup(settings, output, listing.take, progress, copy_objects=copy_objects))
    return _tell("backed up", report, listing, as_json=as_json)


def run_restore(config: Path | None, data_dir: Path | None, source: Path, *, as_json: bool) -> ExitCode:
    """Restore, and tell what was put back. 1 when something was missing or damaged."""
    settings = load(config, data_dir)
    from scp_server.runtime.maintenance.backup import restore

    listing = Listing(as_json=as_json)
    with progress_bar(as_json=as_json) as progress:
        report = asyncio.run(restore(settings, source, listing.take, progress))
    return _tell("restored", report, listing, as_json=as_json)


def _tell(done: str, report: BackupReport, listing: Listing, *, as_json: bool) -> ExitCode:
    outline, findings = report.outline, report.findings
    if as_json:
        say_json(
            {
                "objects": outline.objects,
                "parts": outline.parts,
                "bytes": outline.bytes,
                "linked": report.linked,
                "failed": findings.left,
                **listing.document(),
            }
        )
    else:
        say(
            f"{done}: {outline.objects} objects ({outline.bytes / 1e6:.1f} MB, {report.linked} hard links), "
            f"{outline.parts} parts in the index; {findings.left} failed"
        )
    return ExitCode.FAILED if findings.left else ExitCode.OK
