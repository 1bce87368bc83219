"""The page of `status` fits its terminal, and shows peers' texts as text."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from scp_server.cli.status_page import duration, page, size


def _report(associations: int = 0, problems: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "server": {
            "version": "1",
            "pid": 7,
            "ae_title": "ARCHIVE",
            "data_dir": "/data/" + "x" * 90,
            "uptime_seconds": 90_061.5,
        },
        "associations": {
            "now": associations + 3,
            "max": 2_000,
            "connections": associations,
            "left_out": 3 if associations else 0,
            "list": [
                {
                    "id": f"abc-{number}",
                    "calling_ae_title": f"[red]PEER{number}\x1b[2J",
                    "called_ae_title": "ARCHIVE",
                    "peer_host": "2001:db8:1111:2222:3333:4444:5555:6666",
                    "peer_port": 65_000,
                    "dicos": True,
                    "seconds": 400_000,
                    "operations": 1_000_000,
                    "running": 1,
                    "dataset_bytes": 1 << 50,
                }
                for number in range(associations)
            ],
        },
        "totals": {
            "associations_accepted": 10**7,
            "associations_rejected": 10**6,
            "operations": 10**10,
            "operations_failed": 10**6,
            "dataset_bytes": 1 << 52,
        },
        "rates": {
            "10": {"seconds": 10.0, "operations_per_second": 1_234.5, "bytes_per_second": 1e9},
            "60": {"seconds": 60.0, "operations_per_second": 1_234.5, "bytes_per_second": 1e9},
        },
        "index": {
            "patients": 1,
            "studies": 2,
            "series": 3,
            "instances": 10**6,
            "parts": 10**6,
            "bytes": 1 << 50,
        },
        "quarantine": {"objects": 1, "bytes": 10, "max_objects": 10, "max_bytes": 100},
        "space": {"free_bytes": 1 << 40, "total_bytes": 1 << 41},
        "problems": [
            {
                "timestamp": "2026-01-02T03:04:05.000000Z",
                "level": "error",
                "event": f"storage.failed{number}",
                "association_id": "abc-1",
                "error": "[bold]disk\x07 " + "y" * 300,
            }
            for number in range(problems)
        ],
        **changes,
    }


def _lines(report: dict[str, Any], columns: int, lines: int | None) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, height=lines, force_terminal=False)
    console.print(page(report, columns, lines))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (80, 40), (160, 50), (60, 16)])
@pytest.mark.parametrize(
    ("associations", "problems"), [(0, 0), (1, 0), (0, 20), (1, 20), (500, 20), (500, 0)]
)
def test_the_page_fits_any_terminal(columns: int, lines: int, associations: int, problems: int) -> None:
    shown = _lines(_report(associations, problems), columns, lines)
    assert len(shown) <= lines
    assert max(map(len, shown)) <= columns
    assert any("1234.5/s" in line for line in shown)
    assert any("since start" in line for line in shown)
    if problems:
        assert any("storage.failed19" in line for line in shown), "the newest problem is there"
    if associations > 1:
        assert any("PEER0" in line for line in shown)
        assert any(line.startswith("and ") and line.endswith(" more") for line in shown)


def test_without_a_height_nothing_is_left_out() -> None:
    shown = "\n".join(_lines(_report(40, 20), 200, None))
    assert all(f"PEER{number}" in shown for number in range(40))
    assert all(f"storage.failed{number} " in shown for number in range(20))
    assert "and 3 more" in shown


def test_peers_texts_are_shown_as_text() -> None:
    shown = "\n".join(_lines(_report(1, 1), 200, None))
    assert "[red]PEER0\\x1b[2J" in shown
    assert "[bold]disk\\x07" in shown


def test_what_cannot_be_asked_is_said() -> None:
    shown = "\n".join(_lines(_report(index=None, space=None), 100, None))
    assert "the index does not answer" in shown
    assert "unknown" in shown
    off = {"objects": 0, "bytes": 0, "max_objects": 10, "max_bytes": 0}
    assert "off" in "\n".join(_lines(_report(quarantine=off), 100, None))


def test_sizes_and_durations_for_people() -> None:
    assert [size(0), size(1_023), size(1_536), size(1 << 60)] == ["0 B", "1023 B", "1.5 KiB", "1024.0 PiB"]
    assert [duration(7.9), duration(3_725), duration(90_061)] == ["0:00:07", "1:02:05", "1 d 01:01:01"]
