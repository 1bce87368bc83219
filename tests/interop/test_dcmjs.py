"""dcmjs-dimse, a DICOM implementation in JavaScript, as a requestor."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.objects import UTF_8, ct_image, structured_report

if TYPE_CHECKING:
    from tests.interop.conftest import Lane

pytestmark = pytest.mark.interop

HERE = Path(__file__).parent
MODULES = Path(os.environ.get("SCP_DCMJS_DIR", HERE / "node_modules"))


@pytest.fixture(autouse=True)
def dcmjs(require_peer: Callable[[str, object], None]) -> None:
    require_peer("node", shutil.which("node"))
    require_peer("dcmjs-dimse", (MODULES / "dcmjs-dimse").is_dir())


async def test_dcmjs_echoes_and_stores_on_one_association(
    lane: Lane,
    run_peer: Callable[..., Awaitable[str]],
    write_files: Callable[..., list[Path]],
) -> None:
    objects = [
        *(ct_image(seed=seed) for seed in range(3)),
        ct_image(seed=7, transfer_syntax=TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN, sequences=True),
        ct_image(seed=8, transfer_syntax=TransferSyntax.RLE_LOSSLESS),
        structured_report(patient=UTF_8),
    ]
    paths = write_files(*objects)
    output = await run_peer(
        "node", HERE / "dcmjs_store.js", MODULES.parent, "127.0.0.1", str(lane.port), *paths
    )
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [answer["status"] for answer in answers] == [0] * (1 + len(objects))
    sent = await lane.expect_kept_as_sent(len(objects))
    assert {one.sop_instance_uid for one in sent} == {one.sop_instance_uid for one in objects}
