"""`index rebuild`, `index verify`, `delete`, `backup` and `restore` as an administrator meets them."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scp_server.cli.main import app
from scp_server.cli.maintenance import Listing
from scp_server.runtime.maintenance.findings import Finding, Kind
from scp_server.runtime.process import DataFolderLock
from scp_server.testing.archive import Archive
from scp_server.testing.objects import ct_image

RUNNER = CliRunner()
STUDY = "1.2.3.4"


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SCP_SERVER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Two instances in one study, one in another."""
    archive = Archive.at(tmp_path / "data")
    objects = [ct_image(seed=1, study_instance_uid=STUDY), ct_image(seed=2, study_instance_uid=STUDY)]
    assert asyncio.run(archive.store([*objects, ct_image(seed=3)])) == [0, 0, 0]
    return archive


def _run(archive: Archive, *arguments: str) -> tuple[int, Any, str]:
    """Exit code, the JSON document, and standard error."""
    result = RUNNER.invoke(app, [*arguments, "--data-dir", str(archive.data_dir), "--json"])
    return result.exit_code, json.loads(result.stdout) if result.stdout else None, result.stderr


def _program(archive: Archive, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "scp_server.cli.main", *arguments, "--data-dir", str(archive.data_dir)]


@pytest.mark.parametrize(
    "arguments", [["index", "rebuild"], ["index", "verify"], ["delete", "--study", STUDY, "--yes"]]
)
def test_while_a_server_runs_it_is_exit_2_with_a_clear_text(archive: Archive, arguments: list[str]) -> None:
    lock = DataFolderLock(archive.data_dir)
    lock.acquire()
    code, document, complaint = _run(archive, *arguments)
    lock.release()
    assert (code, document) == (2, None)
    assert f"in use by the process with id {os.getpid()}" in complaint
    assert "while no server uses the folder" in complaint
    assert len(archive.files()) == 3


def test_rebuild_reports_totals_and_is_1_with_an_unreadable_file(archive: Archive) -> None:
    code, document, _ = _run(archive, "index", "rebuild")
    assert code == 0
    assert (document["objects"], document["totals"]["studies"], document["findings"]) == (3, 2, [])
    location = archive.location_of(ct_image(seed=3))
    (archive.data_dir / location).write_bytes(b"no object")
    code, document, _ = _run(archive, "index", "rebuild")
    assert (code, document["unreadable"], document["findings_cut"]) == (1, 1, False)
    assert document["findings"][0]["location"] == location
    plain = RUNNER.invoke(app, ["index", "rebuild", "--data-dir", str(archive.data_dir)])
    assert plain.exit_code == 1
    assert f"unreadable: {location}: " in plain.stdout
    assert "3 objects: 2 parts of 2 instances" in plain.stdout
    assert "the old index is kept as " in plain.stdout


def test_verify_is_0_when_all_is_or_was_made_well_and_1_otherwise(archive: Archive) -> None:
    assert _run(archive, "index", "verify")[:1] == (0,)
    asyncio.run(_forget_everything(archive))
    code, document, _ = _run(archive, "index", "verify", "--no-digest")
    assert (code, document["found"], document["left"]) == (1, {"orphan": 3}, 3)
    code, document, _ = _run(archive, "index", "verify", "--repair")
    assert (code, document["repaired"], document["left"]) == (0, {"orphan": 3}, 0)
    plain = RUNNER.invoke(app, ["index", "verify", "--data-dir", str(archive.data_dir)])
    assert (plain.exit_code, plain.stdout) == (0, "3 objects, 3 parts in the index: 0 findings, 0 repaired\n")
    location = archive.location_of(ct_image(seed=3))
    (archive.data_dir / location).unlink()
    code, document, _ = _run(archive, "index", "verify", "--repair", "--drop-danglers")
    assert (code, document["repaired"]) == (0, {"dangler": 1})
    assert _run(archive, "index", "verify", "--drop-danglers")[0] == 2


async def _forget_everything(archive: Archive) -> None:
    async with archive.opened() as (_, index):
        await index.remove(list(archive.files()))


def test_delete_says_what_it_removed(archive: Archive) -> None:
    code, document, complaint = _run(archive, "delete", "--study", STUDY, "--yes")
    assert code == 0
    assert (document["instances"], document["parts"], document["files"], document["series"]) == (2, 2, 2, 1)
    assert "archive.deleted" in complaint
    assert len(archive.files()) == 1
    code, document, complaint = _run(archive, "delete", "--study", STUDY, "--yes")
    assert (code, document["parts"], document["files"]) == (1, 0, 0)
    assert "there is no study 1.2.3.4" in complaint
    uid = ct_image(seed=3).sop_instance_uid
    plain = RUNNER.invoke(app, ["delete", "--instance", uid, "--yes", "--data-dir", str(archive.data_dir)])
    assert plain.exit_code == 0
    assert plain.stdout.startswith(f"deleted instance {uid}: 1 instances (1 parts, ")
    assert archive.files() == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--study", STUDY],
        ["--yes"],
        ["--study", STUDY, "--series", STUDY, "--yes"],
        ["--study", "../x", "--yes"],
        ["--instance", "", "--yes"],
    ],
)
def test_delete_without_a_clear_order_is_exit_2_and_deletes_nothing(
    archive: Archive, arguments: list[str]
) -> None:
    assert _run(archive, "delete", *arguments)[0] == 2
    assert len(archive.files()) == 3


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 1), ("n", 1, 3), ("", 1, 3)])
def test_delete_asks_at_a_terminal(archive: Archive, answer: str, code: int, left: int) -> None:
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            _program(archive, "delete", "--study", STUDY),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
        ) as process:
            asked = b""
            while b"[y/N]" not in asked:
                asked += os.read(ours, 4096)
            os.write(ours, f"{answer}\n".encode())
            assert process.wait(30) == code
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"Delete study 1.2.3.4: 2 instances (2 parts, " in asked
    assert len(archive.files()) == left


def test_a_bar_is_drawn_at_a_terminal(archive: Archive) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        _program(archive, "index", "verify"), stdout=subprocess.PIPE, stderr=theirs, text=True, check=False
    )
    drawn = os.read(ours, 65_536)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0
    assert b"looking at" in drawn


def test_a_document_holds_the_first_findings_and_says_that_there_are_more() -> None:
    listing = Listing(as_json=True, most=2)
    for number in range(3):
        listing.take(Finding(Kind.ORPHAN, f"{number}"))
    document = listing.document()
    assert [finding["location"] for finding in document["findings"]] == ["0", "1"]
    assert document["findings_cut"] is True


def test_what_comes_from_outside_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    Listing(as_json=False).take(Finding(Kind.UNREADABLE, "a\x1b[2J", "b\nc"))
    assert capsys.readouterr().out == "unreadable: a\\x1b[2J: b\\x0ac\n"


def test_backup_and_restore_tell_what_they_did(archive: Archive, tmp_path: Path) -> None:
    output, back = tmp_path / "backup", Archive.at(tmp_path / "back")
    code, document, _ = _run(archive, "backup", "--output", str(output))
    assert (code, document["objects"], document["parts"], document["linked"]) == (0, 3, 3, 3)
    assert _run(archive, "backup", "--output", str(output))[0] == 2
    assert _run(archive, "restore", "--input", str(output))[0] == 2
    plain = RUNNER.invoke(app, ["restore", "--input", str(output), "--data-dir", str(back.data_dir)])
    assert plain.exit_code == 0
    assert plain.stdout.startswith("restored: 3 objects (")
    assert back.files() == archive.files()


def test_a_backup_or_restore_that_lacks_something_is_exit_1(archive: Archive, tmp_path: Path) -> None:
    output = tmp_path / "backup"
    (archive.data_dir / archive.location_of(ct_image(seed=3))).unlink()
    code, document, _ = _run(archive, "backup", "--output", str(output), "--copy")
    assert (code, document["failed"], document["objects"], document["linked"]) == (1, 1, 2, 0)
    (output / archive.location_of(ct_image(seed=1, study_instance_uid=STUDY))).unlink()
    code, document, _ = _run(Archive.at(tmp_path / "back"), "restore", "--input", str(output))
    assert (code, document["failed"]) == (1, 1)
