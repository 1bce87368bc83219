"""`docs/validation.md` lists every code with its severity, and the bounds that hold."""

from __future__ import annotations

import re
from pathlib import Path

from scp_server.objects.validation.finding import SEVERITIES, Code
from scp_server.objects.validation.steps import DEFAULT_LIMITS

PAGE = (Path(__file__).parents[4] / "docs" / "validation.md").read_text(encoding="utf-8")


def test_every_code_is_on_the_page_with_its_severity_and_no_other() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (\w+) \| .{10,} \|$", PAGE, re.MULTILINE)
    assert rows == [(code.value, SEVERITIES[code].value) for code in Code]


def test_the_bounds_on_the_page_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    limits = DEFAULT_LIMITS
    assert f"{limits.max_findings:,} listed findings".replace(",", " ") in text
    assert f"{limits.max_elements:,} elements and items".replace(",", " ") in text
    assert f"{limits.max_sequence_bytes >> 20} MiB of sequences" in text
    assert f"{limits.max_depth} sequences within sequences" in text
    assert f"first {limits.max_values} values" in text
