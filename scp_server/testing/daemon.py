"""The daemon as a process of its own, for tests that speak to it from outside, end it or kill it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

START_SECONDS = 30.0
STOP_SECONDS = 40.0
PROGRAM = (sys.executable, "-m", "scp_server.cli.main")
PREAMBLE_BYTES = 132
GROUP_LENGTH_BYTES = 12


class DaemonFailed(AssertionError):
    """The daemon did not start, did not stop, or ended otherwise than it should; the text has its output."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What the log event `server.ready` says."""

    dicom_host: str
    dicom_port: int
    http_host: str
    http_port: int
    pid: int


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A Part 10 file below a data folder; `meta` maps element numbers of group 0002 to their value bytes."""

    path: Path
    meta: dict[int, bytes]
    dataset: bytes = field(repr=False)

    @property
    def sop_instance_uid(self) -> str:
        """(0002,0003)."""
        return self._text(0x0003)

    @property
    def transfer_syntax_uid(self) -> str:
        """(0002,0010)."""
        return self._text(0x0010)

    @property
    def dicos_version(self) -> str:
        """(0002,0004), which only DICOS files have."""
        return self._text(0x0004)

    def _text(self, element: int) -> str:
        return self.meta.get(element, b"").decode("ascii").rstrip("\0 ")


class SentDataset(Protocol):
    """What names and makes up an object that was sent: an EncodedObject, a SentObject, a StoredFile."""

    @property
    def sop_instance_uid(self) -> str: ...

    @property
    def transfer_syntax_uid(self) -> str: ...

    @property
    def dataset(self) -> bytes: ...


class DaemonProcess:
    """`serve` on free loopback ports. A context manager: entering waits for ready, leaving ends the process.

    `environment` is added to this process's; `program` is what understands `serve`. Raises DaemonFailed.
    """

    def __init__(
        self,
        data_dir: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._command = [
            *(*program, "serve", "--port", "0", "--http-port", "0"),
            *("--data-dir", str(data_dir), "--log-format", "json", *options),
        ]
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._settled = threading.Event()
        self._ready: Ready | None = None
        self.data_dir = data_dir
        self.output: list[str] = []
        """Every line of standard output and standard error so far."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_running:
            return
        if kind is None:
            self.terminate()
        else:
            self.kill()

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def output_has_ended(self) -> bool:
        """Nobody writes to `output` any more: neither the process nor any child of it is left."""
        return self._reader is not None and not self._reader.is_alive()

    @property
    def ready(self) -> Ready:
        """Where it listens."""
        if self._ready is None:
            raise DaemonFailed("the daemon is not ready")
        return self._ready

    @property
    def process(self) -> subprocess.Popen[str]:
        """The process started last."""
        if self._process is None:
            raise DaemonFailed("the daemon has not been started")
        return self._process

    def start(self) -> Ready:
        """Start, or start again after an end, and wait until `server.ready`."""
        self._ready = None
        # One of its own: what reads from a process before may only now come to its end.
        self._settled = settled = threading.Event()
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=self._environment,
            # A group of its own: `kill` takes all of it.
            process_group=0,
        )
        # A test that fails before it stops the daemon must not leave it behind, nor wait for its output.
        weakref.finalize(self, _kill_group, self._process)
        self._reader = threading.Thread(
            target=self._read, args=(self._process, settled), name="daemon output", daemon=True
        )
        self._reader.start()
        ready = self._wait_until_ready()
        if ready is None:
            self.kill()
            raise DaemonFailed(f"not ready:\n{self._tail()}")
        return ready

    def terminate(self) -> None:
        """SIGTERM; it must then end by itself, with exit code 0."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise DaemonFailed(f"still running {STOP_SECONDS} s after SIGTERM:\n{self._tail()}") from error
        self._join()
        if code != 0:
            raise DaemonFailed(f"exit code {code}:\n{self._tail()}")

    def kill(self) -> None:
        """SIGKILL for it and all its children: no word of goodbye."""
        _kill_group(self.process)
        self._join()

    def log_records(self, event: str = "") -> list[dict[str, Any]]:
        """The log records so far, those of one event if it is named."""
        records = [record for line in list(self.output) if (record := _log_record(line))]
        return [record for record in records if event in ("", record.get("event"))]

    def _wait_until_ready(self) -> Ready | None:
        self._settled.wait(START_SECONDS)
        return self._ready

    def _read(self, process: subprocess.Popen[str], settled: threading.Event) -> None:
        if process.stdout is None:
            return
        with process.stdout as lines:
            for line in lines:
                self.output.append(line.rstrip("\n"))
                record = _log_record(line)
                if record.get("event") == "server.ready":
                    self._ready = Ready(
                        str(record["dicom_host"]),
                        int(record["dicom_port"]),
                        str(record["http_host"]),
                        int(record["http_port"]),
                        int(record["pid"]),
                    )
                    settled.set()
        settled.set()

    def _join(self) -> None:
        if self._reader is not None:
            self._reader.join(STOP_SECONDS)

    def _tail(self) -> str:
        return "\n".join(self.output[-40:])


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a process that leads a group, with all of that; nothing where it has ended."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)


def stored_files(data_dir: Path) -> list[StoredFile]:
    """Every Part 10 file of the objects kept below a data folder. Raises ValueError for one that is none."""
    return [read_stored_file(path) for path in sorted((data_dir / "objects").rglob("*.dcm"))]


def expect_stored(data_dir: Path, sent: Iterable[SentDataset]) -> None:
    """The objects kept are those that were sent, byte for byte, each once. Raises AssertionError."""
    wanted = sorted({_identity(one) for one in sent})
    kept = sorted(_identity(stored) for stored in stored_files(data_dir))
    if wanted != kept:
        missing = [identity for identity in wanted if identity not in kept]
        surplus = [identity for identity in kept if identity not in wanted]
        raise AssertionError(
            f"sent {len(wanted)}, kept {len(kept)} objects; not kept as sent: {missing}; not sent: {surplus}"
        )


def read_stored_file(path: Path) -> StoredFile:
    """File Meta and data set of a file; its group length alone says where the one ends (PS3.10 7.1)."""
    content = path.read_bytes()
    if content[128:132] != b"DICM" or content[132:140] != b"\x02\0\0\0UL\x04\0":
        raise ValueError(f"{path} does not begin with a preamble and File Meta")
    start = PREAMBLE_BYTES + GROUP_LENGTH_BYTES
    end = start + struct.unpack_from("<I", content, start - 4)[0]
    return StoredFile(path, dict(_file_meta(content[start:end])), content[end:])


def _identity(one: SentDataset) -> tuple[str, str, int, str]:
    digest = hashlib.sha256(one.dataset).hexdigest()[:16]
    return one.sop_instance_uid, one.transfer_syntax_uid, len(one.dataset), digest


def _file_meta(meta: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(meta):
        _, element, vr, length = struct.unpack_from("<HH2sH", meta, position)
        position += 8
        if vr in {b"OB", b"UN", b"UT"}:
            length = struct.unpack_from("<I", meta, position)[0]
            position += 4
        yield element, meta[position : position + length]
        position += length


def _log_record(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
