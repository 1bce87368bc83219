"""pynetdicom as a requestor: several contexts on one association, and several associations at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread
from pynetdicom import AE

from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import UTF_8, ct_image, encapsulated_pdf, structured_report
from tests.pynetdicom_client import leave_responses_to_who_waits

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.interop.conftest import Lane

pytestmark = pytest.mark.interop

OBJECTS = [
    ct_image(seed=1),
    ct_image(seed=2, transfer_syntax=TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN, sequences=True),
    ct_image(seed=3, transfer_syntax=TransferSyntax.EXPLICIT_VR_BIG_ENDIAN),
    ct_image(seed=4, transfer_syntax=TransferSyntax.JPEG_LOSSLESS, fragments=4),
    ct_image(seed=5, transfer_syntax=TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN),
    structured_report(patient=UTF_8, depth=7, undefined_length=True),
    encapsulated_pdf(document_bytes=1_500_000),
]


def send(port: int, paths: list[Path], objects: list[EncodedObject]) -> list[int]:
    """C-ECHO and then every file on one association; the statuses."""
    ae = AE("PYNETDICOM")
    ae.add_requested_context("1.2.840.10008.1.1")
    for pair in dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in objects):
        ae.add_requested_context(pair[0], pair[1])
    association = leave_responses_to_who_waits(ae.associate("127.0.0.1", port, ae_title="SCP_SERVER"))
    assert association.is_established
    statuses = [association.send_c_echo().Status]
    statuses += [association.send_c_store(dcmread(path)).Status for path in paths]
    association.release()
    assert association.is_released
    return statuses


async def test_every_kind_of_object_on_one_association(
    lane: Lane, write_files: Callable[..., list[Path]]
) -> None:
    paths = write_files(*OBJECTS)
    statuses = await asyncio.to_thread(send, lane.port, paths, OBJECTS)
    assert statuses == [0x0000] * (1 + len(OBJECTS))
    sent = await lane.expect_kept_as_sent(len(OBJECTS))
    assert [one.transfer_syntax_uid for one in sent] == [one.transfer_syntax_uid for one in OBJECTS]


async def test_one_association_after_another(lane: Lane, write_files: Callable[..., list[Path]]) -> None:
    for seed in range(5):
        one = ct_image(seed=seed)
        paths = write_files(one, folder=f"out{seed}")
        assert await asyncio.to_thread(send, lane.port, paths, [one]) == [0x0000, 0x0000]
    await lane.expect_kept_as_sent(5)


async def test_four_associations_at_once(lane: Lane, write_files: Callable[..., list[Path]]) -> None:
    batches = [[ct_image(seed=100 * batch + number) for number in range(10)] for batch in range(4)]
    paths = [write_files(*batch, folder=f"batch{number}") for number, batch in enumerate(batches)]
    async with asyncio.TaskGroup() as group:
        senders = [
            group.create_task(asyncio.to_thread(send, lane.port, files, batch))
            for files, batch in zip(paths, batches, strict=True)
        ]
    assert [sender.result() for sender in senders] == [[0x0000] * 11] * 4
    await lane.expect_kept_as_sent(40)
