"""docs/extending.md, followed to the letter: its files are written, its commands run, its plug-in called."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scp_server.pipeline.stages import Stage
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.objects import Patient, ct_image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w.-]+)`\n```(?:python|toml)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


class Follower:
    """Somebody who does what the page says, in a folder and with packages of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bag-rules"
        self.packages = folder / "packages"
        self.data_dir = folder / "data"
        self.notes = folder / "notes"
        self.folder.mkdir()
        for name, text in FILES.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        self.environment = {
            "PYTHONPATH": os.pathsep.join((str(self.packages), str(ROOT))),
            "SCP_SERVER_DATA_DIR": str(self.data_dir),
            "BAG_NOTES": str(self.notes),
        }

    def run(self, command: list[str]) -> str:
        """One command of the page; returns what it says. Raises where it fails."""
        program, *arguments = command
        if arguments[:3] == ["-m", "pip", "install"]:
            # Into a folder of the test's, and without an index: what it needs is there.
            arguments[3:3] = ["--no-deps", "--no-index", "--quiet", "--target", str(self.packages)]
        done = subprocess.run(
            [sys.executable, *(["-m", "scp_server"] if program == "scp-server" else []), *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def send(self, daemon: DaemonProcess, patient_id: str, seed: int) -> str:
        """An object of LANE7; returns the status."""
        file = self.folder / f"{seed}.dcm"
        file.write_bytes(ct_image(patient=Patient("DOE^JANE", patient_id), seed=seed).part10())
        sent = subprocess.run(
            [
                *(sys.executable, "-m", "scp_server", "store", "--port", str(daemon.ready.dicom_port)),
                *("--calling-ae-title", "LANE7", "--json", "--input", str(file)),
            ],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return sent.stdout


def test_the_page_builds_a_plug_in_that_works(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    (*before, listing, serving) = (each for each in COMMANDS if "replay" not in each)
    for command in before:
        follower.run(command)
    listed = follower.run(listing)
    assert re.findall(r"^(\w+): (\w+),", listed, re.MULTILINE) == [
        ("count_bytes", "ended"),
        ("needs_a_patient_id", "received"),
        ("note", "stored"),
    ]
    assert "entry point bag-rules" in listed
    assert "at most 5 s" in listed
    options = serving[serving.index("--config") + 1 :]
    config = str(follower.folder / options[0])
    with DaemonProcess(follower.data_dir, "--config", config, environment=follower.environment) as daemon:
        assert "0x0000" in follower.send(daemon, "P-7", seed=1)
        refused = follower.send(daemon, "", seed=2)
        assert "0xC001" in refused
        assert "no Patient ID" in refused
        assert "3 callbacks in the settings; the running server has 3" in follower.run(listing)
        asked, applied = (follower.run(each) for each in COMMANDS if "replay" in each)
    assert "1 parts looked at: 1 accepted (nothing was done)" in asked
    assert "1 parts looked at: 1 called" in applied
    noted = [json.loads(line) for line in follower.notes.read_text().splitlines()]
    assert {each["uid"] for each in noted} == {ct_image(seed=1).sop_instance_uid}
    told = [line for line in daemon.output if line.startswith("LANE7 released after ")]
    assert len(told) == 2
    rejected = [line for line in daemon.output if '"callback.rejected"' in line]
    assert len(rejected) == 1


def test_the_files_of_the_page_are_all_there() -> None:
    assert set(FILES) == {"bag_rules.py", "test_bag_rules.py", "pyproject.toml", "scp-server.toml"}


@pytest.mark.parametrize("stage", Stage)
def test_every_stage_is_on_the_page(stage: Stage) -> None:
    table = PAGE.partition("## When they are called")[2].partition("\n- ")[0]
    assert re.search(rf"^\| .*`{stage.value}`.* \|", table, re.MULTILINE)


def test_a_plug_in_that_cannot_be_imported_keeps_the_server_from_starting(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scp_server", "serve", "--port", "0", "--http-port", "0"],
        env={
            **os.environ,
            "SCP_SERVER_DATA_DIR": str(tmp_path / "data"),
            "SCP_SERVER_PLUGINS": "no_such_plugin",
            "SCP_SERVER_LOG__FORMAT": "json",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    line = json.loads(done.stderr.splitlines()[-1])
    assert line["event"] == "server.not_started"
    assert "plugins: no_such_plugin: no_such_plugin cannot be loaded: ModuleNotFoundError" in line["error"]
