"""`find` and `worklist` against an archive by pynetdicom."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from typer.testing import CliRunner

from scp_server.cli.main import app

RUNNER = CliRunner()
ROOT = Path(__file__).parents[3]
STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2.1"
WORKLIST = "1.2.840.10008.5.1.4.31"
EXPLICIT = "1.2.840.10008.1.2.1"


def study(patient_id: str, name: str, **more: Any) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientID, dataset.PatientName = patient_id, name
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    return dataset


@dataclass
class Archive:
    """What it answers, and what it was asked."""

    answers: list[tuple[int, Dataset | None]] = field(default_factory=list)
    endless: bool = False
    asked: list[Dataset] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        """Handle C-FIND."""
        self.asked.append(event.identifier)
        yield from self.answers
        while self.endless:
            if event.is_cancelled:
                self.cancelled.set()
                yield 0xFE00, None
                return
            # Its other thread reads the C-CANCEL, and needs the interpreter for that.
            self.cancelled.wait(0.002)
            yield 0xFF00, study("MORE", "A^B")


@pytest.fixture
def archive() -> Iterator[Archive]:
    archive = Archive()
    ae = AE("ARCHIVE")
    ae.add_supported_context(STUDY_ROOT, EXPLICIT)
    ae.add_supported_context(WORKLIST, EXPLICIT)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, archive.find)])
    assert server is not None
    archive.port = server.server_address[1]
    yield archive
    server.shutdown()


def invoke(archive: Archive, *more: str, command: str = "find", query: str | None = "{}") -> Any:
    queries = [] if query is None else ["--query", query]
    return RUNNER.invoke(
        app, [command, "--port", str(archive.port), "--ae-title", "ARCHIVE", *queries, *more]
    )


def test_lines_have_the_columns_that_were_asked_for(archive: Archive) -> None:
    archive.answers = [
        (
            0xFF00,
            study("1", "DOE^JANE", ModalitiesInStudy=["CT", "MR"], StudyDate="20260102", StudyID="not asked"),
        ),
        (0xFF00, study("2\t3", "Yamada^Tarou=山田^太郎")),
    ]
    query: dict[str, Any] = {"StudyDate": "2026-", "PatientID": "", "PatientName": None, "(0008,0061)": []}
    result = invoke(archive, query=json.dumps(query))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "StudyDate\tPatientID\tPatientName\t(0008,0061)",
        "20260102\t1\tDOE^JANE\tCT\\MR",
        "\t2\\x093\tYamada^Tarou=山田^太郎\t",
    ]
    assert result.stderr == "scp-server: 2 matches\n"
    assert archive.asked[0].QueryRetrieveLevel == "STUDY"
    assert archive.asked[0].StudyDate == "2026-"


def test_json_is_one_array_of_the_dicom_json_model_as_it_came(archive: Archive) -> None:
    archive.answers = [(0xFF00, study(str(number), "A^B", StudyID="X")) for number in range(3)]
    result = invoke(archive, "--json")
    assert result.exit_code == 0
    matches = json.loads(result.stdout)
    assert [match["00100020"]["Value"] for match in matches] == [["0"], ["1"], ["2"]]
    assert matches[0]["00200010"] == {"vr": "SH", "Value": ["X"]}
    assert len(result.stdout.splitlines()) == 5, "a match on each line"


def test_no_match_is_an_empty_array_or_the_columns_and_no_failure(archive: Archive) -> None:
    result = invoke(archive, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    result = invoke(archive, query='{"PatientID": ""}')
    assert (result.exit_code, result.stdout) == (0, "PatientID\n")
    assert result.stderr == "scp-server: 0 matches\n"


def test_keys_that_were_not_supported_are_said(archive: Archive) -> None:
    archive.answers = [(0xFF01, study("1", "A^B"))]
    assert "1 match; 0xFF01: some keys were not supported" in invoke(archive).stderr


def test_a_failure_after_matches_is_exit_1_and_still_an_array(archive: Archive) -> None:
    status = Dataset()
    status.Status, status.ErrorComment = 0xA700, "too many matches"
    archive.answers = [(0xFF00, study("1", "A^B")), (status, None)]  # type: ignore[list-item]
    result = invoke(archive, "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)) == 1
    assert "0xA700: too many matches" in result.stderr
    assert "1 match" in result.stderr


def test_a_failure_before_any_match_is_the_document(archive: Archive) -> None:
    archive.answers = [(0xA900, None)]
    result = invoke(archive, "--json")
    assert result.exit_code == 1
    assert "0xA900" in json.loads(result.stdout)["error"]
    assert invoke(archive).stdout == ""


def test_a_limit_cancels_and_is_no_failure(archive: Archive) -> None:
    archive.endless = True
    result = invoke(archive, "--json", "--limit", "5")
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)) == 5
    assert "5 matches, then cancelled" in result.stderr
    assert archive.cancelled.wait(5)


def test_a_query_can_come_from_a_file(archive: Archive, tmp_path: Path) -> None:
    file = tmp_path / "query.json"
    file.write_text('{"PatientName": "Müller*", "PatientID": ""}', encoding="utf-8")
    assert invoke(archive, "--level", "SERIES", query=f"@{file}").exit_code == 0
    assert archive.asked[0].PatientName == "Müller*"
    assert archive.asked[0].QueryRetrieveLevel == "SERIES"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ('{"PatientNam": ""}', "did you mean PatientName"),
        ("PatientID=1", "no JSON at line 1, column 1"),
        ("[]", "a query is a JSON object"),
        ('{"PatientID": 1, "PatientID": 2}', "'PatientID' is there twice"),
        ("@no/such/file", "no/such/file cannot be read: No such file"),
        ("[" * 100_000, "too deep"),
    ],
)
def test_a_wrong_query_is_exit_2_and_says_what_is_wrong(archive: Archive, query: str, said: str) -> None:
    result = invoke(archive, query=query)
    assert result.exit_code == 2
    assert said in result.stderr
    assert archive.asked == []


@pytest.mark.parametrize(
    "options", [["--level", "ROOM"], ["--model", "x"], ["--limit", "0"], ["--level", "PATIENT"]]
)
def test_wrong_options_are_exit_2(archive: Archive, options: list[str]) -> None:
    assert invoke(archive, *options).exit_code == 2


def test_no_query_is_exit_2(archive: Archive) -> None:
    assert invoke(archive, query=None).exit_code == 2


def test_no_peer_is_exit_3_and_a_refused_model_exit_1(archive: Archive, unused_tcp_port: int) -> None:
    result = invoke(archive, "--json", "--port", str(unused_tcp_port))
    assert result.exit_code == 3
    assert json.loads(result.stdout)["exit_code"] == 3
    result = invoke(archive, "--model", "patient")
    assert result.exit_code == 1
    assert "no presentation context was accepted" in result.stderr


def test_what_the_peer_does_not_agree_on_is_said(archive: Archive) -> None:
    result = invoke(archive, "--relational", "--fuzzy", "--date-time", "--empty-value", "--multiple-value")
    assert result.exit_code == 0
    assert (
        "does not agree on relational, combined_date_time, fuzzy_person_names, empty_values, multiple_values"
        in result.stderr
    )


def test_a_worklist_shows_the_scheduled_steps_keys_as_columns(archive: Archive) -> None:
    steps = []
    for number in (1, 2):
        step = Dataset()
        step.Modality, step.ScheduledStationAETitle = "CT", f"CT{number}"
        steps.append(step)
    archive.answers = [(0xFF00, study("1", "A^B", ScheduledProcedureStepSequence=steps))]
    step_keys = {"Modality": "CT", "ScheduledStationAETitle": ""}
    query = {"PatientID": "", "ScheduledProcedureStepSequence": step_keys}
    result = invoke(archive, command="worklist", query=json.dumps(query))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "PatientID\tScheduledProcedureStepSequence.Modality"
        "\tScheduledProcedureStepSequence.ScheduledStationAETitle",
        "1\tCT | CT\tCT1 | CT2",
    ]
    assert "QueryRetrieveLevel" not in archive.asked[0]
    assert invoke(archive, command="worklist", query=None).exit_code == 0
    assert "ScheduledProcedureStepStartDate" in archive.asked[1].ScheduledProcedureStepSequence[0]


def test_whole_sequences_and_private_elements_are_shown_compactly(archive: Archive) -> None:
    code = Dataset()
    code.CodeValue, code.CodeMeaning = "121", "head"
    answer = study("1", "A^B", ProcedureCodeSequence=[code, code])
    block = answer.private_block(0x0029, "ACME CT", create=True)
    block.add_new(0x10, "LO", "private")
    archive.answers = [(0xFF00, answer)]
    result = invoke(archive, query='{"ProcedureCodeSequence": "", "0029,ACME CT,10:LO": ""}')
    assert result.stdout.splitlines()[1] == (
        "{CodeValue=121 CodeMeaning=head} | {CodeValue=121 CodeMeaning=head}\tprivate"
    )


def _at_a_terminal(archive: Archive, *more: str, columns: int = 100) -> str:
    """What a person sees of standard output, without colours."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "scp_server", "find", "--port", str(archive.port), "--query", *more]
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        command, stdout=follower, stderr=subprocess.PIPE, cwd=ROOT, env=environment, close_fds=True
    )
    os.close(follower)
    seen = b""
    try:
        while chunk := os.read(leader, 65_536):
            seen += chunk
    except OSError:
        pass  # EIO: the other end is closed
    finally:
        os.close(leader)
    assert process.stderr is not None
    with process.stderr:
        errors = process.stderr.read().decode()
    assert process.wait(30) == 0, errors
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()).replace("\r", "")


def test_a_terminal_gets_a_table_that_fits_and_can_be_read(archive: Archive) -> None:
    archive.answers = [
        (
            0xFF00,
            study(
                "1",
                "DOE^JANE^^DR",
                StudyDate="20260102",
                StudyTime="101112.500",
                StudyInstanceUID="1." + "2" * 60,
            ),
        ),
        (
            0xFF00,
            study(
                "[red]2[/red]", "Yamada^Tarou=山田^太郎=やまだ^たろう", StudyDate="20260101", StudyTime="10"
            ),
        ),
    ]
    query = dict.fromkeys(("PatientName", "PatientID", "StudyDate", "StudyTime", "StudyInstanceUID"), "")
    shown = _at_a_terminal(archive, json.dumps(query))
    lines = shown.splitlines()
    assert re.split(r" {2,}", lines[0].strip()) == [
        "Patient Name",
        "Patient ID",
        "Study Date",
        "Study Time",
        "Study Instance UID",
    ]
    assert "DOE, DR JANE" in shown
    assert "2026-01-02  10:11:12.5" in shown
    assert "[red]2[/red]" in shown, "a peer's text is no markup"
    assert "Yamada, Tarou (山田" in shown
    from rich.cells import cell_len

    assert max(map(cell_len, lines)) <= 100


def test_a_long_table_keeps_its_widths_and_has_one_head(archive: Archive) -> None:
    archive.answers = [(0xFF00, study(str(number), "A^B")) for number in range(250)]
    lines = _at_a_terminal(archive, '{"PatientID": "", "PatientName": ""}').splitlines()
    assert len(lines) == 251
    assert sum("Patient" in line for line in lines) == 1
    assert {line.index("A, B") for line in lines[1:]} == {lines[0].index("Patient Name")}


def test_ctrl_c_cancels_keeps_what_came_and_is_exit_1(archive: Archive) -> None:
    archive.endless = True
    process = subprocess.Popen(
        [sys.executable, "-m", "scp_server", "find", "--port", str(archive.port), "--query", "{}", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        bufsize=0,
    )
    assert process.stdout is not None
    first = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert archive.cancelled.wait(5)
    assert len(json.loads(b"".join(first) + rest)) >= 2
    assert re.search(r"interrupted\nscp-server: \d+ matches, then cancelled\n$", errors.decode())
