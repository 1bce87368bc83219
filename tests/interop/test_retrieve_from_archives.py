"""`scp-server get` and `move` with real archives: what was sent to them comes back byte for byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from scp_server import ReceivedFolder, Requestor, storage_contexts
from scp_server.testing.daemon import DaemonProcess, expect_stored, read_stored_file
from scp_server.testing.objects import CT_IMAGE_STORAGE
from tests.interop.archives import Archive, RequirePeer, ask, dcmqrscp, objects, orthanc

pytestmark = pytest.mark.interop

STUDY = "2.25.101"
OF_THE_STUDY = [one for one in objects() if one.sop_instance_uid.startswith(("2.25.111", "2.25.112"))]


@pytest.fixture(params=[dcmqrscp, orthanc], ids=["dcmqrscp", "Orthanc"])
async def archive(
    request: pytest.FixtureRequest,
    require_peer: RequirePeer,
    tmp_path: Path,
    write_files: Callable[..., list[Path]],
    viewer: DaemonProcess,
) -> AsyncIterator[Archive]:
    """An archive that has three studies, sent by our own `store`; its destination VIEWER is our daemon."""
    async with request.param(require_peer, tmp_path, viewer.ready.dicom_port) as one:
        paths = write_files(*objects())
        done = await ask(one, "--input", str(paths[0].parent), command="store")
        assert done.code == 0, done.output
        yield one


@pytest.fixture
async def viewer(start_daemon: Callable[..., DaemonProcess]) -> DaemonProcess:
    return await asyncio.to_thread(start_daemon)


async def test_get_brings_a_study_byte_for_byte(archive: Archive, tmp_path: Path) -> None:
    out = tmp_path / "got"
    arguments = ["--query", json.dumps({"StudyInstanceUID": STUDY}), "--output", str(out), "--json"]
    done = await ask(archive, *arguments, command="get")
    assert done.code == 0, done.errors
    document = json.loads(done.output)
    assert document["status"] == "0x0000"
    assert document["summary"]["stored"] == len(OF_THE_STUDY) == 4
    for one in OF_THE_STUDY:
        file = read_stored_file(out / f"{one.sop_instance_uid}.dcm")
        assert file.transfer_syntax_uid == one.transfer_syntax_uid
        assert file.dataset == one.dataset
    done = await ask(archive, *arguments, command="get")
    assert done.code == 0, done.errors
    assert json.loads(done.output)["summary"]["already_there"] == 4


async def test_get_of_single_images_and_of_nothing(archive: Archive, tmp_path: Path) -> None:
    wanted = OF_THE_STUDY[0]
    query = {
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": "2.25.111",
        "SOPInstanceUID": wanted.sop_instance_uid,
    }
    done = await ask(archive, "--query", json.dumps(query), "--output", str(tmp_path / "one"), command="get")
    assert done.code == 0, done.errors
    assert [path.name for path in (tmp_path / "one").iterdir()] == [f"{wanted.sop_instance_uid}.dcm"]
    done = await ask(
        archive, "--query", '{"StudyInstanceUID": "9.9"}', "--output", str(tmp_path / "none"), command="get"
    )
    # Orthanc calls it a failure (0xC000) where nothing matches.
    assert done.code == (1 if archive.name == "Orthanc" else 0), done.errors
    assert "0 objects" in done.errors


async def test_move_has_the_archive_send_to_our_daemon(archive: Archive, viewer: DaemonProcess) -> None:
    done = await ask(
        archive,
        *("--query", json.dumps({"StudyInstanceUID": STUDY}), "--dest", "VIEWER", "--json"),
        command="move",
    )
    assert done.code == 0, done.errors
    assert json.loads(done.output)["counters"]["completed"] == 4
    expect_stored(viewer.data_dir, OF_THE_STUDY)


async def test_move_to_a_name_that_the_archive_does_not_know_is_exit_1(archive: Archive) -> None:
    done = await ask(
        archive,
        *("--query", json.dumps({"StudyInstanceUID": STUDY}), "--dest", "NOWHERE", "--json"),
        command="move",
    )
    assert done.code == 1
    assert json.loads(done.output)["exit_code"] == 1


async def test_a_get_that_is_left_early_leaves_the_association_usable(
    archive: Archive, tmp_path: Path
) -> None:
    receives = storage_contexts([CT_IMAGE_STORAGE])
    async with Requestor(
        "127.0.0.1", archive.port, called_ae_title=archive.ae_title, receives=receives
    ) as peer:
        with ReceivedFolder(tmp_path / "got") as folder:
            async for _ in peer.get({"StudyInstanceUID": STUDY}, receive=folder):
                break
            assert await peer.echo() == 0x0000
            getting = peer.get({"StudyInstanceUID": STUDY}, receive=folder)
            async for _ in getting:
                pass
        assert getting.result is not None
        assert (getting.result.status, getting.result.counters.completed) == (0x0000, 4)
    assert len(list((tmp_path / "got").iterdir())) == 4
