"""The model of a disk that keeps only what was synced: it must not believe in anything else."""

from __future__ import annotations

import pytest

from scp_server.testing import wire
from scp_server.testing.durable_disk import DurableDisk, promises
from scp_server.testing.system_trace import Moment, read_trace
from scp_server.testing.wire import PDV, Control, Tag

ROOT = "/disk"
UID = "1.2.840.99.1"


def _hex(data: bytes | str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in (data.encode() if isinstance(data, str) else data))


def _fd(number: int, path: str) -> str:
    return f"{number}<{_hex(path)}>"


def _open(number: int, path: str, flags: str = "O_WRONLY|O_CREAT") -> str:
    return f'1  openat(AT_FDCWD<{_hex("/")}>, "{_hex(path)}", {flags}, 0640) = {_fd(number, path)}'


def _write(number: int, path: str, data: bytes, written: int | None = None) -> str:
    result = len(data) if written is None else written
    return f'1  write({_fd(number, path)}, "{_hex(data)}", {len(data)}) = {result}'


def _call(name: str, number: int, path: str, result: str = "0") -> str:
    return f"1  {name}({_fd(number, path)}) = {result}"


def _paths(name: str, *paths: str) -> str:
    quoted = ", ".join(f'"{_hex(path)}"' for path in paths)
    return f"1  {name}({quoted}) = 0"


def _response(status: int = 0x0000) -> bytes:
    elements: dict[int, int | str | bytes] = {
        Tag.AFFECTED_SOP_CLASS_UID: "1.2",
        Tag.COMMAND_FIELD: 0x8001,
        Tag.MESSAGE_ID_RESPONDED_TO: 1,
        Tag.DATASET_TYPE: wire.NO_DATASET,
        Tag.STATUS: status,
        Tag.AFFECTED_SOP_INSTANCE_UID: UID,
    }
    return wire.p_data_tf(PDV(1, Control.COMMAND | Control.LAST, wire.command_set(elements)))


def _send(data: bytes, thread: int = 1) -> str:
    target = "9<TCP:[127.0.0.1:104->127.0.0.1:5000]>"
    return f'{thread}  sendto({target}, "{_hex(data)}", {len(data)}, 0, NULL, 0) = {len(data)}'


WHOLE = [
    _paths("mkdir", "/disk/objects"),
    _open(3, "/disk", "O_RDONLY|O_DIRECTORY"),
    _call("fsync", 3, "/disk"),
    _call("close", 3, "/disk"),
    _open(4, "/disk/part"),
    _write(4, "/disk/part", b"object"),
    _call("fdatasync", 4, "/disk/part"),
    _call("close", 4, "/disk/part"),
    _paths("rename", "/disk/part", "/disk/objects/whole"),
    _open(3, "/disk/objects", "O_RDONLY|O_DIRECTORY"),
    _call("fsync", 3, "/disk/objects"),
    _send(_response()),
]
SURVIVES = {"objects/whole": b"object"}


def _at_promise(lines: list[str]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What survives when the one Success leaves: by synced names only, and with all names."""
    found = [
        (promise.sop_instance_uid, promise.disk.survivors("synced"), promise.disk.survivors("all"))
        for promise in promises(read_trace(lines), ROOT)
    ]
    ((uid, synced, everything),) = found
    assert uid == UID
    return synced, everything


def test_what_is_synced_in_order_survives() -> None:
    assert _at_promise(WHOLE) == (SURVIVES, SURVIVES)


@pytest.mark.parametrize(
    ("missing", "synced", "everything"),
    [
        ("fsync(3<" + _hex("/disk") + ">", {}, SURVIVES),
        ("fdatasync", {"objects/whole": b""}, {"objects/whole": b""}),
        ("fsync(3<" + _hex("/disk/objects") + ">", {}, SURVIVES),
    ],
)
def test_without_one_sync_something_is_lost(
    missing: str, synced: dict[str, bytes], everything: dict[str, bytes]
) -> None:
    lines = [line for line in WHOLE if missing not in line]
    assert len(lines) == len(WHOLE) - 1
    assert _at_promise(lines) == (synced, everything)


def test_a_sync_of_the_filesystem_keeps_every_name_and_content_that_it_found() -> None:
    without = [line for line in WHOLE[:-1] if "sync" not in line]
    synced = _call("syncfs", 3, "/disk/objects")
    assert _at_promise([*without, synced, WHOLE[-1]]) == (SURVIVES, SURVIVES)
    assert _at_promise([*without, WHOLE[-1], synced])[0] == {}
    assert _at_promise([*without, _call("syncfs", 8, "/elsewhere"), WHOLE[-1]])[0] == {}
    early = [_open(7, "/disk/objects", "O_RDONLY|O_DIRECTORY"), _call("syncfs", 7, "/disk/objects")]
    renamed = without.index(WHOLE[8])
    assert _at_promise([*without[:renamed], *early, *without[renamed:], WHOLE[-1]])[0] == {"part": b"object"}


def test_a_sync_that_ends_late_takes_nothing_back_that_a_later_one_has_kept() -> None:
    early = f"fsync({_fd(7, '/disk/objects')}"
    lines = [
        *WHOLE[:4],
        _open(7, "/disk/objects", "O_RDONLY|O_DIRECTORY"),
        f"2  {early} <unfinished ...>",
        *WHOLE[4:-1],
        "2  <... fsync resumed>) = 0",
        WHOLE[-1],
    ]
    assert _at_promise(lines) == (SURVIVES, SURVIVES)
    last = _call("fsync", 3, "/disk/objects")
    assert _at_promise([line for line in lines if line != last]) == ({}, SURVIVES)


def test_a_directory_is_there_for_who_hears_so_before_its_maker_does() -> None:
    made = WHOLE[0].removeprefix("1").removesuffix(") = 0")
    lines = [
        f"2{made} <unfinished ...>",
        f"1{made}) = -1 EEXIST (File exists)",
        *WHOLE[1:-1],
        "2  <... mkdir resumed>) = 0",
        WHOLE[-1],
    ]
    assert _at_promise(lines) == (SURVIVES, SURVIVES)
    assert _at_promise(lines[:3] + lines[4:]) == ({}, SURVIVES)


@pytest.mark.parametrize(
    "unseen", ["???( <unfinished ...>", "fsync( <unfinished ...>", "fsync( <unavailable>) = ?"]
)
def test_a_thread_that_is_killed_as_it_begins_a_call_has_done_nothing(unseen: str) -> None:
    name = unseen.partition("(")[0]
    lines = [*WHOLE[:5], f"2  {unseen}", *WHOLE[5:-1], f"2  <... {name} resumed>) = ?", "2  +++ exited +++"]
    assert _at_promise([*lines, WHOLE[-1]]) == (SURVIVES, SURVIVES)


@pytest.mark.parametrize("step", [2, 6, 10])
def test_a_sync_after_the_success_comes_too_late(step: int) -> None:
    late = WHOLE[:step] + WHOLE[step + 1 :] + [WHOLE[step]]
    assert _at_promise(late)[0] != SURVIVES


def test_a_sync_before_the_rename_or_the_write_covers_neither() -> None:
    assert _at_promise([*WHOLE[:8], WHOLE[9], WHOLE[10], WHOLE[8], WHOLE[11]])[0] == {}
    assert _at_promise([*WHOLE[:5], WHOLE[6], WHOLE[5], *WHOLE[7:]])[0] == {"objects/whole": b""}


def test_a_sync_counts_from_its_end_for_what_had_ended_when_it_began() -> None:
    part = _fd(4, "/disk/part")
    begun, resumed = f"2  fdatasync({part} <unfinished ...>", "2  <... fdatasync resumed>) = 0"
    during = [*WHOLE[:5], begun, WHOLE[5], resumed, *WHOLE[7:]]
    assert _at_promise(during)[0] == {"objects/whole": b""}
    unended = [*WHOLE[:6], begun, *WHOLE[7:], resumed]
    assert _at_promise(unended)[0] == {"objects/whole": b""}
    assert _at_promise([*WHOLE[:6], begun, resumed, *WHOLE[7:]])[0] == SURVIVES


def test_a_success_counts_from_its_beginning() -> None:
    begun = _send(_response(), 2).partition(", 0, NULL")[0] + " <unfinished ...>"
    resumed = f"2  <... sendto resumed>, 0, NULL, 0) = {len(_response())}"
    assert _at_promise([*WHOLE[:10], begun, WHOLE[10], resumed])[0] == {}


def test_what_failed_or_was_written_in_part_is_not_believed() -> None:
    failed = _call("fdatasync", 4, "/disk/part", "-1 EIO (Input/output error)")
    assert _at_promise([*WHOLE[:6], failed, *WHOLE[7:]])[0] == {"objects/whole": b""}
    short = _write(4, "/disk/part", b"object", 3)
    assert _at_promise([*WHOLE[:5], short, *WHOLE[6:]])[0] == {"objects/whole": b"obj"}


def test_only_a_success_is_a_promise_however_it_is_cut() -> None:
    response = _response()
    lines = [_send(_response(0xA700)), _send(wire.release_rp()), _send(response[:50]), _send(response[50:])]
    assert [promise.sop_instance_uid for promise in promises(read_trace(lines), ROOT)] == [UID]


def test_files_are_written_at_offsets_cut_and_emptied() -> None:
    path = "/disk/file"
    fd = _fd(5, path)
    disk = _replayed(
        _open(5, path),
        f'1  writev({fd}, [{{iov_base="{_hex("ab")}", iov_len=2}}, {{iov_base="{_hex("cd")}"}}], 2) = 4',
        f'1  pwrite64({fd}, "{_hex(b"XY")}", 2, 5) = 2',
        f"1  fsync({fd}) = 0",
    )
    assert disk.survivors("all") == {"file": b"abcd\0XY"}
    disk = _replayed(
        _open(5, path),
        _write(5, path, b"abcdef"),
        f"1  ftruncate({fd}, 2) = 0",
        f"1  fsync({fd}) = 0",
    )
    assert disk.survivors("all") == {"file": b"ab"}
    disk = _replayed(
        _open(5, path),
        _write(5, path, b"abcdef"),
        _open(6, path, "O_WRONLY|O_CREAT|O_TRUNC"),
        f"1  fsync({fd}) = 0",
    )
    assert disk.survivors("all") == {"file": b""}
    assert _replayed(_open(5, path), _paths("unlink", path)).survivors("all") == {}


def test_other_files_and_devices_are_none_of_its_business() -> None:
    disk = _replayed(
        _open(5, "/elsewhere/file"),
        _write(5, "/elsewhere/file", b"x"),
        f'1  openat(AT_FDCWD<{_hex("/")}>, "{_hex("/dev/null")}", O_RDWR) = 6<{_hex("/dev/null")}<char 1:3>>',
        f"1  close(6<{_hex('/dev/null')}<char 1:3>>) = 0",
        "1  close(-1) = -1 EBADF (Bad file descriptor)",
        "1  +++ exited with 0 +++",
    )
    assert disk.survivors("all") == {}


@pytest.mark.parametrize(
    "lines",
    [
        [_open(5, "/disk/file"), f"1  fallocate({_fd(5, '/disk/file')}, 0, 0, 4096) = 0"],
        [_paths("link", "/disk/a", "/disk/b")],
        ["no line of strace's"],
        [_paths("mkdir", "relative")],
    ],
)
def test_what_it_does_not_know_it_does_not_pass_over(lines: list[str]) -> None:
    with pytest.raises(ValueError, match=r"know|understood|absolute"):
        _replayed(*lines)


def _replayed(*lines: str) -> DurableDisk:
    disk = DurableDisk(ROOT)
    for moment, call in read_trace(lines):
        (disk.begins if moment is Moment.BEGINS else disk.ends)(call)
    return disk
