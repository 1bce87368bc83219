"""On what machine, with what and how something was measured: what figures mean nothing without."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import date
from pathlib import Path

from benchmarks.ingest_suite import GIBIBYTE, Plan


def about(plan: Plan, memory: Path, disk: Path) -> dict[str, str]:
    """On what machine and with what, in words."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": date.today().isoformat(),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {pages / GIBIBYTE:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load average before": f"{os.getloadavg()[0]:.1f}",
        "archives": f"on {_filesystem(memory)}; durable ones on {_filesystem(disk)}",
        "turns": f"{plan.rounds} of {plan.seconds:g} s"
        + ("" if plan.fresh else ", several with one start of a server"),
        "large object": f"{plan.large_bytes / GIBIBYTE:g} GiB",
        "scp_server": _commit(),
        "peers": f"{_version('storescp')}, Orthanc {_version('Orthanc')}, "
        f"pynetdicom {importlib.metadata.version('pynetdicom')}",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(folder: Path) -> str:
    mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    inside = [fields for fields in mounts if folder.resolve().is_relative_to(fields[1])]
    return max(inside, key=lambda fields: len(fields[1]))[2]


def _commit() -> str:
    found = _first_line(["git", "describe", "--always", "--dirty"])
    return f"{importlib.metadata.version('scp_server')} {found}".strip()


def _version(program: str) -> str:
    return _first_line([program, "--version"]).strip("$ ").removeprefix("dcmtk: ").removeprefix("Orthanc ")


def _first_line(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return "not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.splitlines()[0] if done.stdout else ""
