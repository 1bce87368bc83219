"""`scp-server validate`: what it says of files and folders, and how it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scp_server.cli import validate
from scp_server.cli.main import app
from scp_server.testing.dicos_objects import dicos_ct, dicos_tdr
from scp_server.testing.objects import ct_image

RUNNER = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A valid CT and, deeper, a TDR of no known type; a text file."""
    (tmp_path / "deeper").mkdir()
    (tmp_path / "ct.dcs").write_bytes(dicos_ct().part10())
    (tmp_path / "deeper" / "tdr.dcs").write_bytes(dicos_tdr(tdr_type="BANANA").part10())
    (tmp_path / "notes.txt").write_text("no object")
    return tmp_path


def run(*arguments: str | Path) -> tuple[int, str]:
    result = RUNNER.invoke(app, ["validate", *map(str, arguments)])
    return result.exit_code, result.stdout


def test_a_valid_file_ends_with_0_and_is_counted(tmp_path: Path) -> None:
    (tmp_path / "ct.dcm").write_bytes(ct_image().part10())
    code, output = run(tmp_path / "ct.dcm")
    summary = "1 files, 0 with errors: 0 errors, 0 warnings, 0 infos; 0 unreadable, 0 skipped"
    assert (code, output.splitlines()) == (0, [summary])


def test_errors_in_a_folder_end_with_1_and_name_file_code_and_path(folder: Path) -> None:
    code, output = run(folder)
    lines = output.splitlines()
    assert code == 1
    assert f"{folder / 'deeper' / 'tdr.dcs'}: 1 errors, 0 warnings, 0 infos" in lines
    assert any(line.startswith("  error tdr-type (4010,1027): TDRType is 'BANANA'") for line in lines)
    assert f"{folder / 'notes.txt'}: skipped: no DICOM Part 10 file" in lines
    assert lines[-1].startswith("2 files, 1 with errors: 1 errors")


def test_json_is_one_document_with_findings_and_summary(folder: Path) -> None:
    code, output = run("--json", folder)
    document = json.loads(output)
    assert code == 1
    assert document["summary"] == {
        "files": 2,
        "files_with_errors": 1,
        "unreadable": 0,
        "skipped": 1,
        "errors": 1,
        "warnings": 0,
        "infos": 0,
        "files_not_listed": 0,
    }
    by_file = {Path(entry["file"]).name: entry for entry in document["files"]}
    (finding,) = by_file["tdr.dcs"]["findings"]
    assert {name: finding[name] for name in ("severity", "code", "path", "keyword", "vr")} == {
        "severity": "error",
        "code": "tdr-type",
        "path": "(4010,1027)",
        "keyword": "TDRType",
        "vr": "CS",
    }


def test_warnings_alone_end_with_0(tmp_path: Path) -> None:
    (tmp_path / "tdr.dcs").write_bytes(dicos_tdr(decision="MAYBE").part10())
    code, output = run(tmp_path)
    assert code == 0
    assert "  warning enumeration (4010,1031): AlarmDecision" in output


def test_a_named_file_that_is_no_dicom_file_ends_with_1(folder: Path) -> None:
    code, output = run(folder / "notes.txt")
    assert code == 1
    assert "notes.txt: unreadable: no DICOM Part 10 file" in output


def test_a_cut_file_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "cut.dcs").write_bytes(dicos_ct().part10()[:-100])
    code, output = run(tmp_path)
    assert code == 1
    assert "  error unreadable: The file cannot be read: data set cut" in output


def test_a_pipe_in_a_folder_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code, output = run(tmp_path)
    assert (code, "pipe: skipped: no regular file" in output) == (0, True)


def test_a_path_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    assert run(tmp_path / "nowhere")[0] == 2


def test_json_lists_a_bounded_number_of_findings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "MAX_LISTED", 1)
    document = json.loads(run("--json", folder)[1])
    assert len(document["files"]) == 1
    assert document["summary"]["files_not_listed"] == 1
    assert document["summary"]["errors"] == 1
