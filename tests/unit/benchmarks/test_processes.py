"""What a process and its children use is counted, those that have ended too."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.processes import PeakMemory, cpu_seconds, resident_bytes

SECONDS = 0.1
BURN = f"import time\nwhile time.process_time() < {SECONDS}: pass"
MEBIBYTES = 64


def test_cpu_time_has_what_this_process_used() -> None:
    before, until = cpu_seconds(os.getpid()), time.process_time() + SECONDS
    while time.process_time() < until:
        pass
    assert cpu_seconds(os.getpid()) - before >= 0.8 * SECONDS


def test_cpu_time_has_what_children_used_that_have_ended() -> None:
    before = cpu_seconds(os.getpid())
    subprocess.run([sys.executable, "-c", BURN], check=True)
    assert cpu_seconds(os.getpid()) - before >= 0.8 * SECONDS


def test_memory_has_that_of_children_and_is_seen_at_its_peak() -> None:
    hold = f"held = bytearray(b'x') * ({MEBIBYTES} << 20)\nprint(len(held), flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        before = resident_bytes(os.getpid()) - resident_bytes(child.pid)
        child.stdout.readline()
        with PeakMemory(os.getpid()) as memory:
            child.stdin.write(b"\n")
            child.stdin.flush()
            child.wait()
    assert memory.before_bytes >= before + (MEBIBYTES << 20)
    assert memory.peak_bytes >= memory.before_bytes
    assert resident_bytes(os.getpid()) < memory.before_bytes
