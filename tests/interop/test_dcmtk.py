"""DCMTK's clients: echoscu, storescu in several transfer syntaxes, dcmsend with a folder, getscu."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scp_server.objects.part10 import read_file_meta
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.encoded_object import make_uid
from scp_server.testing.objects import JAPANESE, UTF_8, ct_image, encapsulated_pdf, structured_report

if TYPE_CHECKING:
    from tests.interop.conftest import Lane

pytestmark = pytest.mark.interop

RunPeer = Callable[..., Awaitable[str]]
WriteFiles = Callable[..., list[Path]]

PROPOSALS = [
    ("-xe", TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN),
    ("-xi", TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN),
    ("-xb", TransferSyntax.EXPLICIT_VR_BIG_ENDIAN),
    ("-xr", TransferSyntax.RLE_LOSSLESS),
    ("-xs", TransferSyntax.JPEG_LOSSLESS),
]
"""storescu's option, and the syntax of files it then sends as they are."""


@pytest.fixture(autouse=True)
def dcmtk(require_peer: Callable[[str, object], None]) -> None:
    for program in ("echoscu", "storescu", "dcmsend"):
        require_peer(f"DCMTK's {program}", shutil.which(program))


async def test_echoscu_is_answered(lane: Lane, run_peer: RunPeer) -> None:
    output = await run_peer(
        "echoscu", "-v", "-aet", "ECHOER", "-aec", "SCP_SERVER", "127.0.0.1", str(lane.port)
    )
    assert "Received Echo Response (Success)" in output
    await lane.proxy.drained()
    assert lane.proxy.recordings[0].statuses() == [0x0000]


@pytest.mark.parametrize(("option", "syntax"), PROPOSALS, ids=[syntax.name for _, syntax in PROPOSALS])
async def test_storescu_sends_files_in_their_own_transfer_syntax(
    option: str, syntax: TransferSyntax, lane: Lane, run_peer: RunPeer, write_files: WriteFiles
) -> None:
    objects = [ct_image(seed=seed, transfer_syntax=syntax) for seed in range(3)]
    files = write_files(*objects)
    await run_peer("storescu", "-v", option, "127.0.0.1", str(lane.port), *files)
    sent = await lane.expect_kept_as_sent(3)
    assert [one.transfer_syntax_uid for one in sent] == [syntax] * 3
    assert [one.dataset for one in sent] == [one.dataset for one in objects]


@pytest.mark.parametrize(
    ("option", "syntax"),
    [
        ("-xi", TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN),
        ("-xd", TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN),
    ],
)
async def test_storescu_sends_files_it_encodes_anew(
    option: str, syntax: TransferSyntax, lane: Lane, run_peer: RunPeer, write_files: WriteFiles
) -> None:
    objects = [
        ct_image(sequences=True, undefined_length=True),
        ct_image(seed=1, patient=JAPANESE, private=True),
        structured_report(patient=UTF_8, depth=9),
    ]
    await run_peer("storescu", "-v", option, "127.0.0.1", str(lane.port), *write_files(*objects))
    sent = await lane.expect_kept_as_sent(3)
    assert {one.sop_instance_uid for one in sent} == {one.sop_instance_uid for one in objects}
    assert syntax in {one.transfer_syntax_uid for one in sent}


async def test_dcmsend_sends_a_folder_of_many_kinds(
    lane: Lane, run_peer: RunPeer, write_files: WriteFiles, tmp_path: Path
) -> None:
    objects = [
        *(ct_image(seed=seed) for seed in range(5)),
        ct_image(seed=10, transfer_syntax=TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN),
        ct_image(seed=11, transfer_syntax=TransferSyntax.RLE_LOSSLESS),
        structured_report(),
    ]
    write_files(*objects, folder="folder/images")
    document = encapsulated_pdf(document_bytes=2_000_000)
    write_files(document, folder="folder/other")
    output = await run_peer(
        "dcmsend", "-v", "+sd", "+r", "127.0.0.1", str(lane.port), str(tmp_path / "folder")
    )
    assert "with status SUCCESS" in output
    sent = await lane.expect_kept_as_sent(len(objects) + 1)
    assert {one.sop_instance_uid for one in sent} == {one.sop_instance_uid for one in (*objects, document)}


async def test_the_same_files_again_are_kept_once(
    lane: Lane, run_peer: RunPeer, write_files: WriteFiles
) -> None:
    files = write_files(*(ct_image(seed=seed) for seed in range(3)))
    for _ in range(2):
        await run_peer("storescu", "-xe", "127.0.0.1", str(lane.port), *files)
    await lane.expect_kept_as_sent(6)


async def test_getscu_gets_back_what_storescu_sent(
    lane: Lane,
    run_peer: RunPeer,
    write_files: WriteFiles,
    require_peer: Callable[[str, object], None],
    tmp_path: Path,
) -> None:
    require_peer("DCMTK's getscu", shutil.which("getscu"))
    study = make_uid("study")
    objects = [
        *(ct_image(seed=seed, study_instance_uid=study) for seed in range(5)),
        structured_report(study_instance_uid=study),
    ]
    await run_peer("storescu", "-xe", "127.0.0.1", str(lane.port), *write_files(*objects))
    (tmp_path / "got").mkdir()
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}")
    options = ("-S", "--bit-preserving", "-od", str(tmp_path / "got"))
    output = await run_peer("getscu", "-v", *options, *keys, "127.0.0.1", str(lane.port))
    assert "Final status report from last C-GET message" in output
    got = {
        meta.sop_instance_uid: data[meta.dataset_offset_bytes :]
        for data in (path.read_bytes() for path in (tmp_path / "got").iterdir())
        for meta in [read_file_meta(data)]
    }
    assert got == {each.sop_instance_uid: each.dataset for each in objects}
