"""A model of a disk that keeps only what was synced, replayed from a trace: what a power cut would leave.

It is as unkind as POSIX allows. A file's content is what the last sync found in it; a sync counts for what
had ended when it began, and from its own end on; one that ends behind another that began later takes nothing
back. A name is kept by a sync of its directory, whose own name must have been kept too. But names may also
reach the disk by themselves, before the content does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from scp_server.testing import wire
from scp_server.testing.system_trace import Call, Moment
from scp_server.testing.wire import Control, PDUType, Tag

Names = Literal["synced", "all"]
"""Which names are there after the power cut: those that were synced only, or every one."""

_SYNCS = frozenset({"fsync", "fdatasync", "syncfs"})
_SENDS = frozenset({"write", "writev", "sendto", "sendmsg"})
_EXISTS = "EEXIST"
_C_STORE_RSP = 0x8001


@dataclass(slots=True, eq=False)
class _File:
    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    synced_by: int = 0
    """The sync that found this, by the order in which they began."""


@dataclass(slots=True, eq=False)
class _Directory:
    entries: dict[str, _File | _Directory] = field(default_factory=dict)
    synced: dict[str, _File | _Directory] = field(default_factory=dict)
    synced_by: int = 0


_Found = bytes | dict[str, _File | _Directory]
"""What a sync finds in a file or in a directory."""


@dataclass(slots=True)
class _Opened:
    node: _File | _Directory
    position: int = 0


class DurableDisk:
    """The file system below `root`, which exists and is empty, and is durable itself.

    Raises ValueError for a call that changes files in a way the model does not know.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._top = _Directory()
        self._opened: dict[tuple[str, int], _Opened] = {}
        self._syncs_begun = 0
        self._syncing: dict[str, tuple[int, list[tuple[_File | _Directory, _Found]]]] = {}

    def begins(self, call: Call) -> None:
        """Take in that a call begins."""
        if call.name == "close":
            self._opened.pop((call.process, call.descriptor), None)
        elif call.name in _SYNCS and (opened := self._opened_by(call)) is not None:
            # All that lies below `root` is one filesystem.
            nodes = _all_below(self._top) if call.name == "syncfs" else [opened.node]
            self._syncs_begun += 1
            self._syncing[call.thread] = self._syncs_begun, [(node, _look_at(node)) for node in nodes]

    def ends(self, call: Call) -> None:
        """Take in that a call has ended; one that failed has changed nothing, but may tell what is there."""
        if call.result < 0:
            if call.name == "mkdir" and _EXISTS in call.text:
                # Whoever makes it has done so, and on a busy machine is only told later.
                self._make_directory(call.strings[0])
            return
        match call.name:
            case "openat":
                self._open(call)
            case "mkdir":
                self._make_directory(call.strings[0])
            case "rename":
                source, target = call.strings
                if self._is_ours(source) or self._is_ours(target):
                    parent, name = self._parent(source.decode())
                    self._link(target, parent.entries.pop(name))
            case "unlink" | "rmdir":
                if self._is_ours(call.strings[0]):
                    parent, name = self._parent(call.strings[0].decode())
                    # A socket's name is made by bind, which is none of ours.
                    parent.entries.pop(name, None)
            case "close" | "sendto" | "sendmsg":
                pass
            case "link" | "symlink" | "renameat2":
                if any(map(self._is_ours, call.strings)):
                    raise ValueError(f"the model does not know {call.name}")
            case _:
                self._change(call)

    def _change(self, call: Call) -> None:
        opened = self._opened_by(call)
        if opened is None:
            return
        node = opened.node
        if call.name in _SYNCS:
            began, looked_at = self._syncing.pop(call.thread)
            for synced, found in looked_at:
                _keep(synced, found, began)
            return
        if isinstance(node, _Directory):
            raise ValueError(f"{call.name} of a directory")
        match call.name:
            case "write" | "writev":
                _write(node, b"".join(call.strings)[: call.result], opened.position)
                opened.position += call.result
            case "pwrite64":
                _write(node, call.strings[0][: call.result], call.numbers[-1])
            case "ftruncate":
                size = call.numbers[-1]
                node.content[size:] = b""
                node.content.extend(bytes(size - len(node.content)))
            case _:
                raise ValueError(f"the model does not know {call.name}")

    def _opened_by(self, call: Call) -> _Opened | None:
        return self._opened.get((call.process, call.descriptor))

    def _open(self, call: Call) -> None:
        path = call.opened_path
        if not path:
            return
        if path == self._root:
            self._opened[call.process, call.result] = _Opened(self._top)
            return
        if not self._is_ours(path.encode()):
            return
        parent, name = self._parent(path)
        if name not in parent.entries:
            parent.entries[name] = _File()
        node = parent.entries[name]
        if isinstance(node, _File) and "O_TRUNC" in call.text:
            node.content.clear()
        self._opened[call.process, call.result] = _Opened(node)

    def _is_ours(self, path: bytes) -> bool:
        if not path.startswith(b"/"):
            raise ValueError(f"not an absolute path: {path!r}")
        return path.decode().startswith(f"{self._root}/")

    def _parent(self, path: str) -> tuple[_Directory, str]:
        *levels, name = path[len(self._root) + 1 :].split("/")
        directory = self._top
        for level in levels:
            below = directory.entries[level]
            if not isinstance(below, _Directory):
                raise ValueError(f"{path} lies below a file")
            directory = below
        return directory, name

    def _make_directory(self, path: bytes) -> None:
        if self._is_ours(path):
            parent, name = self._parent(path.decode())
            parent.entries.setdefault(name, _Directory())

    def _link(self, path: bytes, node: _File | _Directory) -> None:
        if self._is_ours(path):
            parent, name = self._parent(path.decode())
            parent.entries[name] = node

    def survivors(self, names: Names) -> dict[str, bytes]:
        """The files that a power cut at this moment would leave, by their path below `root`."""
        return dict(_survivors(self._top, "", names))


def _look_at(node: _File | _Directory) -> _Found:
    return bytes(node.content) if isinstance(node, _File) else dict(node.entries)


def _keep(node: _File | _Directory, found: _Found, began: int) -> None:
    if began < node.synced_by:
        return
    node.synced_by = began
    if isinstance(node, _Directory) and isinstance(found, dict):
        node.synced = found
    if isinstance(node, _File) and isinstance(found, bytes):
        node.synced = found


def _all_below(directory: _Directory) -> Iterator[_File | _Directory]:
    yield directory
    for node in directory.entries.values():
        if isinstance(node, _Directory):
            yield from _all_below(node)
        else:
            yield node


def _write(file: _File, data: bytes, offset: int) -> None:
    file.content.extend(bytes(max(0, offset - len(file.content))))
    file.content[offset : offset + len(data)] = data


def _survivors(directory: _Directory, prefix: str, names: Names) -> Iterator[tuple[str, bytes]]:
    entries = directory.synced if names == "synced" else directory.entries
    for name, node in entries.items():
        if isinstance(node, _Directory):
            yield from _survivors(node, f"{prefix}{name}/", names)
        else:
            yield prefix + name, node.synced


@dataclass(frozen=True, slots=True)
class Promise:
    """A C-STORE-RSP with status 0x0000 that begins to leave the process, and the disk at that moment."""

    sop_instance_uid: str
    disk: DurableDisk


def promises(calls: Iterable[tuple[Moment, Call]], root: str) -> Iterator[Promise]:
    """Every Success of a traced process; the disk goes on with the iteration, so look at it at once."""
    disk = DurableDisk(root)
    sent: dict[tuple[str, int, str], bytearray] = {}
    for moment, call in calls:
        if moment is Moment.ENDS:
            disk.ends(call)
            continue
        if call.name in _SENDS and call.target.startswith("TCP"):
            # All of it counts as sent: what the socket does not take at once only follows later.
            stream = sent.setdefault((call.process, call.descriptor, call.target), bytearray())
            stream += b"".join(call.strings)
            for uid in _successes(stream):
                yield Promise(uid, disk)
        disk.begins(call)


def _successes(stream: bytearray) -> Iterator[str]:
    """Take the whole PDUs from a stream; responses are in one PDV each."""
    while len(stream) >= 6 and len(stream) >= 6 + (length := struct.unpack_from(">I", stream, 2)[0]):
        body = bytes(stream[6 : 6 + length])
        pdu_type = stream[0]
        del stream[: 6 + length]
        if pdu_type != PDUType.P_DATA_TF:
            continue
        for _, control, fragment in wire.read_pdvs(body):
            elements = wire.read_command_set(fragment) if control & Control.COMMAND else {}
            if _number(elements, Tag.COMMAND_FIELD) == _C_STORE_RSP and not _number(elements, Tag.STATUS):
                yield elements[Tag.AFFECTED_SOP_INSTANCE_UID].decode().rstrip("\0 ")


def _number(elements: dict[int, bytes], tag: int) -> int:
    return int.from_bytes(elements.get(tag, b""), "little")
