"""The daemon as a process, a recording proxy before it, and a way to run real peers against both."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from scp_server.testing.daemon import DaemonProcess, expect_stored
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.recording_proxy import RecordingProxy, SentObject

PEER_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Lane:
    """A daemon and the proxy that peers connect to instead."""

    daemon: DaemonProcess
    proxy: RecordingProxy

    @property
    def port(self) -> int:
        return self.proxy.port

    async def expect_kept_as_sent(self, count: int) -> list[SentObject]:
        """Every response was 0x0000, `count` objects were sent, and they lie on disk as they were sent."""
        await self.proxy.drained()
        statuses = [status for recording in self.proxy.recordings for status in recording.statuses()]
        sent = self.proxy.stores()
        assert len(sent) == count
        assert len(statuses) >= count
        assert set(statuses) == {0x0000}, [f"{status:04X}" for status in statuses]
        expect_stored(self.daemon.data_dir, sent)
        return sent


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """Start the daemon with options and environment; it must end with exit code 0 at the end of the test."""
    with ExitStack() as stack:

        def start(*options: str, environment: Mapping[str, str] | None = None) -> DaemonProcess:
            daemon = DaemonProcess(tmp_path / "data", *options, environment=environment)
            return stack.enter_context(daemon)

        yield start


@pytest.fixture
def environment() -> Mapping[str, str]:
    """What is added to the daemon's environment; tests override it by parametrizing."""
    return {}


@pytest.fixture
async def lane(
    start_daemon: Callable[..., DaemonProcess], environment: Mapping[str, str]
) -> AsyncIterator[Lane]:
    """A running daemon behind a recording proxy."""
    daemon = await asyncio.to_thread(start_daemon, environment=environment)
    async with RecordingProxy(daemon.ready.dicom_host, daemon.ready.dicom_port) as proxy:
        yield Lane(daemon, proxy)


@pytest.fixture
def run_peer() -> Callable[..., Awaitable[str]]:
    """Run a real peer's program; its output, once it has ended with exit code 0."""

    async def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "TZ": "UTC", **(environment or {})},
        )
        try:
            async with asyncio.timeout(PEER_SECONDS):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = output.decode(errors="replace")
        assert process.returncode == 0, f"{command}: exit code {process.returncode}\n{text}"
        return text

    return run


@pytest.fixture
def write_files(tmp_path: Path) -> Callable[..., list[Path]]:
    """Write objects as Part 10 files; their paths, in order."""

    def write(*objects: EncodedObject, folder: str = "out", suffix: str = ".dcm") -> list[Path]:
        target = tmp_path / folder
        target.mkdir(parents=True, exist_ok=True)
        paths = [target / f"{number:03d}{suffix}" for number in range(len(objects))]
        for path, one in zip(paths, objects, strict=True):
            path.write_bytes(one.part10())
        return paths

    return write
