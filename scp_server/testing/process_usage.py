"""What a process of Linux has of the machine: memory, descriptors, threads, time (proc(5))."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """A look at a process that runs. Every reading raises OSError once it has ended."""

    pid: int

    @property
    def resident_bytes(self) -> int:
        """What it holds of memory (VmRSS)."""
        return self._status("VmRSS") * 1024

    @property
    def peak_bytes(self) -> int:
        """The most it held since `forget_peak` (VmHWM)."""
        return self._status("VmHWM") * 1024

    @property
    def threads(self) -> int:
        """How many it has."""
        return self._status("Threads")

    @property
    def descriptors(self) -> int:
        """How many are open."""
        return len(os.listdir(self._folder / "fd"))

    @property
    def cpu_seconds(self) -> float:
        """What it has computed, in user and in kernel mode, with the children that it has waited for."""
        # The name of the program is in parentheses, and may hold some itself.
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    @property
    def waited_seconds(self) -> float:
        """How long its first thread could have run, and had no processor."""
        return int((self._folder / "schedstat").read_text().split()[1]) / 1e9

    def forget_peak(self) -> None:
        """`peak_bytes` counts from now on."""
        (self._folder / "clear_refs").write_text("5")

    @property
    def _folder(self) -> Path:
        return Path(f"/proc/{self.pid}")

    def _status(self, name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+)", (self._folder / "status").read_text(), re.MULTILINE)
        if found is None:
            raise ProcessLookupError(f"process {self.pid} has ended")
        return int(found[1])
