"""The folder that a C-GET's objects go to."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from scp_server.errors import StorageError, StorageFull
from scp_server.interfaces import AcceptedContext
from scp_server.protocol.message import CStoreRQ
from scp_server.storage.received_folder import ReceivedFile, ReceivedFileWriter, ReceivedFolder
from scp_server.testing.daemon import read_stored_file
from scp_server.testing.dicos_objects import DICOS_VERSION, dicos_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image

ONE, OTHER = ct_image(rows=8, columns=8, seed=1), ct_image(rows=8, columns=8, seed=2)


async def begin(folder: ReceivedFolder, one: EncodedObject, *, uid: str = "") -> ReceivedFileWriter:
    request = CStoreRQ(
        message_id=1,
        affected_sop_class_uid=one.sop_class_uid,
        affected_sop_instance_uid=uid or one.sop_instance_uid,
        has_dataset=True,
    )
    return await folder.begin(request, AcceptedContext(1, one.sop_class_uid, one.transfer_syntax_uid))


async def keep(folder: ReceivedFolder, one: EncodedObject, *, uid: str = "") -> None:
    writer = await begin(folder, one, uid=uid)
    await writer.write([memoryview(one.dataset[:100])])
    await writer.write([memoryview(one.dataset[100:200]), memoryview(one.dataset[200:])])
    await writer.commit()


async def _write_and_commit(writer: ReceivedFileWriter, one: EncodedObject) -> None:
    await writer.write([memoryview(one.dataset)])
    await writer.commit()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_a_file_has_no_name_before_it_is_whole(tmp_path: Path) -> None:
    with ReceivedFolder(tmp_path, source_ae_title="ARCHIVE", receiving_ae_title="ME") as folder:
        writer = await begin(folder, ONE)
        await writer.write([memoryview(ONE.dataset)])
        assert [name.startswith(".receiving-") for name in names(tmp_path)] == [True]
        await writer.commit()
    assert names(tmp_path) == [f"{ONE.sop_instance_uid}.dcm"]
    file = read_stored_file(tmp_path / f"{ONE.sop_instance_uid}.dcm")
    assert (file.dataset, file.sop_instance_uid) == (ONE.dataset, ONE.sop_instance_uid)


async def test_an_abort_leaves_nothing_and_after_a_commit_does_nothing(tmp_path: Path) -> None:
    with ReceivedFolder(tmp_path) as folder:
        writer = await begin(folder, ONE)
        await writer.write([memoryview(ONE.dataset)])
        await writer.abort()
        assert names(tmp_path) == []
        with pytest.raises(StorageError):
            await writer.commit()
        writer = await begin(folder, ONE)
        await writer.commit()
        await writer.abort()
    assert names(tmp_path) == [f"{ONE.sop_instance_uid}.dcm"]


async def test_the_same_bytes_are_kept_once_and_others_beside_them(tmp_path: Path) -> None:
    files: list[ReceivedFile] = []
    for _ in range(2):
        with ReceivedFolder(tmp_path, on_file=files.append) as folder:
            for one in (ONE, OTHER, ONE, OTHER):
                await keep(folder, one, uid="1.2")
    assert names(tmp_path) == ["1.2.dcm", "1.2_2.dcm"]
    assert [file.is_new for file in files] == [True, True] + [False] * 6
    assert read_stored_file(tmp_path / "1.2.dcm").dataset == ONE.dataset
    assert read_stored_file(tmp_path / "1.2_2.dcm").dataset == OTHER.dataset


async def test_a_file_that_was_taken_away_meanwhile_is_written_again(tmp_path: Path) -> None:
    with ReceivedFolder(tmp_path) as folder:
        await keep(folder, ONE, uid="1.2")
        (tmp_path / "1.2.dcm").unlink()
        await keep(folder, ONE, uid="1.2")
        (written,) = tmp_path.iterdir()
        assert read_stored_file(written).dataset == ONE.dataset
        written.write_bytes(b"changed")
        await keep(folder, ONE, uid="1.2")
    assert written.read_bytes() == b"changed"
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("occupant", ["folder", "link", "pipe", "text", "empty"])
async def test_whatever_has_the_name_already_stays_as_it_is(tmp_path: Path, occupant: str) -> None:
    there, outside = tmp_path / "out" / "1.2.dcm", tmp_path / "outside"
    there.parent.mkdir()
    if occupant == "folder":
        there.mkdir()
    elif occupant == "link":
        there.symlink_to(outside)
    elif occupant == "pipe":
        os.mkfifo(there)
    else:
        there.write_bytes(b"" if occupant == "empty" else b"text")
    before = there.lstat()
    with ReceivedFolder(tmp_path / "out") as folder:
        await keep(folder, ONE, uid="1.2")
    assert there.lstat().st_ino == before.st_ino
    assert not outside.exists()
    assert read_stored_file(tmp_path / "out" / "1.2_2.dcm").dataset == ONE.dataset


async def test_where_there_are_no_hard_links_nothing_is_written_over_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_arguments: object, **_more: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", no_link)
    with ReceivedFolder(tmp_path) as folder:
        for one in (ONE, OTHER, ONE):
            await keep(folder, one, uid="1.2")
    assert names(tmp_path) == ["1.2.dcm", "1.2_2.dcm"]
    assert read_stored_file(tmp_path / "1.2_2.dcm").dataset == OTHER.dataset


@pytest.mark.parametrize("call", ["writev", "fsync", "link"])
async def test_a_full_disk_leaves_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_arguments: object, **_more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with ReceivedFolder(tmp_path) as folder:
        writer = await begin(folder, ONE)
        monkeypatch.setattr(os, call, full)
        with pytest.raises(StorageFull):
            await _write_and_commit(writer, ONE)
        await writer.abort()
        assert names(tmp_path) == []
        monkeypatch.undo()
        await keep(folder, ONE)
    assert len(names(tmp_path)) == 1


async def test_what_a_killed_process_left_is_swept_but_not_what_another_is_writing(tmp_path: Path) -> None:
    left, written, other = (tmp_path / f".receiving-{digit * 16}.part" for digit in "abc")
    left.write_bytes(b"half")
    with written.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        other.symlink_to(tmp_path / "nowhere")
        with ReceivedFolder(tmp_path):
            assert names(tmp_path) == sorted([written.name, other.name])


def test_a_folder_that_cannot_be_written_is_found_out_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError), ReceivedFolder(tmp_path / "file" / "out"):
        pass


async def test_dicos_files_say_their_version_as_scanners_files_do(tmp_path: Path) -> None:
    one = dicos_ct(frames=2, rows=8, columns=8)
    with ReceivedFolder(tmp_path) as folder:
        await keep(folder, one)
        await keep(folder, one, uid="9.9.1")
    for path in tmp_path.iterdir():
        assert read_stored_file(path).dicos_version == DICOS_VERSION
        assert read_stored_file(path).dataset == one.dataset


async def test_a_dicos_object_that_cannot_be_read_is_kept_all_the_same(tmp_path: Path) -> None:
    one = dicos_ct(frames=2, rows=8, columns=8)
    with ReceivedFolder(tmp_path) as folder:
        writer = await begin(folder, one)
        await writer.write([memoryview(b"\xff" * 1000)])
        await writer.commit()
    (path,) = tmp_path.iterdir()
    assert path.read_bytes().endswith(b"\xff" * 1000)
