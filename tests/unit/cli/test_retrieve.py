"""`move` and `get` with an archive by pynetdicom."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from typer.testing import CliRunner

from scp_server.cli.main import app
from scp_server.testing.daemon import read_stored_file
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import CT_IMAGE_STORAGE, ct_image

RUNNER = CliRunner()
ROOT = Path(__file__).parents[3]
STUDY_MOVE, STUDY_GET = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
EXPLICIT = "1.2.840.10008.1.2.1"
IMAGES = [ct_image(rows=8, columns=8, seed=seed) for seed in range(3)]
QUERY = json.dumps({"StudyInstanceUID": "1.2"})


def as_dataset(one: EncodedObject) -> Dataset:
    return dcmread(io.BytesIO(one.part10()))


@dataclass
class Archive:
    """What it has, what it was asked, and where it moves to."""

    has: list[Dataset] = field(default_factory=lambda: [as_dataset(one) for one in IMAGES])
    asked: list[Dataset] = field(default_factory=list)
    status: int = 0
    hold: threading.Event | None = None
    """Before the second object, wait for a cancel and set this."""
    port: int = 0
    destination: tuple[str, int] | None = None
    moved: list[str] = field(default_factory=list)

    def get(self, event: Any) -> Iterator[Any]:
        """Handle C-GET."""
        self.asked.append(event.identifier)
        if self.status:
            yield 1
            yield self.status, None
            return
        yield len(self.has)
        for number, dataset in enumerate(self.has):
            if number and self.hold is not None:
                self.hold.set()
                while not event.is_cancelled:
                    threading.Event().wait(0.01)
                yield 0xFE00, None
                return
            yield 0xFF00, dataset

    def move(self, event: Any) -> Iterator[Any]:
        """Handle C-MOVE."""
        self.asked.append(event.identifier)
        if self.destination is None or event.move_destination != "VIEWER":
            yield None, None
            return
        yield self.destination
        yield len(self.has)
        for dataset in self.has:
            yield 0xFF00, dataset

    def store(self, event: Any) -> int:
        """Handle C-STORE at the destination."""
        self.moved.append(event.request.AffectedSOPInstanceUID)
        return 0xB000 if event.request.AffectedSOPInstanceUID == self.refused_uid else 0x0000

    refused_uid: str = ""


@pytest.fixture
def archive() -> Iterator[Archive]:
    archive = Archive()
    ae = AE("ARCHIVE")
    ae.add_supported_context(STUDY_GET, EXPLICIT)
    ae.add_supported_context(STUDY_MOVE, EXPLICIT)
    ae.add_supported_context(CT_IMAGE_STORAGE, EXPLICIT, scu_role=True, scp_role=True)
    ae.add_requested_context(CT_IMAGE_STORAGE, EXPLICIT)
    handlers: list[Any] = [
        (evt.EVT_C_GET, archive.get),
        (evt.EVT_C_MOVE, archive.move),
        (evt.EVT_C_STORE, archive.store),
    ]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    archive.port = server.server_address[1]
    archive.destination = ("127.0.0.1", archive.port)
    yield archive
    server.shutdown()


def invoke(archive: Archive, command: str, *more: str, query: str = QUERY) -> Any:
    return RUNNER.invoke(
        app, [command, "--port", str(archive.port), "--ae-title", "ARCHIVE", "--query", query, *more]
    )


def test_get_writes_each_object_as_it_was_sent(archive: Archive, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    result = invoke(archive, "get", "--output", str(out))
    assert result.exit_code == 0, result.output
    assert archive.asked[0].QueryRetrieveLevel == "STUDY"
    for one in IMAGES:
        file = read_stored_file(out / f"{one.sop_instance_uid}.dcm")
        assert (file.dataset, file.transfer_syntax_uid) == (one.dataset, EXPLICIT)
    lines = [f"stored: {out / one.sop_instance_uid}.dcm" for one in IMAGES]
    assert result.stdout.splitlines() == lines
    assert "3 objects: 3 stored" in result.stderr
    assert "the peer counts: 3 completed" in result.stderr


def test_get_again_finds_everything_there_and_keeps_what_differs(archive: Archive, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{one.sop_instance_uid}.dcm" for one in IMAGES)
    assert invoke(archive, "get", "--output", str(tmp_path)).exit_code == 0
    second.write_bytes(b"somebody's own")
    third.unlink()
    third.symlink_to(first)
    result = invoke(archive, "get", "--output", str(tmp_path), "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    outcomes = {Path(one["file"]).name: one["outcome"] for one in document["objects"]}
    assert outcomes == {
        first.name: "already_there",
        second.name.replace(".dcm", "_2.dcm"): "stored",
        third.name.replace(".dcm", "_2.dcm"): "stored",
    }
    assert second.read_bytes() == b"somebody's own"
    assert third.is_symlink()
    assert len(list(tmp_path.iterdir())) == 5


def test_get_reports_each_instance_for_machines(archive: Archive, tmp_path: Path) -> None:
    result = invoke(archive, "get", "--output", str(tmp_path), "--json")
    document = json.loads(result.stdout)
    assert document["status"] == "0x0000"
    assert document["counters"] == {"remaining": 0, "completed": 3, "failed": 0, "warning": 0}
    assert document["exit_code"] == 0
    assert document["objects"][0] == {
        "sop_class_uid": CT_IMAGE_STORAGE,
        "sop_instance_uid": IMAGES[0].sop_instance_uid,
        "transfer_syntax_uid": EXPLICIT,
        "dataset_bytes": len(IMAGES[0].dataset),
        "status": "0x0000",
        "outcome": "stored",
        "file": str(tmp_path / f"{IMAGES[0].sop_instance_uid}.dcm"),
        "reason": "",
    }
    assert document["summary"]["stored"] == 3
    assert document["summary"]["bytes"] == sum(len(one.dataset) for one in IMAGES)


@pytest.mark.parametrize("status", [0xA701, 0xA900, 0xC001])
def test_get_that_the_peer_fails_is_exit_1(archive: Archive, tmp_path: Path, status: int) -> None:
    archive.status = status
    result = invoke(archive, "get", "--output", str(tmp_path), "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["status"] == f"0x{status:04X}"
    assert document["exit_code"] == 1
    assert f"0x{status:04X}" in document["error"]


def test_get_of_an_object_without_a_context_is_exit_1_with_the_rest_kept(
    archive: Archive, tmp_path: Path
) -> None:
    archive.has[1].SOPClassUID = archive.has[1].file_meta.MediaStorageSOPClassUID = UID("1.2.840.99.1")
    result = invoke(archive, "get", "--output", str(tmp_path), "--json", "--sop-class", CT_IMAGE_STORAGE)
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["status"] == "0xB000"
    assert document["failed_sop_instance_uids"] == [IMAGES[1].sop_instance_uid]
    assert document["summary"]["stored"] == 2


def test_get_stops_at_its_limit(archive: Archive, tmp_path: Path) -> None:
    result = invoke(archive, "get", "--output", str(tmp_path), "--max-objects", "2")
    assert result.exit_code == 1
    assert "more than 2 objects" in result.stderr
    assert len(list(tmp_path.iterdir())) == 2


def test_nobody_there_is_exit_3_and_a_model_that_is_not_there_exit_1(
    archive: Archive, tmp_path: Path
) -> None:
    for command in ("get", "move"):
        where = ["--output", str(tmp_path)] if command == "get" else ["--dest", "VIEWER"]
        arguments = [command, "--port", "1", "--query", QUERY, *where, "--json"]
        result = RUNNER.invoke(app, arguments)
        assert result.exit_code == 3
        assert json.loads(result.stdout)["exit_code"] == 3
        result = invoke(archive, command, *where, query='{"PatientID": "1"}')
        assert result.exit_code == 1
        assert "no presentation context was accepted" in result.stderr


def test_ctrl_c_cancels_a_get_and_keeps_what_came(archive: Archive, tmp_path: Path) -> None:
    archive.hold = threading.Event()
    arguments = ["--port", str(archive.port), "--ae-title", "ARCHIVE", "--query", QUERY]
    process = subprocess.Popen(
        [sys.executable, "-m", "scp_server", "get", *arguments, "--output", str(tmp_path), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert archive.hold.wait(20)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 1, errors
    document = json.loads(output)
    assert document["status"] == "0xFE00"
    assert document["cancelled"]
    assert document["error"] == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == [f"{IMAGES[0].sop_instance_uid}.dcm"]


def test_at_a_terminal_there_is_a_bar_with_counts(archive: Archive, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = ["--port", str(archive.port), "--ae-title", "ARCHIVE", "--query", QUERY]
    process = subprocess.Popen(
        [sys.executable, "-m", "scp_server", "get", *arguments, "--output", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    output, _ = process.communicate(timeout=30)
    shown = b""
    try:
        while chunk := os.read(ours, 65_536):
            shown += chunk
    except OSError:
        pass  # The end of a pseudo terminal.
    os.close(ours)
    assert process.returncode == 0
    assert len(output.splitlines()) == 3
    assert b"/3 objects" in shown
    assert b"MB/s" in shown


def test_move_has_the_peer_send_to_a_third_party(archive: Archive) -> None:
    result = invoke(archive, "move", "--dest", "VIEWER", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["counters"]["completed"] == 3
    assert document["instances"] == []
    assert archive.moved == [one.sop_instance_uid for one in IMAGES]


def test_move_with_a_warning_is_exit_1_and_names_the_destination_in_its_summary(archive: Archive) -> None:
    archive.refused_uid = IMAGES[1].sop_instance_uid
    result = invoke(archive, "move", "--dest", "VIEWER")
    assert result.exit_code == 1
    assert "0xB000 (complete, but not all succeeded)" in result.stderr
    assert "to VIEWER: 2 completed, 1 warning" in result.stderr


def test_move_to_an_unknown_destination_is_exit_1(archive: Archive) -> None:
    result = invoke(archive, "move", "--dest", "NOBODY", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "0xA801"
    assert "move destination unknown" in result.stderr
