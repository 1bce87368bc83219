"""Processes of our own are ended without taking their exit code from the event loop."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from scp_server.child_processes import kill_process


async def test_a_killed_process_is_left_to_the_event_loop_to_be_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=subprocess.PIPE)

    def poll(self: subprocess.Popen[bytes]) -> None:
        pytest.fail("somebody asked whether it has ended")

    monkeypatch.setattr(subprocess.Popen, "poll", poll)
    kill_process(process)
    assert await process.wait() == -signal.SIGKILL
    kill_process(process)
