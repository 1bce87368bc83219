"""`scp-server info`: the pages as they are to look, the same facts as JSON, and what is wrong with a file.

A page that changed on purpose is written anew by SCP_WRITE_PAGES=1; look at it before it is committed.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from scp_server.cli.info import describe
from scp_server.cli.info_facts import Block, Table, moment
from scp_server.cli.info_page import page
from scp_server.cli.main import app
from scp_server.testing.dataset_encoder import Element
from scp_server.testing.dicos_objects import Threat, dicos_ct, dicos_dx, dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import JAPANESE, ct_image, encapsulated_pdf, structured_report
from scp_server.views.stored_file import StoredFile

RUNNER = CliRunner()
PAGES = Path(__file__).with_name("pages")
OBJECTS: dict[str, Callable[[], EncodedObject]] = {
    "dicos-ct": dicos_ct,
    "dicos-dx": dicos_dx,
    "dicos-tdr": dicos_tdr,
    "dicos-operator": lambda: dicos_tdr(tdr_type="OPERATOR", decision="CLEAR"),
    "medical-ct": lambda: ct_image(patient=JAPANESE),
    "structured-report": structured_report,
}


@pytest.fixture
def info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the command on files with these objects, `0.dcs` and so on."""
    monkeypatch.chdir(tmp_path)

    def run(*objects: EncodedObject, options: tuple[str, ...] = ()) -> Any:
        for number, one in enumerate(objects):
            Path(f"{number}.dcs").write_bytes(one.part10())
        return RUNNER.invoke(app, ["info", *options, *(f"{number}.dcs" for number in range(len(objects)))])

    return run


def document(result: Any) -> dict[str, Any]:
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def lines(text: str) -> str:
    """Without the blanks that fill lines up."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


@pytest.mark.parametrize("name", OBJECTS)
def test_a_page_looks_as_it_did(name: str, info: Callable[..., Any]) -> None:
    result = info(OBJECTS[name]())
    assert result.exit_code == 0
    golden = PAGES / f"{name}.txt"
    if os.environ.get("SCP_WRITE_PAGES"):
        golden.write_text(lines(result.stdout), encoding="utf-8")
    assert lines(result.stdout) == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OBJECTS)
def test_a_narrow_terminal_loses_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / "one.dcs"
    path.write_bytes(OBJECTS[name]().part10())
    description = describe([StoredFile(path)])
    shown = io.StringIO()
    Console(file=shown, width=60).print(page(description, 60))
    text = "".join(shown.getvalue().split())
    rows = [part.facts for part in description.parts if isinstance(part, Block)]
    rows += [row for part in description.parts if isinstance(part, Table) for row in part.rows]
    missing = [fact for row in rows for fact in row if "".join(fact.text.split()) not in text]
    assert rows
    assert missing == []


def test_json_has_values_as_they_are_stored(info: Callable[..., Any]) -> None:
    report = document(info(dicos_tdr(), options=("--json",)))
    assert report["kind"] == "DICOS threat detection report"
    assert report["report"]["decided"] == "20261120101114.000000+0000"
    first, second = report["threats"]
    assert (first["mask_voxels"], second["mask_voxels"]) == (128, None)
    assert first["polygon"] == [[4, 4, 1], [12, 12, 3]]
    assert report["images"][0]["sop_instance_uid"] == dicos_ct().sop_instance_uid
    assert report["problems"] == []


def test_the_content_of_a_structured_report_keeps_its_depth(info: Callable[..., Any]) -> None:
    content = document(info(structured_report(depth=1, text="A nodule."), options=("--json",)))["content"]
    assert [(item["depth"], item["concept"], item["value"]) for item in content] == [
        (0, "Diagnostic imaging report", None),
        (1, "Findings", None),
        (2, "Finding", "A nodule."),
    ]


def test_the_parts_of_a_ct_are_sections_of_one_page(info: Callable[..., Any]) -> None:
    found = document(info(*two_section_ct(), options=("--json",)))
    assert [one["rows"] for one in found["sections"]] == [16, 12]
    assert found["file"]["path"] == ["0.dcs", "1.dcs"]


def test_a_document_and_a_kind_without_a_view_have_pages(info: Callable[..., Any]) -> None:
    assert "application/pdf" in info(encapsulated_pdf()).stdout
    trace = Element(0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.501.11.1")
    result = info(dicos_ct(replacing=[trace, Element(0x00080060, "CS", "ETD")]))
    assert result.stdout.startswith("DICOS ETD")
    assert "BAG0001" in result.stdout


def test_damaged_pixels_are_a_problem_below_what_can_be_read(info: Callable[..., Any]) -> None:
    one = dicos_ct()
    Path("cut.dcs").write_bytes(one.part10()[:-9])
    result = RUNNER.invoke(app, ["info", "cut.dcs"])
    assert result.exit_code == 1
    assert "BAG0001" in result.stdout
    assert "cut.dcs: the data set is damaged: data set cut at byte" in result.stdout


def test_a_mask_that_does_not_fit_is_a_problem(info: Callable[..., Any]) -> None:
    result = info(dicos_tdr(threats=[Threat(bitmap=b"\xff")]))
    assert result.exit_code == 1
    assert "unreadable" in result.stdout
    assert "(4010,1006)" in result.stdout


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_is_no_object_ends_with_1(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.dcs").write_text("nothing")
    result = RUNNER.invoke(app, ["info", *options, "text.dcs"])
    assert result.exit_code == 1
    assert "text.dcs: not a DICOM Part 10 file" in result.stderr
    if options:
        assert document(result)["exit_code"] == 1


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUNNER.invoke(app, ["info", "none.dcs"])
    assert result.exit_code == 2
    assert "none.dcs: No such file or directory" in result.stderr


def test_text_of_an_object_cannot_command_the_terminal(info: Callable[..., Any]) -> None:
    evil = [Element(0x00081010, "SH", "\x1b[2J[red]X")]
    result = info(dicos_ct(replacing=evil))
    assert "\x1b" not in result.stdout
    assert "\\x1b[2J[red]X" in result.stdout


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("20261120", "2026-11-20"),
        ("101112.000000", "10:11:12"),
        ("101112.5", "10:11:12.5"),
        ("20261120101114.000000-0500", "2026-11-20 10:11:14 -0500"),
        ("soon", "soon"),
        ("", ""),
    ],
)
def test_moments_are_written_for_people(text: str, shown: str) -> None:
    assert moment(text) == shown
