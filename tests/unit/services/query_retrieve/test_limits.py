"""The bounds of queries: each is reached, and answered as the standard says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import OperationRefused
from scp_server.index.store import SqlIndex
from scp_server.interfaces import AcceptedContext
from scp_server.protocol.message import CFindRQ, Response
from scp_server.protocol.status import Status
from scp_server.runtime.build import build_find_service
from scp_server.services.query_retrieve.models import STUDY_ROOT
from scp_server.settings import Settings
from scp_server.testing.archive import Archive
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.encoded_object import make_uid
from scp_server.testing.fake_operation import FakeDataset, FakeOperation
from scp_server.testing.objects import ct_image

EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
STUDIES = 5


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[SqlIndex]:
    archive = Archive.at(tmp_path)
    studies = [ct_image(seed=n, study_instance_uid=make_uid(f"study {n}")) for n in range(STUDIES)]
    assert await archive.store(studies) == [0] * STUDIES
    async with archive.opened() as (_, opened):
        yield opened


async def find(index: SqlIndex, *keys: Element, **query: Any) -> tuple[Response, FakeOperation]:
    """Ask for studies under these settings; the final response, and what was sent before it."""
    data = DatasetEncoder(EXPLICIT).encode([Element(0x00080052, "CS", "STUDY"), *keys])
    uid = STUDY_ROOT.find_sop_class_uid
    request = CFindRQ(message_id=1, has_dataset=True, affected_sop_class_uid=uid)
    operation = FakeOperation(request, AcceptedContext(1, uid, EXPLICIT.value), FakeDataset([[data]]))
    final = await build_find_service(Settings(query=query), index).find(operation)  # type: ignore[arg-type]
    assert isinstance(final, Response)
    return final, operation


def statuses(operation: FakeOperation) -> list[int]:
    return [message.status for message in operation.sent if isinstance(message, Response)]


async def test_a_query_ends_with_a700_after_max_matches(index: SqlIndex) -> None:
    with pytest.raises(OperationRefused, match="more than 3 matches") as refusal:
        await find(index, max_matches=3)
    assert refusal.value.status == Status.OUT_OF_RESOURCES
    final, operation = await find(index, max_matches=STUDIES)
    assert (final.status, len(operation.sent)) == (Status.SUCCESS, STUDIES)


async def test_beyond_header_match_rows_matches_are_returned_unmatched_with_ff01(index: SqlIndex) -> None:
    nobody = Element(0x00180060, "DS", "999")
    _, operation = await find(index, nobody)
    assert operation.sent == []
    _, operation = await find(index, nobody, header_match_rows=2)
    assert statuses(operation) == [Status.PENDING_OPTIONAL_KEYS_NOT_SUPPORTED] * (STUDIES - 2)
    everybody = Element(0x00180060, "DS", "120")
    _, operation = await find(index, everybody, header_match_rows=2)
    assert statuses(operation) == [Status.PENDING] * 2 + [0xFF01] * (STUDIES - 2)


async def test_an_identifier_above_max_identifier_bytes_is_refused(index: SqlIndex) -> None:
    padding = Element(0x00081030, "LO", " " * 4_096)
    with pytest.raises(OperationRefused, match="more than 4096 bytes") as refusal:
        await find(index, padding, max_identifier_bytes=4_096)
    assert refusal.value.status == Status.CANNOT_UNDERSTAND
    final, _ = await find(index, padding)
    assert final.status == Status.SUCCESS


async def test_more_than_max_keys_are_refused(index: SqlIndex) -> None:
    keys = [Element(tag, "LO", "") for tag in (0x00081030, 0x00080080, 0x00080070)]
    with pytest.raises(OperationRefused, match="more than 2 keys") as refusal:
        await find(index, *keys, max_keys=2)
    assert refusal.value.status == Status.CANNOT_UNDERSTAND
    final, _ = await find(index, *keys, max_keys=3)
    assert final.status == Status.SUCCESS


async def test_more_than_max_values_are_refused(index: SqlIndex) -> None:
    keys = [Element(0x00081030, "LO", "a\\b"), Element(0x00080060, "CS", "CT\\MR")]
    with pytest.raises(OperationRefused, match="more than 3 values") as refusal:
        await find(index, *keys, max_values=3)
    assert (refusal.value.status, refusal.value.offending_elements) == (0xC000, (0x00081030,))
    final, _ = await find(index, *keys, max_values=4)
    assert final.status == Status.SUCCESS


async def test_more_than_max_wildcard_bytes_are_refused(index: SqlIndex) -> None:
    wild, plain = Element(0x00081030, "LO", "*" + "a" * 255), Element(0x00080050, "SH", "b" * 512)
    with pytest.raises(OperationRefused, match="more than 256 bytes with wild cards") as refusal:
        await find(index, wild, Element(0x00100010, "PN", "a?"), plain, max_wildcard_bytes=256)
    assert (refusal.value.status, refusal.value.offending_elements) == (0xC000, (0x00100010,))
    final, _ = await find(index, wild, plain, max_wildcard_bytes=256)
    assert final.status == Status.SUCCESS
