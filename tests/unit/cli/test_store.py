from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from typer.testing import CliRunner, Result

from scp_server.cli.main import app
from scp_server.cli.peer import Peer
from scp_server.cli.store_plan import make_plan
from scp_server.errors import AssociationLost, AssociationRejected, ConnectFailed, LocalProtocolError
from scp_server.interfaces import AcceptedContext
from scp_server.net.requestor import StoreResult

RUNNER = CliRunner()


class ScriptedArchive:
    """Stands in for associations: answers by SOP Instance UID, and remembers what it was sent."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.refused: set[str] = set()
        self.connects: list[Exception | None] = []
        self.proposed: list[Sequence[tuple[str, Sequence[str]]]] = []
        self.received: list[tuple[str, bytes]] = []

    def requestor(self, _peer: Peer, contexts: Sequence[tuple[str, Sequence[str]]]) -> ScriptedAssociation:
        self.proposed.append(contexts)
        return ScriptedAssociation(self, self.connects.pop(0) if self.connects else None)


class ScriptedAssociation:
    def __init__(self, archive: ScriptedArchive, failure: Exception | None) -> None:
        self._archive = archive
        self._failure = failure

    async def __aenter__(self) -> Self:
        if self._failure is not None:
            raise self._failure
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def accepted_context(self, sop_class: str, transfer_syntax: str) -> AcceptedContext | None:
        if sop_class in self._archive.refused:
            return None
        return AcceptedContext(1, sop_class, transfer_syntax)

    async def store(
        self, _sop_class: str, instance: str, _syntax: str, dataset: AsyncIterator[bytes], *, progress: Any
    ) -> StoreResult:
        data = b""
        async for chunk in dataset:
            progress(len(chunk))
            data += chunk
        answer = self._archive.answers.get(instance, StoreResult(0))
        if isinstance(answer, Exception):
            raise answer
        self._archive.received.append((instance, data))
        assert isinstance(answer, StoreResult)
        return answer


def _requestor_of(archive: ScriptedArchive) -> Any:
    def requestor(peer: Peer, contexts: Sequence[tuple[str, Sequence[str]]]) -> ScriptedAssociation:
        return archive.requestor(peer, contexts)

    return requestor


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> ScriptedArchive:
    scripted = ScriptedArchive()
    monkeypatch.setattr(Peer, "requestor", _requestor_of(scripted))
    return scripted


def send(*inputs: Path, as_json: bool = True) -> tuple[Result, dict[str, Any]]:
    arguments = ["store", *(part for path in inputs for part in ("--input", str(path)))]
    result = RUNNER.invoke(app, arguments + (["--json"] if as_json else []))
    return result, json.loads(result.stdout) if as_json else {}


def outcomes(document: dict[str, Any]) -> dict[str, str]:
    return {Path(file["file"]).name: file["outcome"] for file in document["files"]}


def files(folder: Path, part10: Any, count: int) -> Path:
    for number in range(count):
        (folder / f"{number:03}.dcm").write_bytes(
            part10(b"data" + bytes([number]) * 4, instance=f"1.2.{number}")
        )
    return folder


def test_all_stored_is_exit_0_with_data_sets_as_they_lie(
    archive: ScriptedArchive, study: Path, part10: Any
) -> None:
    (study / "big.dcm").write_bytes(part10(bytes(range(256)) * 3_000, instance="1.9"))
    result, document = send(study)
    assert result.exit_code == 0
    assert outcomes(document) == {
        "b.dcm": "stored",
        "a.dcm": "stored",
        "big.dcm": "stored",
        "readme.txt": "skipped",
        "empty": "skipped",
    }
    assert dict(archive.received)["1.9"] == bytes(range(256)) * 3_000
    assert document["summary"]["stored"] == 3
    assert document["summary"]["bytes"] == sum(len(data) for _, data in archive.received)


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        (0xA700, "failed", "out of resources"),
        (0xA9FF, "failed", "data set does not match SOP class"),
        (0xC111, "failed", "cannot understand"),
        (0xB000, "warning", "warning: coercion of data elements"),
        (0x0122, "failed", "SOP class not supported"),
        (0x1234, "failed", "failure"),
    ],
)
def test_any_other_status_is_exit_1_with_status_meaning_and_comment(
    archive: ScriptedArchive, tmp_path: Path, part10: Any, status: int, outcome: str, reason: str
) -> None:
    archive.answers["1.2.0"] = StoreResult(status, "because\n\x1b[2J")
    result, document = send(files(tmp_path, part10, 2))
    assert result.exit_code == 1
    first, second = document["files"]
    assert (first["outcome"], first["status"], first["reason"]) == (outcome, f"0x{status:04X}", reason)
    assert first["error_comment"] == "because\\x0a\\x1b[2J"
    assert second["outcome"] == "stored"
    text, _ = send(tmp_path, as_json=False)
    assert "\x1b" not in text.stdout
    assert f"{outcome}: 0x{status:04X}" in text.stdout
    assert "2 files: 1 stored" in text.stdout


def test_refused_context_concerns_only_its_files(
    archive: ScriptedArchive, tmp_path: Path, part10: Any
) -> None:
    files(tmp_path, part10, 1)
    (tmp_path / "mr.dcm").write_bytes(part10(sop_class="1.2.840.10008.5.1.4.1.1.4", instance="1.5"))
    archive.refused.add("1.2.840.10008.5.1.4.1.1.4")
    result, document = send(tmp_path)
    assert result.exit_code == 1
    assert outcomes(document) == {"000.dcm": "stored", "mr.dcm": "refused"}
    assert "presentation context 1.2.840.10008.5.1.4.1.1.4" in document["files"][1]["reason"]


def test_association_that_dies_once_costs_one_file(
    archive: ScriptedArchive, tmp_path: Path, part10: Any
) -> None:
    archive.answers["1.2.1"] = AssociationLost("the connection ended")
    result, document = send(files(tmp_path, part10, 4))
    assert result.exit_code == 1
    assert list(outcomes(document).values()) == ["stored", "failed", "stored", "stored"]
    assert len(archive.proposed) == 2


def test_association_that_dies_twice_leaves_the_rest_not_sent(
    archive: ScriptedArchive, tmp_path: Path, part10: Any
) -> None:
    archive.answers["1.2.0"] = AssociationLost("the connection ended")
    archive.answers["1.2.1"] = LocalProtocolError("cannot be sent")
    result, document = send(files(tmp_path, part10, 4))
    assert result.exit_code == 1
    assert list(outcomes(document).values()) == ["failed", "failed", "not_sent", "not_sent"]
    assert document["files"][3]["reason"] == "cannot be sent"
    assert len(archive.proposed) == 2


@pytest.mark.parametrize(
    "failure", [ConnectFailed("nobody there"), AssociationRejected(1, 1, 7)], ids=["connect", "reject"]
)
def test_no_association_at_all_is_exit_3_and_every_file_is_listed(
    archive: ScriptedArchive, tmp_path: Path, part10: Any, failure: Exception
) -> None:
    archive.connects = [failure]
    result, document = send(files(tmp_path, part10, 3))
    assert result.exit_code == 3
    assert list(outcomes(document).values()) == ["not_sent"] * 3
    assert document["files"][0]["reason"] == str(failure)
    assert len(archive.proposed) == 1


def test_more_than_128_contexts_take_further_associations(
    archive: ScriptedArchive, tmp_path: Path, part10: Any
) -> None:
    for number in range(130):
        (tmp_path / f"{number:03}").write_bytes(part10(sop_class=f"1.2.{number}", instance=f"1.3.{number}"))
    result, _ = send(tmp_path)
    assert result.exit_code == 0
    assert [len(contexts) for contexts in archive.proposed] == [128, 2]
    assert all(len(syntaxes) == 1 for contexts in archive.proposed for _, syntaxes in contexts)
    assert len(archive.received) == 130


def test_file_that_shrinks_after_it_was_planned_fails_alone(
    archive: ScriptedArchive, tmp_path: Path, part10: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import scp_server.cli.store as store

    files(tmp_path, part10, 3)

    def plan_then_shrink(inputs: Sequence[Path]) -> Any:
        plan = make_plan(inputs)
        path = tmp_path / "001.dcm"
        path.write_bytes(path.read_bytes()[:-2])
        return plan

    monkeypatch.setattr(store, "make_plan", plan_then_shrink)
    result, document = send(tmp_path)
    assert result.exit_code == 1
    assert list(outcomes(document).values()) == ["stored", "failed", "stored"]
    assert "became shorter" in document["files"][1]["reason"]
    assert [instance for instance, _ in archive.received] == ["1.2.0", "1.2.2"]


def test_interruption_lists_what_was_not_sent_and_is_exit_1(
    archive: ScriptedArchive, tmp_path: Path, part10: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(*_arguments: Any, **_keywords: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ScriptedAssociation, "store", interrupted)
    result, document = send(files(tmp_path, part10, 2))
    assert result.exit_code == 1
    assert [file["reason"] for file in document["files"]] == ["interrupted", "interrupted"]


def test_nothing_to_send_is_not_success(archive: ScriptedArchive, tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    result, _ = send(tmp_path)
    assert result.exit_code == 1
    assert archive.proposed == []


def test_input_that_does_not_exist_is_wrong_usage(archive: ScriptedArchive, tmp_path: Path) -> None:
    assert RUNNER.invoke(app, ["store", "--input", str(tmp_path / "none")]).exit_code == 2
    assert RUNNER.invoke(app, ["store"]).exit_code == 2


def test_of_several_associations_one_that_dies_costs_one_file(
    archive: ScriptedArchive, tmp_path: Path, part10: Any
) -> None:
    archive.answers["1.2.1"] = AssociationLost("the connection ended")
    folder = files(tmp_path, part10, 9)
    result = RUNNER.invoke(app, ["store", "--input", str(folder), "--max-associations", "3", "--json"])
    assert result.exit_code == 1
    found = outcomes(json.loads(result.stdout))
    assert found.pop("001.dcm") == "failed"
    assert list(found.values()) == ["stored"] * 8
    assert sorted(instance for instance, _ in archive.received) == [f"1.2.{n}" for n in (0, *range(2, 9))]


def test_of_several_associations_one_that_is_refused_costs_nothing(
    archive: ScriptedArchive, tmp_path: Path, part10: Any
) -> None:
    archive.connects = [None, AssociationRejected(2, 3, 2)]
    folder = files(tmp_path, part10, 4)
    result = RUNNER.invoke(app, ["store", "--input", str(folder), "--max-associations", "2", "--json"])
    assert result.exit_code == 0
    assert list(outcomes(json.loads(result.stdout)).values()) == ["stored"] * 4


def test_a_journal_that_cannot_be_written_is_said_and_nothing_is_lost(
    archive: ScriptedArchive, tmp_path: Path, part10: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scp_server.cli.store_journal import StoreJournal

    def full(_journal: StoreJournal, _candidate: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StoreJournal, "acknowledged", full)
    folder = tmp_path / "out"
    folder.mkdir()
    files(folder, part10, 3)
    arguments = ["store", "--input", str(folder), "--resume", str(tmp_path / "journal"), "--json"]
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 1
    assert list(outcomes(json.loads(result.stdout)).values()) == ["stored"] * 3
    assert result.stderr.count("the journal cannot be written") == 1
