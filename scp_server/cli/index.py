"""`scp-server index rebuild` and `scp-server index verify`; the latter also by the running server."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scp_server.cli.control_client import running_server
from scp_server.cli.maintenance import Listing, load, progress_bar
from scp_server.cli.output import ExitCode, say, say_json
from scp_server.observability.text import printable

if TYPE_CHECKING:
    from scp_server.cli.control_client import ControlClient
    from scp_server.runtime.maintenance.progress import Progress
    from scp_server.runtime.maintenance.verify import VerifyOptions, VerifyReport


def run_rebuild(config: Path | None, data_dir: Path | None, *, as_json: bool) -> ExitCode:
    """Rebuild, and tell how it went. 1 when a file could not be read."""
    settings = load(config, data_dir)
    from scp_server.runtime.maintenance.rebuild import rebuild

    listing = Listing(as_json=as_json)
    with progress_bar(as_json=as_json) as progress:
        report = asyncio.run(rebuild(settings, listing.take, progress))
    totals = report.totals
    if as_json:
        say_json(
            {
                "objects": report.objects,
                "resumed": report.resumed,
                "totals": asdict(totals),
                "duplicates": report.duplicates,
                "unreadable": report.unreadable,
                "kept_copy": None if report.kept_copy is None else str(report.kept_copy),
                **listing.document(),
            }
        )
    else:
        say(
            f"{report.objects} objects: {totals.parts} parts of {totals.instances} instances, "
            f"{totals.series} series, {totals.studies} studies, {totals.patients} patients; "
            f"{report.unreadable} unreadable, {report.duplicates} duplicates"
        )
        if report.kept_copy is not None:
            say(f"the old index is kept as {printable(str(report.kept_copy))}")
    return ExitCode.FAILED if report.unreadable else ExitCode.OK


def run_verify(
    config: Path | None,
    data_dir: Path | None,
    *,
    digest: bool,
    repair: bool,
    drop_danglers: bool,
    as_json: bool,
) -> ExitCode:
    """Compare, and tell what was found. 1 when something is left that was not repaired."""
    settings = load(config, data_dir)
    from scp_server.runtime.maintenance.findings import Kind
    from scp_server.runtime.maintenance.verify import VerifyOptions, verify

    listing = Listing(as_json=as_json)
    options = VerifyOptions(digest=digest, repair=repair, drop_danglers=drop_danglers)
    options.check()
    with running_server(settings.data_dir) as server, progress_bar(as_json=as_json) as progress:
        if server is not None:
            report = _verify_running(server, options, listing, progress)
        else:
            report = asyncio.run(verify(settings, options, listing.take, progress))
    findings = report.findings
    if as_json:
        say_json(
            {
                "objects": report.objects,
                "parts": report.parts,
                "digests_compared": digest,
                "found": {kind.value: findings.found[kind] for kind in Kind if findings.found[kind]},
                "repaired": {kind.value: findings.repaired[kind] for kind in Kind if findings.repaired[kind]},
                "left": findings.left,
                **listing.document(),
            }
        )
    else:
        say(
            f"{report.objects} objects, {report.parts} parts in the index: {findings.total} findings, "
            f"{findings.total - findings.left} repaired"
        )
    return ExitCode.FAILED if findings.left else ExitCode.OK


def _verify_running(
    server: ControlClient, options: VerifyOptions, listing: Listing, progress: Progress
) -> VerifyReport:
    """The same, done by the server that runs on the folder; it ends when nobody listens to it any more."""
    from scp_server.runtime.maintenance.findings import Findings, Kind
    from scp_server.runtime.maintenance.verify import VerifyReport

    findings = Findings(listing.take)

    def take(item: dict[str, Any]) -> None:
        findings.add(Kind(item["kind"]), item["location"], item["detail"], repaired=item["repaired"])

    result = server.follow("index.verify", asdict(options), progress, take)
    return VerifyReport(result["objects"], result["parts"], findings)
