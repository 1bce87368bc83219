"""The contract suite for what an index keeps of validations: a part of `index_contract`.

Subclass `FindingsContract` in the same way, with `make_index` and `make_unavailable`.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from scp_server.errors import IndexUnavailable
from scp_server.index.base import FindingFilter, Index, IndexEntry
from scp_server.index.events import OBJECT_INVALID, OBJECT_STORED
from scp_server.objects.validation.finding import Code, Findings, Path, Severity
from scp_server.testing.index_contract import (
    KEEP_FIRST,
    PARTS,
    REPLACE,
    IndexSuite,
    MakeIndex,
    MakeUnavailable,
    index_entry,
)

ALL = FindingFilter()


def judged(entry: IndexEntry, *codes: Code) -> IndexEntry:
    """An entry whose validation has found these, each at Rows (0028,0010)."""
    findings = Findings(most=100)
    for code in codes:
        findings.add(code, f"Found: {code}.", Path(0x00280010), "US")
    return replace(entry, report=findings.report())


async def codes_of(index: Index, wanted: FindingFilter = ALL) -> list[str]:
    """The codes of all findings that are wanted, read two at a time."""
    codes: list[str] = []
    after = ""
    while page := await index.findings(wanted, after=after, limit=2):
        codes += [each.code for each in page]
        after = page[-1].after
    return codes


class FindingsContract(IndexSuite):
    """What every index must do with findings."""

    async def test_findings_are_recorded_with_their_part_and_can_be_looked_for(
        self, index: Index, make_index: MakeIndex
    ) -> None:
        await index.add(index_entry("1", study="1"), KEEP_FIRST)
        await index.add(judged(index_entry("2", study="1"), Code.UID, Code.VM, Code.BITS), KEEP_FIRST)
        await index.add(judged(index_entry("3", study="2"), Code.PRIVATE_ELEMENTS, Code.VM), KEEP_FIRST)
        await index.add(judged(index_entry("4", study="2")), KEEP_FIRST)
        await index.close()
        again = make_index()
        await again.open()
        assert await codes_of(again) == ["uid", "vm", "bits", "private-elements", "vm"]
        assert await codes_of(again, FindingFilter(severity=Severity.ERROR)) == ["uid"]
        assert await codes_of(again, FindingFilter(code="vm")) == ["vm", "vm"]
        assert await codes_of(again, FindingFilter(code="vm", severity=Severity.ERROR)) == []
        assert await codes_of(again, FindingFilter(study_instance_uid="1.2.840.99.1.2")) == [
            "private-elements",
            "vm",
        ]
        first = (await again.findings(ALL))[0]
        assert (first.severity, first.path, first.keyword, first.vr) == ("error", "(0028,0010)", "Rows", "US")
        assert first.sentence == "Found: uid."
        assert first.sop_instance_uid == "1.2.840.99.3.2"
        assert (first.part_number, first.calling_ae_title) == (1, "SCANNER")
        with pytest.raises(ValueError, match="no place"):
            await again.findings(ALL, after="x")
        await again.close()

    async def test_findings_go_with_their_part(self, index: Index) -> None:
        await index.add(judged(index_entry("1", b"a"), Code.UID), KEEP_FIRST)
        await index.add(judged(index_entry("1", b"b"), Code.VM), REPLACE)
        assert await codes_of(index) == ["vm"]
        await index.add(judged(index_entry("1", b"c", location="c"), Code.BITS), PARTS)
        assert await codes_of(index) == ["vm", "bits"]
        await index.remove(["c"])
        assert await codes_of(index) == ["vm"]

    async def test_what_is_not_recorded_leaves_no_findings(self, index: Index) -> None:
        await index.add(index_entry("1", b"a"), KEEP_FIRST)
        await index.add(judged(index_entry("1", b"a"), Code.UID), PARTS)
        await index.add(judged(index_entry("1", b"b"), Code.UID), KEEP_FIRST)
        assert await codes_of(index) == []

    async def test_findings_object_and_event_are_recorded_together_or_not_at_all(
        self, index: Index, make_index: MakeIndex, make_unavailable: MakeUnavailable
    ) -> None:
        with make_unavailable(), pytest.raises(IndexUnavailable):
            await index.add(judged(index_entry("1"), Code.UID), KEEP_FIRST)
        await index.add(judged(index_entry("2"), Code.UID, Code.UID, Code.VM), KEEP_FIRST)
        await index.add(judged(index_entry("3"), Code.VM), KEEP_FIRST)
        await index.close()
        again = make_index()
        await again.open()
        assert (await again.totals()).parts == 2
        assert await codes_of(again) == ["uid", "uid", "vm", "vm"]
        rows = await again.event_log.rows(0, 10)
        assert [row.kind for row in rows] == [OBJECT_STORED, OBJECT_INVALID, OBJECT_STORED]
        stored, invalid = rows[0], rows[1]
        assert (invalid.at_ns, invalid.location) == (stored.at_ns, stored.location)
        data = json.loads(invalid.data)
        assert data["sop_instance_uid"] == json.loads(stored.data)["sop_instance_uid"]
        assert (data["errors"], data["warnings"], data["infos"]) == (2, 1, 0)
        assert data["error_codes"] == ["uid"]
        await again.close()
