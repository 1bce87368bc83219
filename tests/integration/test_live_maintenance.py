"""Deleting, verifying and backing up while the server receives: nothing is halved, nobody disturbed."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from scp_server import Server
from scp_server.cli.control_client import ControlClient
from scp_server.index.base import Level, Scope
from scp_server.observability.logs import captured_logs
from scp_server.runtime.maintenance import carrying_out
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.testing.archive import Archive
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts

StartServer = Callable[..., Awaitable[Server]]
SENDERS = 8
STUDY = "1.2.826.0.77"


def _slice(number: int, *, study: str = STUDY) -> EncodedObject:
    """The same bytes for the same number."""
    return ct_image(
        rows=16,
        columns=16,
        seed=number,
        study_instance_uid=study,
        series_instance_uid=f"{study}.{number % 2}",
        sop_instance_uid=f"{study}.1.{number}",
    )


async def _send(server: Server, objects: Sequence[EncodedObject]) -> list[int]:
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(storage_contexts(*objects))
        return [await peer.store(each) for each in objects]


async def _command(server: Server, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the program on the server's folder: its exit code, and its document."""
    process = await asyncio.create_subprocess_exec(
        *_program(server, *arguments, "--json"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return process.returncode or 0, json.loads(output) if output else {}


async def _verify(server: Server, **options: bool) -> list[tuple[str, str, bool]]:
    """What the server finds when it is asked to verify: kind, location and whether it was repaired."""
    found: list[dict[str, Any]] = []

    def ask() -> None:
        with ControlClient(server.settings.data_dir) as client:
            client.follow("index.verify", options, NoProgress(), found.append)

    await asyncio.to_thread(ask)
    return [(each["kind"], each["location"], each["repaired"]) for each in found]


def _program(server: Server, *arguments: str) -> list[str]:
    folder = str(server.settings.data_dir)
    return [sys.executable, "-m", "scp_server.cli.main", *arguments, "--data-dir", folder]


@asynccontextmanager
async def _traffic(server: Server, objects: Callable[[int], Sequence[EncodedObject]]) -> AsyncIterator[Any]:
    """SENDERS associations that send the same rounds of objects until the block ends, and their statuses."""
    ends = asyncio.Event()
    statuses: list[int] = []

    async def send(sender: int) -> None:
        async with await ScriptedPeer.connect(*server.address) as peer:
            await peer.associate(storage_contexts(*objects(sender)))
            while not ends.is_set():
                for each in objects(sender):
                    statuses.append(await peer.store(each))

    async with asyncio.TaskGroup() as group:
        for sender in range(SENDERS):
            group.create_task(send(sender))
        try:
            yield statuses
        finally:
            ends.set()


async def _agrees(server: Server, tmp_path: Path) -> set[str]:
    """Files and rows are the same; returns them."""
    files = {str(path.relative_to(tmp_path / "data")) for path in _files(tmp_path)}
    rows = {part.location for part in await server.index.list_parts(limit=10_000)}
    assert rows == files
    assert list((tmp_path / "data" / "deletions").iterdir()) == []
    return files


def _files(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "data" / "objects").rglob("*.dcm"))


async def test_deletions_of_what_eight_associations_are_sending_leave_no_half(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All send the same objects, again and again; scopes that overlap are deleted, and storage and index are
    compared and verified with repair meanwhile."""
    monkeypatch.setattr(carrying_out, "ROWS_TOGETHER", 3)
    objects = [_slice(number) for number in range(20)]
    server = await start_server()
    assert set(await _send(server, objects)) == {0x0000}
    # A second server in the same place has something from before its start to compare.
    await server.stop()
    server = await start_server(index={"compare_objects_per_second": 200})
    with captured_logs() as logs:
        async with _traffic(server, lambda sender: objects[sender:] + objects[:sender]) as statuses:
            for _ in range(5):
                *removed, found = await asyncio.gather(
                    server._deletions.delete(Scope(Level.STUDY, STUDY)),
                    server._deletions.delete(Scope(Level.SERIES, f"{STUDY}.1")),
                    server._deletions.delete(Scope(Level.INSTANCE, f"{STUDY}.1.4")),
                    _verify(server, repair=True),
                )
                assert removed[0].extent.parts > 0
                assert found == []
    assert set(statuses) == {0x0000}
    # Each sender began a round after the last deletion had ended, or ended one: all is there once.
    assert set(await _send(server, objects)) == {0x0000}
    assert len(await _agrees(server, tmp_path)) == len(objects)
    totals = await server.index.totals()
    assert (totals.studies, totals.series, totals.instances, totals.parts) == (1, 2, 20, 20)
    events = {record["event"] for record in logs}
    assert "archive.deleted" in events
    assert not events & {"object.missing", "object.adopted", "object.unreadable", "deletion.failed"}


async def test_what_is_acknowledged_after_the_decision_stays(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes are sent anew when the deletion is decided and not a row has gone."""
    objects = [_slice(number) for number in range(6)]
    server = await start_server()
    assert set(await _send(server, objects)) == {0x0000}
    before = set(map(str, _files(tmp_path)))
    decided, go_on = asyncio.Event(), asyncio.Event()
    remove = server._index.remove

    async def remove_later(locations: Sequence[str]) -> int:
        if len(locations) > 1:
            decided.set()
            await go_on.wait()
        return await remove(locations)

    monkeypatch.setattr(server._index, "remove", remove_later)
    deleted = asyncio.create_task(_command(server, "delete", "--study", STUDY, "--yes"))
    await decided.wait()
    assert await _send(server, objects[:3]) == [0x0000] * 3
    go_on.set()
    code, document = await deleted
    assert (code, document["instances"], document["files"]) == (0, 6, 6)
    assert not before & set(map(str, _files(tmp_path)))
    assert len(await _agrees(server, tmp_path)) == 3
    for each in objects[:3]:
        (part,) = await server.index.parts(each.sop_instance_uid)
        stored = [piece async for piece in server.storage.read(part.location)]
        assert b"".join(stored).endswith(each.dataset)


async def test_a_verification_finds_what_is_wrong_and_nothing_that_is_in_flight(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(storage={"duplicates": "replace"})
    kept = [_slice(number) for number in range(16)]
    assert set(await _send(server, kept)) == {0x0000}
    ((orphan,), (dangler,)) = [await server.index.parts(each.sop_instance_uid) for each in kept[:2]]
    await server.index.remove([orphan.location])
    (tmp_path / "data" / dangler.location).unlink()
    rounds = iter(range(1_000, 1_000_000))

    def others(sender: int) -> list[EncodedObject]:
        """New instances, the same bytes again, and versions of one that is replaced again and again."""
        number = next(rounds)
        uid = f"1.2.826.0.78.{sender}"
        version = ct_image(rows=16, columns=16, seed=number, sop_instance_uid=uid)
        return [_slice(number % 100, study="1.2.826.0.78"), version]

    async with _traffic(server, others) as statuses:
        for _ in range(5):
            found = await _verify(server)
            assert found == [("orphan", orphan.location, False), ("dangler", dangler.location, False)]
        found = await _verify(server, repair=True, drop_danglers=True)
        assert found == [("orphan", orphan.location, True), ("dangler", dangler.location, True)]
        assert len(statuses) > SENDERS
    assert set(statuses) == {0x0000}
    code, document = await _command(server, "index", "verify")
    assert (code, document["findings"], document["parts"]) == (0, [], document["objects"])
    assert (await server.index.parts(kept[0].sop_instance_uid))[0].location == orphan.location


async def test_ctrl_c_at_the_client_stops_a_verification_in_the_server(start_server: StartServer) -> None:
    server = await start_server(index={"compare_objects_per_second": 1})
    assert set(await _send(server, [_slice(number) for number in range(10)])) == {0x0000}
    with captured_logs() as logs:
        process = await asyncio.create_subprocess_exec(
            *_program(server, "index", "verify"), stderr=asyncio.subprocess.PIPE
        )
        while not (running := _tasks("control.index.verify")):
            await asyncio.sleep(0.01)
        code, document = await _command(server, "index", "verify")
        assert (code, document) == (1, {}), "one at a time"
        process.send_signal(signal.SIGINT)
        _, complaint = await process.communicate()
        async with asyncio.timeout(10):
            await asyncio.wait(running)
            while "control.abandoned" not in [record["event"] for record in logs]:
                await asyncio.sleep(0.01)
    assert (process.returncode, complaint) == (1, b"scp-server: interrupted\n")
    assert running[0].cancelled()


async def test_a_decided_deletion_is_finished_though_its_client_is_interrupted(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server()
    assert set(await _send(server, [_slice(number) for number in range(10)])) == {0x0000}
    decided, go_on = asyncio.Event(), asyncio.Event()
    delete = server._storage.delete_many

    async def delete_later(locations: Sequence[str]) -> Mapping[str, str]:
        decided.set()
        await go_on.wait()
        return await delete(locations)

    monkeypatch.setattr(server._storage, "delete_many", delete_later)
    process = await asyncio.create_subprocess_exec(
        *_program(server, "delete", "--study", STUDY, "--yes"), stderr=asyncio.subprocess.PIPE
    )
    await decided.wait()
    process.send_signal(signal.SIGINT)
    _, complaint = await process.communicate()
    assert process.returncode == 1
    assert b"the server carries out" in complaint
    (running,) = _tasks("maintenance.delete")
    go_on.set()
    await running
    assert await _agrees(server, tmp_path) == set()


def _tasks(name: str) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == name]


async def test_a_backup_while_objects_are_deleted_and_replaced_is_whole(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(storage={"duplicates": "replace"})
    assert set(await _send(server, [_slice(number) for number in range(40)])) == {0x0000}
    rounds = iter(range(1_000, 1_000_000))

    def versions(sender: int) -> list[EncodedObject]:
        uid = f"1.2.826.0.78.{sender}"
        return [ct_image(rows=16, columns=16, seed=next(rounds), sop_instance_uid=uid) for _ in range(5)]

    async with _traffic(server, versions):
        taken = asyncio.create_task(_command(server, "backup", "--output", str(tmp_path / "backup")))
        for number in range(0, 40, 2):
            await server._deletions.delete(Scope(Level.INSTANCE, f"{STUDY}.1.{number}"))
        code, document = await taken
    assert (code, document["failed"]) == (0, 0)
    assert {each["kind"] for each in document["findings"]} <= {"deleted_meanwhile"}
    back = Archive.at(tmp_path / "back")
    restore = ["restore", "--input", str(tmp_path / "backup"), "--data-dir", str(back.data_dir)]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "scp_server.cli.main", *restore)
    assert await process.wait() == 0
    assert {row[4] for row in back.rows()["parts"]} == set(back.files())
    assert len(back.files()) == document["objects"] >= 20


RUN_COMMANDS = """
import contextlib, io, json, sys
from scp_server.cli.main import main
results = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            main(arguments)
        except SystemExit as end:
            results.append((end.code, said.getvalue()))
print(json.dumps(results))
"""
COMMANDS = (
    (1, ["index", "verify"]),
    (0, ["index", "verify", "--repair", "--no-digest"]),
    (2, ["index", "verify", "--drop-danglers"]),
    (0, ["delete", "--series", f"{STUDY}.1", "--yes"]),
    (1, ["delete", "--series", f"{STUDY}.1", "--yes"]),
    (2, ["delete", "--study", "no UID", "--yes"]),
)


@pytest.mark.parametrize("machine", [False, True], ids=["text", "json"])
async def test_the_program_says_the_same_with_a_server_and_without(
    start_server: StartServer, tmp_path: Path, machine: bool
) -> None:
    server = await start_server()
    assert set(await _send(server, [_slice(number) for number in range(6)])) == {0x0000}
    await server.stop()
    orphan, copied = _files(tmp_path)[0], tmp_path / "copied"
    archive = Archive.at(tmp_path / "data")
    async with archive.opened() as (_, index):
        await index.remove([str(orphan.relative_to(archive.data_dir))])
    await asyncio.to_thread(shutil.copytree, archive.data_dir, copied)
    await start_server(index={"compare_at_start": False})
    served, alone = await asyncio.gather(
        *(_run_commands(folder, machine=machine) for folder in (archive.data_dir, copied))
    )
    assert [code for code, _ in served] == [code for code, _ in alone] == [code for code, _ in COMMANDS]
    assert served == alone


async def _run_commands(folder: Path, *, machine: bool) -> list[tuple[int, str]]:
    """Run COMMANDS on a folder, one after the other in one process: the exit code and output of each."""
    common = ["--data-dir", str(folder), *(["--json"] if machine else [])]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN_COMMANDS, json.dumps([[*each, *common] for _, each in COMMANDS])),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return [(code, said) for code, said in json.loads(output)]


async def test_a_bar_is_drawn_at_a_terminal_of_what_the_server_does(server: Server) -> None:
    assert set(await _send(server, [_slice(number) for number in range(100)])) == {0x0000}
    for arguments, stage in (
        (["index", "verify"], b"looking at"),
        (["delete", "--study", STUDY], b"deleting"),
    ):
        ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *_program(server, *arguments),
            stdin=theirs,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=theirs,
        )
        os.write(ours, b"y\n")
        assert await process.wait() == 0
        drawn = await asyncio.to_thread(os.read, ours, 65_536)
        os.close(ours)
        os.close(theirs)
        assert stage in drawn
