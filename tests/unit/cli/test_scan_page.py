"""The pages of `scan show` show peers' texts as text."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, RenderableType

from scp_server.cli.scan_page import matches_page, scan_page

HOSTILE = "[red]x\x1b[2J\nBAG"


def _text(page: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    console.print(page)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _report(**changes: Any) -> dict[str, Any]:
    return {
        "sop_instance_uid": "1.2.9",
        "tdr_type": "MACHINE",
        "alarm_decision": "ALARM",
        "alarm_decision_time": "20261120101114+0000",
        "by": HOSTILE,
        "received_at_ns": 1_764_077_000_000_000_000,
        "decides": True,
        **changes,
    }


def _scan(**changes: Any) -> dict[str, Any]:
    return {
        "study_instance_uid": "1.2.3",
        "scan_id": "SCAN",
        "scan_date": "20261120",
        "scan_time": "101112",
        "scan_type": "OPERATIONAL",
        "description": None,
        "alarm_decision": "ALARM",
        "state": "decided",
        "object": {"id": HOSTILE, "issuer": "A", "id_type": "RFID", "type": "BAGGAGE"},
        "machine": {"station_name": "EDS-07", "peer_name": None},
        "images": [
            {
                "sop_instance_uid": "1.2.4",
                "modality": "CT",
                "parts": [{"part_number": 1, "size_bytes": 2048, "received_at_ns": 0}],
            }
        ],
        "more_images": False,
        "reports": [_report()],
        "more_reports": True,
        "orphans": [],
        "decision": {
            "tdr_type": "MACHINE",
            "alarm_decision_time": "20261120101114+0000",
            "reason": "the only report that decides",
            "scan_to_decision_ms": 2_000,
            "image_to_report_ms": None,
        },
        **changes,
    }


def test_a_scan_is_on_one_page_and_peers_texts_are_text() -> None:
    text = _text(scan_page(_scan()))
    assert "[red]x" in text
    assert "\x1b" not in text
    for expected in (
        *("ALARM", "the only report that decides", "2.0 s from scan to decision", "2.0 KiB"),
        *("EDS-07", "1 or more reports", "1970-01-01 00:00:00Z", "1.2.4", "1.2.9"),
    ):
        assert expected in text
    assert "image to report" not in text


def test_a_scan_without_a_decision_says_what_it_waits_for() -> None:
    waiting = _scan(alarm_decision=None, decision=None, state="missing", orphans=[_report(decides=False)])
    text = _text(scan_page(waiting))
    assert "the report is MISSING" in text
    assert "1 report on what has not come" in text


def test_several_scans_are_lines_of_a_list() -> None:
    match = {
        "study_instance_uid": "1.2.3",
        "scan_id": HOSTILE,
        "object_id": None,
        "scan_date": "20261120",
        "scan_time": None,
        "alarm_decision": None,
        "state": "waiting",
    }
    text = _text(matches_page([match, {**match, "alarm_decision": "CLEAR"}], False))
    assert "2 scans" in text
    assert text.count("1.2.3") == 2
    assert "waits for a report" in text
    assert "\x1b" not in text
