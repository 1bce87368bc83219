"""`scp-server findings list`, of a running server or of a folder that none runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scp_server.cli.control_client import running_server
from scp_server.cli.data_dir import data_folder, offline_settings
from scp_server.cli.offline_commands import Asked, OfflineCommands
from scp_server.cli.output import ExitCode, say, say_json
from scp_server.errors import ConfigurationError
from scp_server.objects.validation.finding import Code, Severity
from scp_server.observability.text import printable

MAX_LISTED = 10_000
"""Findings in a JSON document; without --json all are printed."""


@contextmanager
def _asked(data_dir: Path) -> Iterator[Asked]:
    """The running server; where none runs, the index of the folder, which is only read."""
    with running_server(data_dir) as server:
        if server is not None:
            yield server
            return
    from scp_server.runtime.build import build_index
    from scp_server.runtime.findings_commands import findings_commands

    index = build_index(offline_settings(data_dir))
    commands = {
        "open": lambda _: index.open_to_read(),
        "close": lambda _: index.close(),
        **findings_commands(index),
    }
    with OfflineCommands(commands) as offline:
        offline.ask("open")
        try:
            yield offline
        finally:
            offline.ask("close")


def run_list(data_dir: Path | None, *, severity: str, code: str, study: str, as_json: bool) -> ExitCode:
    """Print the findings page by page, or at most MAX_LISTED as a document. Raises ConfigurationError."""
    _check("--severity", severity, [each.value for each in Severity])
    _check("--code", code, [each.value for each in Code])
    count = 0
    kept: list[dict[str, Any]] = []
    with _asked(data_folder(data_dir)) as server:
        after = ""
        while True:
            page = server.ask("findings.list", after=after, severity=severity, code=code, study=study)
            count += len(page["findings"])
            if as_json:
                kept += page["findings"][: MAX_LISTED - len(kept)]
            else:
                for each in page["findings"]:
                    say(_line(each))
            after = page["next"]
            if not after or (as_json and count > MAX_LISTED):
                break
    if as_json:
        say_json({"findings": kept, "findings_cut": count > len(kept)})
    else:
        say("1 finding" if count == 1 else f"{count} findings")
    return ExitCode.OK


def _check(option: str, value: str, known: list[str]) -> None:
    if value and value not in known:
        raise ConfigurationError(f"{option} {value!r} is none of {', '.join(known)}")


def _line(each: dict[str, Any]) -> str:
    part = "" if each["part_number"] == 1 else f" part {each['part_number']}"
    where = " ".join(text for text in (each["path"], each["keyword"], each["vr"]) if text)
    said = f"{each['severity']}: {each['code']}: {where + ': ' if where else ''}{each['sentence']}"
    return printable(f"{each['sop_instance_uid']}{part}: {said}")
