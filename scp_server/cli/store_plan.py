"""What `scp-server store` is to send: files found, read as far as their File Meta, and grouped."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scp_server.cli.peer import Context
from scp_server.objects.part10 import read_file_meta
from scp_server.objects.uids import is_valid_uid

MAX_CONTEXTS = 128
"""Presentation contexts that one association can propose: odd ids from 1 to 255 (PS3.8 9.3.2.2)."""

_FIRST_READ_BYTES = 4_096
_LAST_READ_BYTES = 1 << 20
_PREFIX = slice(128, 132)
_MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that can be sent. Sizes and offsets in bytes."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset_offset_bytes: int
    dataset_bytes: int
    modified_ns: int = 0
    """When the file was last changed, in nanoseconds since the epoch."""

    @property
    def context(self) -> Context:
        """The presentation context it needs."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True, slots=True)
class Unsendable:
    """A file that cannot be sent, and why. `is_failure`: it should have been."""

    path: Path
    reason: str
    is_failure: bool


@dataclass(frozen=True, slots=True)
class Group:
    """What goes over one association: at most 128 contexts, and the files that need them, in order."""

    contexts: tuple[Context, ...]
    candidates: tuple[Candidate, ...]


class WorkList:
    """The files of a group, for several associations to take from; those of one instance stay together.

    One association alone takes them in their order. Several take all files of an instance (they are its
    parts) at once, so that these arrive one after another.
    """

    def __init__(self, candidates: Sequence[Candidate], associations: int) -> None:
        units: dict[object, deque[Candidate]] = {}
        for number, candidate in enumerate(candidates):
            key = number if associations == 1 else candidate.sop_instance_uid
            units.setdefault(key, deque()).append(candidate)
        self._units = deque(units.values())

    def __len__(self) -> int:
        """How many instances wait."""
        return len(self._units)

    def take(self) -> deque[Candidate] | None:
        """The next instance's files; None where there are no more."""
        return self._units.popleft() if self._units else None

    def give_back(self, unit: deque[Candidate]) -> None:
        """What could not be sent of an instance is the next to be tried."""
        if unit:
            self._units.appendleft(unit)


@dataclass(slots=True)
class Plan:
    """All that was found."""

    candidates: list[Candidate] = field(default_factory=list)
    unsendable: list[Unsendable] = field(default_factory=list)


def make_plan(inputs: Sequence[Path]) -> Plan:
    """Look at every input; folders are searched to the bottom, in order of names, each folder once."""
    plan = Plan()
    seen_files: set[str] = set()
    for given in inputs:
        named = not given.is_dir()
        for found in [given] if named else files_below(given):
            if isinstance(found, Unsendable):
                plan.unsendable.append(found)
                continue
            real_path = os.path.realpath(found)
            if real_path in seen_files:
                plan.unsendable.append(Unsendable(found, "the same file as one before", is_failure=False))
                continue
            seen_files.add(real_path)
            result = examine(found, named=named)
            if isinstance(result, Candidate):
                plan.candidates.append(result)
            else:
                plan.unsendable.append(result)
    return plan


def examine(path: Path, *, named: bool) -> Candidate | Unsendable:
    """Read a file's File Meta. What is no Part 10 file is a failure only when it was `named` itself."""
    try:
        # A pipe or device in a folder would block whoever opens it.
        if not stat.S_ISREG(path.stat().st_mode):
            return Unsendable(path, "no regular file", is_failure=named)
        with path.open("rb") as file:
            return _read(path, file.fileno(), named=named)
    except OSError as error:
        return Unsendable(path, f"cannot be read: {error.strerror}", is_failure=True)


def make_groups(candidates: Sequence[Candidate], max_contexts: int = MAX_CONTEXTS) -> list[Group]:
    """Distribute files over associations, one context per SOP class and transfer syntax, in their order."""
    group_of: dict[Context, int] = {}
    files: list[list[Candidate]] = []
    for candidate in candidates:
        number = group_of.setdefault(candidate.context, len(group_of) // max_contexts)
        if number == len(files):
            files.append([])
        files[number].append(candidate)
    return [
        Group(tuple(context for context, its in group_of.items() if its == number), tuple(members))
        for number, members in enumerate(files)
    ]


def _read(path: Path, descriptor: int, *, named: bool) -> Candidate | Unsendable:
    status = os.fstat(descriptor)
    size = status.st_size
    first = os.pread(descriptor, _FIRST_READ_BYTES, 0)
    if first[_PREFIX] != b"DICM":
        return Unsendable(path, "no DICOM Part 10 file", is_failure=named)
    try:
        meta = read_file_meta(first)
    except ValueError as error:
        if size <= _FIRST_READ_BYTES:
            return Unsendable(path, f"damaged File Meta: {error}", is_failure=True)
        try:
            meta = read_file_meta(os.pread(descriptor, _LAST_READ_BYTES, 0))
        except ValueError as further_error:
            return Unsendable(path, f"damaged File Meta: {further_error}", is_failure=True)
    if meta.sop_class_uid == _MEDIA_STORAGE_DIRECTORY:
        return Unsendable(path, "a DICOMDIR, which lists instances and is none", is_failure=named)
    for name, uid in (
        ("SOP Class UID", meta.sop_class_uid),
        ("SOP Instance UID", meta.sop_instance_uid),
        ("Transfer Syntax UID", meta.transfer_syntax_uid),
    ):
        if not is_valid_uid(uid):
            return Unsendable(path, f"damaged File Meta: no valid {name}", is_failure=True)
    dataset_bytes = size - meta.dataset_offset_bytes
    if dataset_bytes <= 0:
        return Unsendable(path, "no data set after the File Meta", is_failure=True)
    return Candidate(
        path,
        meta.sop_class_uid,
        meta.sop_instance_uid,
        meta.transfer_syntax_uid,
        meta.dataset_offset_bytes,
        dataset_bytes,
        status.st_mtime_ns,
    )


def files_below(folder: Path) -> Iterator[Path | Unsendable]:
    """Files below a folder by name; links are followed, but no folder is entered twice."""
    entered: set[tuple[int, int]] = set()
    waiting: list[Path] = [folder]
    while waiting:
        path = waiting.pop()
        try:
            status = path.stat()
            if not stat.S_ISDIR(status.st_mode):
                yield path
                continue
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            waiting += [path / name for name in sorted(os.listdir(path), reverse=True)]
        except OSError as error:
            yield Unsendable(path, f"cannot be read: {error.strerror}", is_failure=True)
