"""`scp-server callbacks` and `scp-server replay`, with and without a server on the data folder."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scp_server.cli.main import app
from scp_server.testing.archive import Archive
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dicos_objects import dicos_tdr
from scp_server.testing.objects import Patient, ct_image

RUNNER = CliRunner()
STUDY = "1.2.3.4"
FIRST = ct_image(seed=1, study_instance_uid=STUDY, patient=Patient("DOE^JANE", "P-1"))
SECOND = ct_image(seed=2, study_instance_uid=STUDY, patient=Patient("ROE^JOHN", "P-2"))
TDR = dicos_tdr()
PLUGIN = """
from scp_server import Reject, callback

@callback("received", sop_classes=["medical"], order=2)
async def only_jane(instance):
    if instance.attribute("PatientID") != "P-1":
        raise Reject(0xC001, "not Jane")

@callback("received", order=1, on_failure="ignore")
def broken(instance):
    raise KeyError(instance.sop_instance_uid)

@callback("stored", modalities=["CT"])
def note(instance, delivery):
    with open(__file__ + ".notes", "a") as file:
        assert instance.times.receive_began_at_ns > 0
        file.write(f"{instance.read_dataset().PatientID} {delivery.idempotency_key}\\n")

@callback("stored", run_in="process", memory_bytes=512 << 20, name="in_process")
def failing(instance):
    raise OSError(instance.path.name)

@callback("received", order=3)
async def renaming(instance):
    instance.change({"PatientID": "P-1", "AccessionNumber": "A-7"}, remove=["PatientSex"])

@callback("ended")
async def over(end): ...
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The plug-in of the settings; where its notes are."""
    for name in list(os.environ):
        if name.startswith("SCP_SERVER_"):
            monkeypatch.delenv(name)
    (tmp_path / "cli_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SCP_SERVER_PLUGINS", "cli_plugin")
    yield tmp_path / "cli_plugin.py.notes"
    sys.modules.pop("cli_plugin", None)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Two CT slices of two patients in one study, and a threat report."""
    archive = Archive.at(tmp_path / "data")
    assert asyncio.run(archive.store([FIRST, SECOND, TDR])) == [0, 0, 0]
    return archive


def run(data_dir: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and error."""
    result = RUNNER.invoke(app, [*arguments, "--data-dir", str(data_dir)])
    return result.exit_code, result.stdout, result.stderr


def outcomes(data_dir: Path, *arguments: str, code: int = 0) -> dict[str, tuple[str, str]]:
    """What `replay` says of each instance."""
    found, output, complaints = run(data_dir, "replay", *arguments, "--json")
    assert found == code, complaints
    document = json.loads(output.splitlines()[-1])
    assert sum(document["counts"].values()) == len(document["objects"])
    return {
        each["sop_instance_uid"]: (each["outcome"], "; ".join(each["detail"])) for each in document["objects"]
    }


def test_callbacks_are_listed_in_the_order_of_their_calls_with_what_holds_for_them(tmp_path: Path) -> None:
    code, output, _ = run(tmp_path / "data", "callbacks")
    assert code == 0
    lines = output.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == [
        "in_process",
        "note",
        "over",
        "broken",
        "only_jane",
        "renaming",
    ]
    assert "process, at most 30 s, 1 at once; 512 MiB" in lines[0]
    assert "modalities CT" in lines[1]
    assert "received, order 1; cli_plugin:broken (plugins: cli_plugin); thread" in lines[3]
    assert "on failure ignore" in lines[3]
    assert lines[-1] == "6 callbacks in the settings; no server runs"


def test_the_running_server_says_which_of_them_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    path = os.pathsep.join((str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])))
    with DaemonProcess(data_dir, environment={"PYTHONPATH": path, "SCP_SERVER_PLUGINS": "cli_plugin:over"}):
        _, output, _ = run(data_dir, "callbacks", "--json")
        document = json.loads(output)
        assert document["server_runs"]
        active = {each["name"]: each["active"] for each in document["callbacks"]}
        assert active == {
            "in_process": False,
            "note": False,
            "over": True,
            "broken": False,
            "only_jane": False,
            "renaming": False,
        }
        monkeypatch.setenv("SCP_SERVER_PLUGINS", "cli_plugin:note")
        _, output, _ = run(data_dir, "callbacks")
    assert "over: the running server has it, and these settings do not" in output
    assert "note: stored" in output
    assert "the running server does not have it: restart it" in output


def test_a_received_callback_says_what_it_would_refuse(archive: Archive) -> None:
    assert outcomes(archive.data_dir, "only_jane", "--all") == {
        FIRST.sop_instance_uid: ("accepted", ""),
        SECOND.sop_instance_uid: ("rejected", "0xC001 not Jane"),
    }
    assert outcomes(archive.data_dir, "only_jane", "--instance", FIRST.sop_instance_uid) == {
        FIRST.sop_instance_uid: ("accepted", "")
    }


def test_what_a_received_callback_would_change_is_shown_before_and_after(archive: Archive) -> None:
    found = outcomes(archive.data_dir, "renaming", "--study", STUDY)
    assert {outcome for outcome, _ in found.values()} == {"changed"}
    assert "PatientID: 'P-2' -> 'P-1'" in found[SECOND.sop_instance_uid][1]
    assert "PatientID" not in found[FIRST.sop_instance_uid][1]
    assert "AccessionNumber: " in found[FIRST.sop_instance_uid][1]
    assert "-> 'A-7'" in found[FIRST.sop_instance_uid][1]


def test_objects_are_chosen_by_query(archive: Archive) -> None:
    assert set(outcomes(archive.data_dir, "only_jane", "--query", '{"PatientName": "roe*"}')) == {
        SECOND.sop_instance_uid
    }
    assert outcomes(archive.data_dir, "only_jane", "--query", '{"PatientID": "P-3"}') == {}


def test_a_callback_that_fails_ends_with_1(archive: Archive) -> None:
    found = outcomes(archive.data_dir, "broken", "--all", code=1)
    assert set(found) == {FIRST.sop_instance_uid, SECOND.sop_instance_uid, TDR.sop_instance_uid}
    assert found[TDR.sop_instance_uid][0] == "failed"
    assert "KeyError" in found[TDR.sop_instance_uid][1]


def test_a_stored_callback_is_called_only_when_told_so(archive: Archive, plugin: Path) -> None:
    called = {FIRST.sop_instance_uid, SECOND.sop_instance_uid}
    dry = outcomes(archive.data_dir, "note", "--study", STUDY)
    assert dry == dict.fromkeys(called, ("would be called", ""))
    assert not plugin.exists()
    assert outcomes(archive.data_dir, "note", "--study", STUDY, "--apply") == dict.fromkeys(
        called, ("called", "")
    )
    lines = [line.split() for line in plugin.read_text().splitlines()]
    assert sorted(patient for patient, _ in lines) == ["P-1", "P-2"]
    assert all(key.startswith("replay:") and key.endswith(":callback:note") for _, key in lines)


def test_one_in_a_process_is_replayed_there(archive: Archive) -> None:
    found = outcomes(archive.data_dir, "in_process", "--instance", TDR.sop_instance_uid, "--apply", code=1)
    ((outcome, detail),) = found.values()
    assert outcome == "failed"
    assert detail.startswith("callback in_process: OSError: ")
    assert detail.endswith(".dcm")


def test_replay_works_beside_a_running_server(archive: Archive) -> None:
    with DaemonProcess(archive.data_dir, environment={"SCP_SERVER_PLUGINS": "[]"}):
        assert len(outcomes(archive.data_dir, "only_jane", "--all")) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["over", "--all"], 2, "stage ended is over"),
        (["only_jane", "--all", "--apply"], 2, "--apply is for the stage stored"),
        (["nobody", "--all"], 2, "there is no callback nobody"),
        (["note"], 2, "give one of --study, --series, --instance, --query and --all"),
        (["note", "--all", "--study", "1.2"], 2, "give one of"),
        (["note", "--study", "x"], 2, "--study: x is no UID"),
        (["note", "--query", "{"], 2, "no JSON"),
        (["note", "--study", "1.2.9"], 1, "nothing is stored there"),
    ],
)
def test_wrong_usage_is_told(archive: Archive, arguments: list[str], code: int, words: str) -> None:
    found, _, complaints = run(archive.data_dir, "replay", *arguments)
    assert found == code
    assert words in complaints


def test_a_folder_without_an_index_is_not_made_one(tmp_path: Path) -> None:
    code, _, complaints = run(tmp_path / "mistyped", "replay", "note", "--all")
    assert code == 1
    assert "there is no index" in complaints
    assert not (tmp_path / "mistyped").exists()
