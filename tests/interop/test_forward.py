"""Rules that forward, to real servers: DCMTK's storescp, Orthanc and the DICOS toolkit's own."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from scp_server.objects.part10 import read_file_meta
from scp_server.observability.measures import Measures
from scp_server.pipeline.sending import Source
from scp_server.pipeline.verdicts import DestinationDown, NotDelivered, Undeliverable
from scp_server.runtime.build import build_destinations, build_transcoder
from scp_server.runtime.rules import Rules
from scp_server.testing.archive import Archive
from scp_server.testing.daemon import read_stored_file
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_dx, dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.objects import ct_image, structured_report
from scp_server.testing.recording_proxy import RecordingProxy
from tests.interop.archives import RequirePeer, free_port, orthanc, running
from tests.interop.test_dicos_server import toolkit
from tests.unit.pipeline.events import delivery, stored

pytestmark = pytest.mark.interop

STUDY = make_uid("forwarded study")
IMAGES = [ct_image(seed=seed, rows=8, study_instance_uid=STUDY) for seed in range(3)]
IMPLICIT_IMAGE = ct_image(
    seed=9, rows=8, study_instance_uid=STUDY, transfer_syntax=TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN
)
MEDICAL: list[EncodedObject] = [*IMAGES, IMPLICIT_IMAGE, structured_report(study_instance_uid=STUDY)]
FIRST, SECOND = two_section_ct()
SCAN: list[EncodedObject] = [FIRST, SECOND, dicos_dx(), dicos_tdr(FIRST)]


async def forward(
    data_dir: Path,
    port: int,
    objects: Sequence[EncodedObject],
    timeouts: Mapping[str, float] | None = None,
    **remote: Any,
) -> list[tuple[type[Exception], str]]:
    """Store the objects and deliver each by a rule, in turn, again where that failed; the failures."""
    entry = {"ae_title": "REMOTE", "host": "127.0.0.1", "port": port, **remote}
    rule = {"name": "all", "to": ["REMOTE"]}
    archive = Archive.at(data_dir, remotes=[entry], forward=[rule], timeouts=timeouts or {})
    assert await archive.store(objects) == [0] * len(objects)
    destinations, transcoder = build_destinations(archive.settings), build_transcoder(archive.settings)
    problems: list[tuple[type[Exception], str]] = []
    async with archive.opened() as (storage, index):
        rules = Rules(Source(storage, transcoder), index, destinations, Measures())
        (subscriber,) = rules.prepare(archive.settings).values()
        for number, one in enumerate(objects):
            event = stored(one, archive.location_of(one), number)
            for _ in range(2):
                try:
                    await subscriber.deliver(delivery(event))
                    break
                except (NotDelivered, Undeliverable) as failure:
                    problems.append((type(failure), str(failure)))
        await destinations.close()
        await transcoder.close()
        await rules.close()
    return problems


async def test_storescp_takes_everything_as_it_is_stored(require_peer: RequirePeer, tmp_path: Path) -> None:
    require_peer("DCMTK's storescp", shutil.which("storescp"))
    out, port = tmp_path / "taken", free_port()
    out.mkdir()
    async with running(
        "storescp", "--single-process", "+xa", "-pm", "+B", "+uf", "-od", out, str(port), port=port
    ):
        assert await forward(tmp_path / "data", port, [*MEDICAL, *SCAN]) == []
    kept = sorted(read_stored_file(path).dataset for path in out.iterdir())
    assert kept == sorted(one.dataset for one in (*MEDICAL, *SCAN))


async def test_storescp_that_takes_implicit_vr_only_is_sent_that(
    require_peer: RequirePeer, tmp_path: Path
) -> None:
    require_peer("DCMTK's storescp", shutil.which("storescp"))
    out, port = tmp_path / "taken", free_port()
    out.mkdir()
    async with running("storescp", "--single-process", "+xi", "+uf", "-od", out, str(port), port=port):
        assert await forward(tmp_path / "data", port, MEDICAL) == []
    files = [path.read_bytes() for path in out.iterdir()]
    assert len(files) == len(MEDICAL)
    assert {read_file_meta(data).transfer_syntax_uid for data in files} == {
        TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN.value
    }


async def test_orthanc_takes_everything(require_peer: RequirePeer, tmp_path: Path) -> None:
    """Of an instance of two parts it takes both and keeps one."""
    folder = tmp_path / "orthanc"
    folder.mkdir()
    async with orthanc(require_peer, folder, UnknownSopClassAccepted=True) as archive:
        assert await forward(tmp_path / "data", archive.port, [*MEDICAL, *SCAN]) == []
        kept = {}
        for each in json.loads(await archive.rest("/instances")):
            data = await archive.rest(f"/instances/{each}/file")
            meta = read_file_meta(data)
            kept[meta.sop_instance_uid] = data[meta.dataset_offset_bytes :]
    assert kept.pop(FIRST.sop_instance_uid) in (FIRST.dataset, SECOND.dataset)
    others = [one for one in (*MEDICAL, *SCAN) if one not in (FIRST, SECOND)]
    assert kept == {one.sop_instance_uid: one.dataset for one in others}


@pytest.mark.parametrize("framing", ["standard", "glued"])
async def test_the_dicos_toolkits_server_takes_both_framings_of_everything(
    require_peer: RequirePeer, tmp_path: Path, framing: str
) -> None:
    require_peer("the DICOS toolkit (pydicos)", importlib.util.find_spec("pyDICOS"))
    async with toolkit() as server, RecordingProxy("127.0.0.1", server.port) as proxy:
        problems = await forward(
            tmp_path / "data", proxy.port, SCAN, application_context="dicos", framing=framing
        )
        assert problems == []
        await proxy.drained()
        sent = [each for recording in proxy.recordings for each in recording.sent_datasets()]
    assert sorted(sent) == sorted((one.dataset, framing == "glued") for one in SCAN)
    assert "Error" not in server.output


async def test_the_dicos_toolkits_server_is_not_taken_for_down_by_what_it_never_answers(
    require_peer: RequirePeer, tmp_path: Path
) -> None:
    """To a request without a class that it knows it says nothing at all. Once that is known, it is the object
    that fails, and the others go on."""
    require_peer("the DICOS toolkit (pydicos)", importlib.util.find_spec("pyDICOS"))
    timeouts = {"response_seconds": 1.0, "remote_retry_seconds": 0.0}
    async with toolkit() as server:
        problems = await forward(
            tmp_path / "data", server.port, [IMAGES[0], SCAN[0]], timeouts, application_context="dicos"
        )
    (first, again) = problems
    assert [kind for kind, _ in problems] == [DestinationDown, NotDelivered]
    assert "grants associations, but none for this SOP class" in again[1]
    assert first[1] in again[1]


async def test_a_server_that_is_not_there_is_down(tmp_path: Path) -> None:
    async with asyncio.timeout(30):
        problems = await forward(tmp_path / "data", free_port(), IMAGES[:1])
    assert [kind for kind, _ in problems] == [DestinationDown] * 2
    assert "no connection to" in problems[0][1]
