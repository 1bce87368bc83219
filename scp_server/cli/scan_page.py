"""The pages of `scp-server scan show`. Every text that began with a peer is printable, and no markup."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from scp_server.cli.status_page import size
from scp_server.observability.text import printable

_LABEL = "bold cyan"
_STYLES = {"ALARM": "bold red", "CLEAR": "bold green", "UNKNOWN": "bold yellow"}
_NS = 1_000_000_000
_STATES = {
    "undecided": "none: no report that decides",
    "waiting": "none yet: waits for a report",
    "missing": "none: the report is MISSING",
    "none": "none",
}


def scan_page(scan: dict[str, Any]) -> RenderableType:
    """One scan."""
    parts: list[RenderableType] = [_facts(scan), Text()]
    parts.append(_heading("images", len(scan["images"]), more=scan["more_images"]))
    parts.append(_images(scan["images"]))
    parts += [Text(), _heading("reports", len(scan["reports"]), more=scan["more_reports"])]
    parts.append(_reports(scan["reports"]))
    if scan["orphans"]:
        parts += [Text(), _heading("reports on what has not come", len(scan["orphans"]))]
        parts.append(_reports(scan["orphans"]))
    return Group(*parts)


def matches_page(matches: Sequence[dict[str, Any]], more: bool) -> RenderableType:
    """The scans that have an id, one on a line."""
    table = Table(box=None, pad_edge=False, header_style=_LABEL)
    for title in ("object", "scan", "date", "decision", "Study Instance UID"):
        table.add_column(title, overflow="fold")
    for match in matches:
        table.add_row(
            _text(match["object_id"]),
            _text(match["scan_id"]),
            _text(f"{match['scan_date'] or ''} {match['scan_time'] or ''}".strip()),
            _decision(match["alarm_decision"], match["state"]),
            _text(match["study_instance_uid"]),
        )
    return Group(_heading("scans; say which by its UID", len(matches), more=more), table)


def _facts(scan: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style=_LABEL, no_wrap=True)
    table.add_column(overflow="fold")
    thing, machine, decision = scan["object"], scan["machine"], scan["decision"]
    table.add_row("decision", _decision(scan["alarm_decision"], scan["state"]))
    if decision is not None:
        how = f"{decision['tdr_type']} at {decision['alarm_decision_time'] or 'no time'}"
        table.add_row("", _text(f"{how}: {decision['reason']}" if decision["reason"] else how))
        table.add_row("latency", _text(_latency(decision)))
    table.add_row("object", _text(_joined(thing["id"], thing["type"], thing["id_type"], thing["issuer"])))
    when = f"{scan['scan_date'] or ''} {scan['scan_time'] or ''}".strip()
    table.add_row("scan", _text(_joined(scan["scan_id"], when, scan["scan_type"], scan["description"])))
    names = ("station_name", "manufacturer", "manufacturer_model_name", "device_serial_number")
    found = [machine.get(name) for name in (*names, "institution_name", "peer_name")]
    table.add_row("machine", _text(_joined(*found)))
    table.add_row("UID", _text(scan["study_instance_uid"]))
    return table


def _latency(decision: dict[str, Any]) -> str:
    scan_ms, image_ms = decision["scan_to_decision_ms"], decision["image_to_report_ms"]
    return _joined(
        None if scan_ms is None else f"{scan_ms / 1_000:.1f} s from scan to decision",
        None if image_ms is None else f"{image_ms / 1_000:.1f} s from image to report",
    )


def _images(images: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style=_LABEL)
    for title in ("kind", "part", "size", "received", "SOP Instance UID"):
        table.add_column(title, overflow="fold")
    for image in images:
        for part in image["parts"]:
            table.add_row(
                _text(image["modality"]),
                str(part["part_number"]),
                size(part["size_bytes"]),
                _moment(part["received_at_ns"]),
                _text(image["sop_instance_uid"]),
            )
    return table


def _reports(reports: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style=_LABEL)
    for title in ("", "type", "decision", "decided", "by", "received", "SOP Instance UID"):
        table.add_column(title, overflow="fold")
    for report in reports:
        table.add_row(
            "*" if report["decides"] else "",
            _text(report["tdr_type"]),
            _decision(report["alarm_decision"], "none"),
            _text(report["alarm_decision_time"]),
            _text(report["by"]),
            _moment(report["received_at_ns"]),
            _text(report["sop_instance_uid"]),
        )
    return table


def _heading(what: str, count: int, more: bool = False) -> Text:
    first, _, rest = what.partition(" ")
    counted = first.removesuffix("s") if count == 1 and not more else first
    return Text(
        f"{count}{' or more' if more else ''} {' '.join(filter(None, (counted, rest)))}", style="bold"
    )


def _decision(decision: str | None, state: str) -> Text:
    if decision is None:
        return Text(_STATES.get(state, state))
    return Text(printable(decision), style=_STYLES.get(decision, ""))


def _moment(at_ns: int) -> str:
    return f"{datetime.fromtimestamp(at_ns // _NS, UTC):%Y-%m-%d %H:%M:%S}Z"


def _joined(*values: object) -> str:
    return ", ".join(str(value) for value in values if value)


def _text(value: object) -> Text:
    return Text("" if value is None else printable(str(value)))
