"""What the process needs of its host: the lock of the data folder and enough descriptors."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scp_server.errors import ConfigurationError
from scp_server.runtime.process import DataFolderLock, open_files_needed, raise_descriptor_limit
from scp_server.settings.limits import LimitsSettings

HOLDER = """
import pathlib, sys, time
from scp_server.runtime.process import DataFolderLock
DataFolderLock(pathlib.Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_the_lock_makes_the_folder_and_names_its_process(tmp_path: Path) -> None:
    lock = DataFolderLock(tmp_path / "a" / "b")
    lock.acquire()
    assert (tmp_path / "a" / "b" / "lock").read_text() == f"{os.getpid()}\n"
    lock.release()


def test_a_second_holder_is_refused_with_the_first_ones_process_id(tmp_path: Path) -> None:
    first, second = DataFolderLock(tmp_path), DataFolderLock(tmp_path)
    first.acquire()
    with pytest.raises(ConfigurationError, match=f"in use by the process with id {os.getpid()}$"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_releasing_twice_or_without_holding_does_nothing(tmp_path: Path) -> None:
    lock = DataFolderLock(tmp_path)
    lock.release()
    lock.acquire()
    lock.release()
    lock.release()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigurationError, match=f"id {holder.pid}$"):
            DataFolderLock(tmp_path).acquire()
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    lock = DataFolderLock(tmp_path)
    lock.acquire()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    lock.release()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=rf"^data_dir: cannot use {tmp_path}/file/data: "):
        DataFolderLock(tmp_path / "file" / "data").acquire()


@pytest.mark.parametrize("call", ["flock", "pwrite"])
def test_a_filesystem_that_cannot_lock_is_not_taken_for_another_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_arguments: object) -> int:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(fcntl if call == "flock" else os, call, fail)
        with pytest.raises(ConfigurationError, match=r"cannot lock .*No locks available"):
            DataFolderLock(tmp_path).acquire()
    assert len(os.listdir("/proc/self/fd")) == before
    lock = DataFolderLock(tmp_path)
    lock.acquire()
    lock.release()


def test_a_longer_process_id_of_the_last_holder_is_overwritten_whole(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("99999999999999\n")
    lock = DataFolderLock(tmp_path)
    lock.acquire()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    lock.release()


class _Limits:
    """Stands for this process's limits of open files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.soft, self.hard = soft, hard
        self.error: Exception | None = None
        monkeypatch.setattr(resource, "getrlimit", lambda _which: (self.soft, self.hard))
        monkeypatch.setattr(resource, "setrlimit", self._set)

    def _set(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        if self.error is not None:
            raise self.error
        self.soft, self.hard = limits


@pytest.mark.parametrize("hard", [6_352, 1_000_000, resource.RLIM_INFINITY])
def test_the_soft_limit_is_raised_until_connections_and_objects_fit(
    monkeypatch: pytest.MonkeyPatch, hard: int
) -> None:
    limits = _Limits(monkeypatch, 1_024, hard)
    assert raise_descriptor_limit(4_096, 2_000) == 6_352
    assert (limits.soft, limits.hard) == (6_352, hard)


@pytest.mark.parametrize("soft", [6_352, 100_000, resource.RLIM_INFINITY])
def test_a_soft_limit_that_is_high_enough_stays(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    limits = _Limits(monkeypatch, soft, resource.RLIM_INFINITY)
    limits.error = AssertionError("not to be called")
    assert raise_descriptor_limit(4_096, 2_000) == soft


def test_a_hard_limit_that_is_too_low_is_a_configuration_error_with_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _Limits(monkeypatch, 1_024, 6_351)
    with pytest.raises(
        ConfigurationError, match=r"^limits.max_connections: 4096 .* 2000 .* 6352 .* 6351; raise it to 6352 "
    ):
        raise_descriptor_limit(4_096, 2_000)


@pytest.mark.parametrize("hard", [259, 512, 1_024, 4_096, 6_351])
@pytest.mark.parametrize("max_associations", [1, 10, 2_000])
def test_the_caps_that_the_error_names_fit_and_are_valid_settings(
    monkeypatch: pytest.MonkeyPatch, hard: int, max_associations: int
) -> None:
    _Limits(monkeypatch, 100, hard)
    with pytest.raises(ConfigurationError) as refused:
        raise_descriptor_limit(6_500, max_associations)
    named = dict(re.findall(r"SCP_SERVER_(LIMITS__\w+)=(\d+)", str(refused.value)))
    associations, connections = (
        int(named[f"LIMITS__{name}"]) for name in ("MAX_ASSOCIATIONS", "MAX_CONNECTIONS")
    )
    assert f"limits.max_associations = {associations} and limits.max_connections = {connections} " in str(
        refused.value
    )
    assert associations <= max_associations
    assert open_files_needed(connections, associations) == hard
    LimitsSettings(max_associations=associations, max_connections=connections)
    assert raise_descriptor_limit(connections, associations) == hard


def test_where_no_caps_fit_only_a_higher_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _Limits(monkeypatch, 100, 258)
    with pytest.raises(ConfigurationError, match=r"raise it to 6352 [^;]*\)$"):
        raise_descriptor_limit(4_096, 2_000)


@pytest.mark.parametrize("error", [ValueError("not allowed"), OSError(errno.EPERM, "not permitted")])
def test_a_system_that_refuses_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    _Limits(monkeypatch, 1_024, 1_000_000).error = error
    with pytest.raises(ConfigurationError, match=r"^limits.max_connections: .*not "):
        raise_descriptor_limit(4_096, 2_000)


def test_whoever_inherits_the_lock_holds_the_folder_and_its_end_is_waited_for(tmp_path: Path) -> None:
    """As the workers of a server that was killed do, until the kernel has ended them."""
    lock = DataFolderLock(tmp_path)
    lock.acquire()
    heir = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock.descriptor]
    )
    with subprocess.Popen(["true"]) as gone:
        pass
    (tmp_path / "lock").write_text(f"{gone.pid}\n")
    lock.release()
    with heir:
        assert heir.stdin is not None
        threading.Timer(0.2, heir.stdin.close).start()
        lock.acquire()
        lock.release()
    with pytest.raises(RuntimeError):
        assert lock.descriptor
