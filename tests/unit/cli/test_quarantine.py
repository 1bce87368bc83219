"""`quarantine` and `status` where no server runs, and against one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scp_server.cli.main import app
from scp_server.runtime.process import DataFolderLock
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SCP_SERVER_"):
            monkeypatch.delenv(name)


async def _send_refused(port: int, count: int) -> None:
    async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
        stored = ct_image()
        await peer.associate(storage_contexts(stored), calling_ae_title="SCAN[b]NER")
        for number in range(count):
            refused = dataclasses.replace(stored, dataset=b"\xff" * (100 + number))
            assert await peer.store(refused) == 0xC000


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A server that has refused two data sets."""
    daemon = DaemonProcess(tmp_path / "data")
    with daemon:
        asyncio.run(_send_refused(daemon.ready.dicom_port, 2))
        yield daemon


def _run(data_dir: Path, *arguments: str) -> tuple[int, str]:
    result = RUNNER.invoke(app, [*arguments, "--data-dir", str(data_dir)])
    return result.exit_code, result.output


def _json(data_dir: Path, *arguments: str) -> Any:
    code, output = _run(data_dir, *arguments, "--json")
    assert code == 0, output
    return json.loads(output)


def test_the_commands_do_the_same_with_the_server_and_without(daemon: DaemonProcess) -> None:
    folder = daemon.data_dir
    listed = _json(folder, "quarantine", "list")
    first, second = (each["id"] for each in listed["objects"])
    code, output = _run(folder, "quarantine", "list")
    assert code == 0
    assert "SCAN[b]NER" in output
    assert "2 of at most 10000 objects" in output
    shown = _json(folder, "quarantine", "show", first)

    code, output = _run(folder, "quarantine", "release", first)
    assert code == 1
    assert "still in quarantine, 0xC000" in output
    report = _json(folder, "status")
    assert report["quarantine"]["objects"] == 2
    assert report["totals"]["operations_failed"] == 2
    assert report["problems"][-1]["event"] == "quarantine.release_refused"
    code, output = _run(folder, "status")
    assert code == 0
    assert "2 objects" in output

    daemon.terminate()
    assert [each["id"] for each in _json(folder, "quarantine", "list")["objects"]] == [first, second]
    assert _json(folder, "quarantine", "show", first) == {**shown, "release_attempts": 1}
    code, output = _run(folder, "quarantine", "show", first)
    assert code == 0
    assert str(folder / "quarantine" / f"{first}.quarantine") in output
    code, output = _run(folder, "quarantine", "drop", first, "abc", "../x")
    assert code == 1
    assert f"{first}: dropped" in output
    assert [each["id"] for each in _json(folder, "quarantine", "list")["objects"]] == [second]
    daemon.start()
    assert _json(folder, "quarantine", "drop", second) == {"results": [{"id": second, "dropped": True}]}
    assert list((folder / "quarantine").iterdir()) == []


@pytest.mark.parametrize("arguments", [("status",), ("status", "--watch"), ("quarantine", "release", "ab")])
def test_without_a_server_what_needs_one_is_exit_2_and_says_so(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    code, output = _run(tmp_path, *arguments)
    assert code == 2
    assert f"no server runs on {tmp_path}" in output


def test_a_folder_without_a_quarantine_is_exit_2_and_left_alone(tmp_path: Path) -> None:
    for command in (["list"], ["show", "ab"], ["drop", "ab"]):
        code, output = _run(tmp_path, "quarantine", *command)
        assert code == 2
        assert "no quarantine in it" in output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_has_locked_is_exit_2(tmp_path: Path) -> None:
    (tmp_path / "quarantine").mkdir()
    lock = DataFolderLock(tmp_path)
    lock.acquire()
    try:
        code, output = _run(tmp_path, "quarantine", "list")
    finally:
        lock.release()
    assert code == 2
    assert f"in use by the process with id {os.getpid()}" in output


def test_an_id_that_is_none_is_exit_1(tmp_path: Path) -> None:
    (tmp_path / "quarantine").mkdir()
    for object_id in ("../x", "ab", "A"):
        assert _run(tmp_path, "quarantine", "show", object_id)[0] == 1


def test_the_environment_names_the_folder_where_no_option_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCP_SERVER_DATA_DIR", str(tmp_path))
    result = RUNNER.invoke(app, ["status"])
    assert result.exit_code == 2
    assert str(tmp_path) in result.output
