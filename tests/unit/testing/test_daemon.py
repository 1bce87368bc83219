"""Starting, ending and reading after a daemon process, shown with stand-ins for the daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scp_server.testing.daemon import (
    DaemonFailed,
    DaemonProcess,
    expect_stored,
    read_stored_file,
    stored_files,
)
from scp_server.testing.dicos_objects import dicos_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image

READY = json.dumps(
    {
        "event": "server.ready",
        "dicom_host": "127.0.0.1",
        "dicom_port": 4242,
        "http_host": "127.0.0.1",
        "http_port": 4243,
        "pid": 7,
    }
)


class StandIn(DaemonProcess):
    """The same, running a Python program instead of the daemon."""

    def __init__(self, data_dir: Path, program: str) -> None:
        super().__init__(data_dir)
        self._command = [sys.executable, "-c", program]


def test_ready_line_gives_the_addresses_and_sigterm_ends_with_0(tmp_path: Path) -> None:
    program = f"""
import signal, sys
print("starting")
signal.signal(signal.SIGTERM, lambda *_: (print('{{"event": "server.stopped"}}', flush=True), sys.exit(0)))
print({READY!r}, file=sys.stderr, flush=True)
signal.pause()
"""
    with StandIn(tmp_path, program) as daemon:
        assert (daemon.ready.dicom_port, daemon.ready.http_port, daemon.ready.pid) == (4242, 4243, 7)
    assert [record["event"] for record in daemon.log_records()] == ["server.ready", "server.stopped"]
    assert len(daemon.log_records("server.stopped")) == 1
    assert "starting" in daemon.output


def test_an_end_before_ready_is_a_failure_with_its_output(tmp_path: Path) -> None:
    daemon = StandIn(tmp_path, "print('no such folder'); raise SystemExit(2)")
    with pytest.raises(DaemonFailed, match="no such folder"):
        daemon.start()


def test_an_exit_code_other_than_0_is_a_failure(tmp_path: Path) -> None:
    program = f"""
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print({READY!r}, flush=True)
signal.pause()
"""
    daemon = StandIn(tmp_path, program)
    daemon.start()
    with pytest.raises(DaemonFailed, match="exit code 3"):
        daemon.terminate()


def test_it_can_be_killed_and_started_again(tmp_path: Path) -> None:
    program = f"import signal\nprint({READY!r}, flush=True)\nsignal.pause()"
    daemon = StandIn(tmp_path, program)
    daemon.start()
    daemon.kill()
    assert daemon.process.returncode == -9
    daemon.start()
    assert daemon.ready.dicom_port == 4242
    daemon.kill()


def test_killed_it_takes_its_children_along(tmp_path: Path) -> None:
    program = f"""
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; print('child', flush=True); signal.pause()"])
print({READY!r}, flush=True)
signal.pause()
"""
    daemon = StandIn(tmp_path, program)
    daemon.start()
    daemon.kill()
    # Its output ends once nobody holds it open any more.
    assert daemon.output_has_ended


def test_what_a_test_leaves_running_ends_with_the_tests(tmp_path: Path) -> None:
    stand_in = f"import signal; print({READY!r}, flush=True); signal.pause()"
    program = f"""
import sys
from pathlib import Path
from scp_server.testing.daemon import DaemonProcess
daemon = DaemonProcess(Path({str(tmp_path)!r}))
daemon._command = [sys.executable, "-c", {stand_in!r}]
daemon.start()
print(daemon.process.pid)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not Path(f"/proc/{int(ended.stdout)}").exists()


@pytest.mark.parametrize("encoded", [ct_image(), dicos_ct()], ids=["ct", "dicos-ct"])
def test_stored_file_gives_back_meta_and_data_set(encoded: EncodedObject, tmp_path: Path) -> None:
    folder = tmp_path / "objects" / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "x.dcm").write_bytes(encoded.part10())
    (found,) = stored_files(tmp_path)
    assert found.dataset == encoded.dataset
    assert found.sop_instance_uid == encoded.sop_instance_uid
    assert found.transfer_syntax_uid == encoded.transfer_syntax_uid
    assert found.dicos_version == encoded.dicos_version


def test_a_file_that_is_no_part10_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(bytes(200))
    with pytest.raises(ValueError, match="preamble"):
        read_stored_file(tmp_path / "x.dcm")


def test_expect_stored_notices_a_missing_a_changed_and_a_surplus_object(tmp_path: Path) -> None:
    first, second = ct_image(seed=1), ct_image(seed=2)
    folder = tmp_path / "objects"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(first.part10())
    expect_stored(tmp_path, [first, first])
    with pytest.raises(AssertionError, match="sent 2, kept 1"):
        expect_stored(tmp_path, [first, second])
    with pytest.raises(AssertionError, match="sent 0, kept 1"):
        expect_stored(tmp_path, [])
    (folder / "1.dcm").write_bytes(first.part10()[:-1] + b"!")
    with pytest.raises(AssertionError, match="not kept as sent"):
        expect_stored(tmp_path, [first])
    (folder / "1.dcm").write_bytes(first.part10())
    (folder / "2.dcm").write_bytes(first.part10())
    with pytest.raises(AssertionError, match="sent 1, kept 2"):
        expect_stored(tmp_path, [first])
