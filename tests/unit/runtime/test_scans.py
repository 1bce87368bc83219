"""What `scan.show` says of a scan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from scp_server.errors import ObjectNotFound
from scp_server.index.base import Index
from scp_server.runtime.control import WrongArguments
from scp_server.runtime.scans import scan_commands
from scp_server.testing.archive import Archive
from scp_server.testing.dicos_objects import Scan, dicos_ct, dicos_dx, dicos_tdr, two_section_ct
from scp_server.testing.objects import ct_image

BAG, OTHER = Scan("BAG1", "SCAN-1"), Scan("BAG1", "SCAN-2")


@pytest_asyncio.fixture
async def index(tmp_path: Path) -> AsyncIterator[Index]:
    """A bag that was scanned twice, a report on nothing, and somebody's CT."""
    archive = Archive.at(tmp_path)
    first, second = two_section_ct(scan=BAG)
    objects = [
        *(dicos_tdr(first, scan=BAG), first, second, dicos_dx(scan=BAG)),
        dicos_tdr(first, scan=BAG, tdr_type="OPERATOR", decision="CLEAR"),
        dicos_tdr(dicos_ct(seed=9), scan=BAG, tdr_type="GROUND TRUTH"),
        *(dicos_ct(scan=OTHER), ct_image(study_instance_uid="1.2.3")),
    ]
    assert await archive.store(objects) == [0] * len(objects)
    async with archive.opened() as (_, index):
        yield index


async def _show(index: Index, wanted: str) -> Any:
    return await scan_commands(index.event_log)["scan.show"]({"id": wanted})


async def test_a_scan_is_shown_with_its_images_its_reports_and_what_decides(index: Index) -> None:
    scan = (await _show(index, "SCAN-1"))["scan"]
    assert scan == (await _show(index, BAG.study_instance_uid))["scan"]
    assert (scan["object"]["id"], scan["object"]["type"]) == ("BAG1", "BAGGAGE")
    assert (scan["machine"]["station_name"], scan["machine"]["institution_name"]) == ("EDS-07", "T2 Lane 7")
    assert [(image["modality"], len(image["parts"])) for image in scan["images"]] == [("CT", 2), ("XRAY", 1)]
    machine, operator = scan["reports"]
    assert (machine["tdr_type"], machine["by"], machine["decides"]) == ("MACHINE", "ACME 7.1.0", False)
    assert (operator["tdr_type"], operator["decides"]) == ("OPERATOR", True)
    assert operator["by"]
    decision = scan["decision"]
    assert (decision["alarm_decision"], decision["tdr_type"]) == ("CLEAR", "OPERATOR")
    assert decision["reason"] == "OPERATOR counts before MACHINE"
    assert decision["scan_to_decision_ms"] == 2_000
    assert decision["image_to_report_ms"] >= 0
    (orphan,) = scan["orphans"]
    assert (orphan["tdr_type"], orphan["may_decide"], orphan["told_as_orphan"]) == (
        *("GROUND TRUTH", False),
        False,
    )


async def test_scans_of_one_object_are_listed(index: Index) -> None:
    found = await _show(index, "BAG1")
    assert [(each["scan_id"], each["state"]) for each in found["matches"]] == [
        ("SCAN-1", "decided"),
        ("SCAN-2", "waiting"),
    ]
    assert found["more"] is False


async def test_what_was_told_of_is_shown_as_missing_or_as_an_orphan(index: Index) -> None:
    await index.event_log.tell_overdue(2**62, 2**62)
    assert (await _show(index, "SCAN-2"))["scan"]["state"] == "missing"
    assert (await _show(index, "SCAN-1"))["scan"]["orphans"][0]["told_as_orphan"] is True


async def test_a_study_that_is_no_scan_is_shown_too(index: Index) -> None:
    scan = (await _show(index, "1.2.3"))["scan"]
    assert (scan["state"], scan["decision"], scan["reports"]) == ("none", None, [])
    assert scan["images"][0]["is_dicos"] is False


async def test_an_id_that_nothing_has_is_not_found_and_one_must_be_given(index: Index) -> None:
    with pytest.raises(ObjectNotFound, match="BAG9"):
        await _show(index, "BAG9")
    with pytest.raises(WrongArguments):
        await _show(index, "")
