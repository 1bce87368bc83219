"""Memory stays flat whatever is sent: large objects, and many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dicos_objects import large_dicos_ct
from scp_server.testing.encoded_object import EncodedObject, LargeObject
from scp_server.testing.objects import ct_image, large_ct
from scp_server.testing.scripted_peer import Framing, ScriptedPeer, storage_contexts

MIB = 1 << 20
LARGE_BYTES = 256 * MIB
GROWTH_BYTES = 32 * MIB
"""What a daemon that has served once may grow by."""
SENDERS = 16
READ_BYTES = 256 * 1024
"""What a connection may have read when it is told to stop."""
ASSOCIATION_BYTES = 2 * MIB + READ_BYTES
BESIDE_BYTES = 8 * MIB
"""Tasks, headers and the allocator's own, beside what the limits count."""


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _reset_peak(pid: int) -> None:
    """VmHWM counts from now on (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def _send(port: int, stored: EncodedObject | LargeObject, framing: Framing = "standard") -> None:
    async with await ScriptedPeer.connect("127.0.0.1", port, timeout_seconds=30) as peer:
        await peer.associate(storage_contexts(stored), maximum_length=131_072)
        assert await peer.store(stored, framing=framing) == 0x0000


@pytest.fixture
def environment() -> Mapping[str, str]:
    """Settings of the daemon; tests override it by parametrizing."""
    return {}


@pytest_asyncio.fixture
async def daemon(tmp_path: Path, environment: Mapping[str, str]) -> AsyncIterator[DaemonProcess]:
    """A daemon that has received one object of each kind, its peak forgotten."""
    daemon = DaemonProcess(tmp_path, environment={"SCP_SERVER_STORAGE__DURABILITY": "process", **environment})
    await asyncio.to_thread(daemon.start)
    await _send(daemon.ready.dicom_port, ct_image(rows=1024, columns=1024, seed=9_999))
    await _send(daemon.ready.dicom_port, large_dicos_ct(MIB, seed=9_999), "glued")
    _reset_peak(daemon.process.pid)
    yield daemon
    await asyncio.to_thread(daemon.terminate)


def _kept_bytes(data_dir: Path) -> list[int]:
    return sorted(path.stat().st_size for path in (data_dir / "objects").rglob("*.dcm"))


def _expect_flat(daemon: DaemonProcess, idle_bytes: int, growth_bytes: int) -> None:
    grown_bytes = _status_bytes(daemon.process.pid, "VmHWM") - idle_bytes
    assert grown_bytes <= growth_bytes, f"grew by {grown_bytes / MIB:.1f} MiB"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "framing"),
    [
        pytest.param(large_ct(LARGE_BYTES), "standard", id="native CT"),
        pytest.param(large_dicos_ct(LARGE_BYTES), "glued", id="glued .64 DICOS CT"),
    ],
)
async def test_a_large_object_costs_no_more_memory_than_a_small_one(
    daemon: DaemonProcess, stored: LargeObject, framing: Framing
) -> None:
    idle_bytes = _status_bytes(daemon.process.pid, "VmRSS")
    await _send(daemon.ready.dicom_port, stored, framing)
    _expect_flat(daemon, idle_bytes, GROWTH_BYTES)
    assert _kept_bytes(daemon.data_dir)[-1] > LARGE_BYTES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "growth_bytes"),
    [
        pytest.param({}, SENDERS * ASSOCIATION_BYTES, id="as every association may"),
        pytest.param(
            {
                "SCP_SERVER_LIMITS__PROCESS_BUFFER_BYTES": str(4 * MIB),
                "SCP_SERVER_STORAGE__WRITE_BUFFER_BYTES": "65536",
            },
            4 * MIB + SENDERS * READ_BYTES,
            id="as all of them together may",
        ),
    ],
)
async def test_sixteen_senders_at_once_hold_as_much_as_the_limits_say(
    daemon: DaemonProcess, growth_bytes: int
) -> None:
    objects = [ct_image(rows=1024, columns=1024, seed=seed) for seed in range(SENDERS)]
    idle_bytes = _status_bytes(daemon.process.pid, "VmRSS")
    async with asyncio.TaskGroup() as senders:
        for stored in objects:
            senders.create_task(_send(daemon.ready.dicom_port, stored))
    _expect_flat(daemon, idle_bytes, growth_bytes + BESIDE_BYTES)
    assert sum(size > 2 * MIB for size in _kept_bytes(daemon.data_dir)) >= SENDERS
