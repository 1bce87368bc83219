"""`findings list` where no server runs: what it prints, in pages, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scp_server.cli.main import app
from scp_server.index.base import DuplicatePolicy
from scp_server.objects.validation.finding import Code
from scp_server.runtime.build import build_index
from scp_server.settings import Settings
from scp_server.testing.findings_contract import judged
from scp_server.testing.index_contract import index_entry


async def _fill(data_dir: Path) -> None:
    index = build_index(Settings(data_dir=data_dir))
    await index.open()
    first, second = index_entry("1", b"a"), index_entry("1", b"b")
    await index.add(judged(first, *[Code.VM] * 60, Code.UID), DuplicatePolicy.PARTS)
    await index.add(judged(second, *[Code.VM] * 60), DuplicatePolicy.PARTS)
    await index.close()


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose index has 121 findings, read fifty at a time."""
    asyncio.run(_fill(tmp_path))
    monkeypatch.setattr("scp_server.runtime.findings_commands.FINDINGS_PAGE", 50)
    return tmp_path


def _run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["findings", "list", *arguments])
    return result.exit_code, result.output


def test_all_pages_are_printed_with_their_parts_and_counted(data_dir: Path) -> None:
    code, output = _run("--data-dir", str(data_dir))
    lines = output.splitlines()
    assert (code, len(lines), lines[-1]) == (0, 122, "121 findings")
    assert lines[60] == "1.2.840.99.3.1: error: uid: (0028,0010) Rows US: Found: uid."
    assert lines[61] == "1.2.840.99.3.1 part 2: warning: vm: (0028,0010) Rows US: Found: vm."


def test_a_document_says_whether_it_was_cut(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for most, cut in ((121, False), (120, True)):
        monkeypatch.setattr("scp_server.cli.findings.MAX_LISTED", most)
        code, output = _run("--data-dir", str(data_dir), "--json")
        document = json.loads(output)
        assert (code, len(document["findings"]), document["findings_cut"]) == (0, most, cut)
    assert _run("--data-dir", str(data_dir), "--code", "uid")[1].splitlines()[-1] == "1 finding"


@pytest.mark.parametrize(("option", "first"), [("--severity", "error"), ("--code", "missing-type-1")])
def test_what_is_no_severity_or_code_is_wrong_usage(tmp_path: Path, option: str, first: str) -> None:
    code, output = _run("--data-dir", str(tmp_path), option, "bad")
    assert code == 2
    assert f"{option} 'bad' is none of {first}" in output


def test_a_folder_without_an_index_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    code, output = _run("--data-dir", str(tmp_path / "none"))
    assert code != 0
    assert str(tmp_path / "none") in output
    assert not (tmp_path / "none").exists()
