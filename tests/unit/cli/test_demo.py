"""`scp-server demo` from outside: what it shows, how it ends, and that nothing of it stays."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scp_server.cli import demo
from scp_server.cli.output import ExitCode

COMMAND = [sys.executable, "-m", "scp_server.cli.main", "demo"]
WAIT_SECONDS = 60.0


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(scratch: Path) -> dict[str, str]:
    """Without settings of this process, and with temporary folders in `scratch`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SCP_SERVER_")}
    return {**kept, "TMPDIR": str(scratch)}


def _demo(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False, env=environment
    )


def test_once_finds_everything_again_and_leaves_nothing_behind(
    environment: dict[str, str], scratch: Path, tmp_path: Path
) -> None:
    ended = _demo(environment, "--once", "--pictures", str(tmp_path / "pictures"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    shown = ended.stdout
    assert shown.startswith("Sent 12 objects to 127.0.0.1 port ")
    assert "; asked by C-FIND, it has:\n" in shown
    assert shown.count(" bytes, as sent\n") == 12
    assert shown.rstrip().endswith("Everything that was sent is there, byte for byte.")
    outline = [re.sub(r"\d+$", "", line) for line in shown.splitlines() if re.match(r"(  ){0,2}[A-Z]", line)]
    assert outline[1:8] == [
        "Patient PAT-0001 Doe^Jane",
        "  Study 20261120 A study",
        "    Series CT",
        "Object of inspection BAG",
        "  Scan 20261120 SCAN-",
        "    Series XRAY",
        "    Series CT",
    ]
    assert "Instance 1: ALARM, 2 threats" in shown
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert len(pictures) == 11
    assert pictures[8:] == ["09-xray.png", "10-ct.png", "11-ct.png"]
    assert list(scratch.iterdir()) == []


def test_for_machines_it_is_one_document(environment: dict[str, str], scratch: Path) -> None:
    ended = _demo(environment, "--once", "--json")
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert (document["sent"], document["complete"]) == (12, True)
    sections = [one for one in document["found"] if one["sop_class_uid"].endswith(".501.1")]
    assert [one["part"] for one in sections] == [1, 2]
    assert len({one["sop_instance_uid"] for one in sections}) == 1
    assert [one["alarm_decision"] for one in document["found"]][-1] == "ALARM"
    assert all(one["as_sent"] for one in document["found"])
    assert list(scratch.iterdir()) == []


def test_it_runs_where_few_files_may_be_open(environment: dict[str, str]) -> None:
    limited = ["bash", "-c", 'ulimit -n 512 && exec "$@"', "bash", *COMMAND, "--once", "--json"]
    ended = subprocess.run(
        limited, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False, env=environment
    )
    assert ended.returncode == 0, ended.stderr


def test_pictures_that_cannot_be_written_are_exit_2(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    ended = _demo(environment, "--once", "--pictures", str(tmp_path / "taken"))
    assert ended.returncode == 2
    assert "--pictures: cannot write to" in ended.stderr


class Staying:
    """A demo that stays up, and its lines as they come."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name="demo output")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.lines.put(line)

    def wait_for(self, text: str) -> str:
        """The first line with `text`."""
        while text not in (line := self.lines.get(timeout=WAIT_SECONDS)):
            pass
        return line

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_SECONDS)
        self._reader.join(WAIT_SECONDS)


@pytest.fixture
def staying(environment: dict[str, str]) -> Iterator[Staying]:
    running = Staying(environment)
    yield running
    running.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_it_stays_up_takes_objects_and_ends_at_a_signal(
    staying: Staying, scratch: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    next_step = staying.wait_for("The server stays up")
    port = re.search(r"--port (\d+)", next_step)
    assert port is not None
    assert "/readyz" in staying.wait_for("Ready?")
    staying.wait_for("Ctrl-C ends it")
    echo = [sys.executable, "-m", "scp_server.cli.main", "echo", "--port", port[1]]
    asked = subprocess.run(echo, capture_output=True, timeout=WAIT_SECONDS, check=False, env=environment)
    assert asked.returncode == 0
    assert len(list(scratch.iterdir())) == 1
    staying.process.send_signal(number)
    assert staying.process.wait(WAIT_SECONDS) == 0
    assert list(scratch.iterdir()) == []


def _run(monkeypatch: pytest.MonkeyPatch, scratch: Path, *, once: bool) -> ExitCode:
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(demo, "configure_logging", lambda *_arguments: None)
    return demo.run_demo(once=once, pictures=None, as_json=False)


@pytest.mark.parametrize("once", [True, False])
def test_what_is_not_found_again_is_exit_1(
    monkeypatch: pytest.MonkeyPatch, scratch: Path, capsys: pytest.CaptureFixture[str], once: bool
) -> None:
    find = demo._find

    async def lose_one(*arguments: Any) -> list[demo.FoundPart]:
        return (await find(*arguments))[1:]

    monkeypatch.setattr(demo, "_find", lose_one)
    assert _run(monkeypatch, scratch, once=once) == ExitCode.FAILED
    assert "1 objects are missing" in capsys.readouterr().out


def test_what_is_not_as_it_was_sent_is_exit_1(
    monkeypatch: pytest.MonkeyPatch, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    find = demo._find

    async def other_bytes(server: Any, sent: Any) -> list[demo.FoundPart]:
        return await find(server, [dataclasses.replace(sent[0], dataset=b"other"), *sent[1:]])

    monkeypatch.setattr(demo, "_find", other_bytes)
    assert _run(monkeypatch, scratch, once=True) == ExitCode.FAILED
    assert "NOT AS SENT" in capsys.readouterr().out
