"""A folder that a C-GET's objects go to: one Part 10 file each, named after its UID, never written over."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from blake3 import blake3

from scp_server.errors import StorageError, UnreadableDataset
from scp_server.interfaces import AcceptedContext
from scp_server.objects.header_tap import HeaderTap
from scp_server.objects.part10 import (
    MAX_FILE_META_BYTES,
    FileMetaBytes,
    dicos_version_value,
    file_meta,
    read_file_meta,
)
from scp_server.objects.summary import summarize
from scp_server.objects.uids import clean_uid, is_dicos_sop_class, is_valid_uid
from scp_server.protocol.message import CStoreRQ
from scp_server.storage.sync import FILE_MODE, storage_failure, write_all, write_at

if TYPE_CHECKING:
    from scp_server.protocol.events import Buffer

_SUFFIX: Final = ".dcm"
_PARTIAL = re.compile(r"\.receiving-[0-9a-f]{16}\.part").fullmatch
_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
_REMEMBERED_NAMES: Final = 10_000
"""Instances whose files are remembered; one that was forgotten costs reading its files again."""
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A file that holds an object. `is_new` is false where the same bytes lay there already."""

    path: Path
    is_new: bool


@dataclass(slots=True)
class _Instance:
    """The files of one instance: names by digest, and the number of the next name to be tried."""

    names: dict[bytes, str] = field(default_factory=dict)
    number: int = 1


class ReceivedFolder:
    """A sink for `Requestor.get`: `with ReceivedFolder("out") as folder:`; the folder is made where needed.

    A file is `<SOP Instance UID>.dcm`, or a hash in the UID's place where the peer's is no UID. The same data
    set in the same transfer syntax is kept once. Other bytes under the same UID, as sections of a DICOS CT
    are, become `<UID>_2.dcm` and so on: nothing that is there is ever written over. Data sets are as they
    were received. A file gets its name once it is whole and synced; what a killed process left is removed by
    the next `with` on the folder.

    `on_bytes` hears of bytes as they are written, `on_file` of each file before its object is answered.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        source_ae_title: str = "",
        receiving_ae_title: str = "",
        on_bytes: Callable[[int], None] | None = None,
        on_file: Callable[[ReceivedFile], None] | None = None,
    ) -> None:
        """The titles go to the File Meta Information."""
        self.path = Path(path)
        self._source_ae_title = source_ae_title
        self._receiving_ae_title = receiving_ae_title
        self._on_bytes = on_bytes
        self._on_file = on_file
        self._descriptor = -1
        self._naming = threading.Lock()
        self._instances: dict[str, _Instance] = {}

    def __enter__(self) -> Self:
        """Make and open the folder. Raises StorageError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._sweep()
            probe, name = self._create()
            os.close(probe)
            os.unlink(name, dir_fd=self._descriptor)
        except OSError as error:
            self._close()
            raise storage_failure(error, f"write into {self.path}") from error
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    async def begin(self, request: CStoreRQ, context: AcceptedContext) -> ReceivedFileWriter:
        """See `ObjectSink`. Raises StorageError."""
        if self._descriptor < 0:
            raise StorageError("the folder is not open")
        writer = ReceivedFileWriter(self, request, context)
        try:
            await asyncio.to_thread(writer.open)
        except BaseException:
            await writer.abort()
            raise
        return writer

    # -- for the writers, in threads ------------------------------------------------------------------------

    def make_file_meta(self, request: CStoreRQ, context: AcceptedContext) -> FileMetaBytes:
        """What precedes the data set; a UID that is none is left out, the data set still has it."""
        sop_class, instance = map(
            clean_uid, (request.affected_sop_class_uid, request.affected_sop_instance_uid)
        )
        return file_meta(
            sop_class_uid=sop_class if is_valid_uid(sop_class) else "",
            sop_instance_uid=instance if is_valid_uid(instance) else "",
            transfer_syntax_uid=context.transfer_syntax,
            reserve_dicos_version=is_dicos_sop_class(sop_class),
            source_ae_title=self._source_ae_title,
            sending_ae_title=self._source_ae_title,
            receiving_ae_title=self._receiving_ae_title,
        )

    def create(self) -> tuple[int, str]:
        """A new hidden file, locked for as long as it is open, so that no `_sweep` takes it away."""
        while True:
            descriptor, name = self._create()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor, name
            os.close(descriptor)  # Swept between being made and being locked.

    def place(self, partial: str, sop_instance_uid: str, digest: bytes) -> ReceivedFile:
        """Give a whole file its name, or find the one that has its bytes. Raises OSError."""
        stem = _stem(sop_instance_uid)
        with self._naming:
            instance = self._instances.setdefault(stem, _Instance())
            if len(self._instances) > _REMEMBERED_NAMES:
                del self._instances[next(iter(self._instances))]
            name = instance.names.get(digest)
            if name is not None and self._digest_of(name) == digest:
                return ReceivedFile(self.path / name, is_new=False)
            while True:
                name = f"{stem}_{instance.number}{_SUFFIX}" if instance.number > 1 else stem + _SUFFIX
                is_new = self._link(partial, name)
                found = digest if is_new else self._digest_of(name)
                instance.number += 1
                if found is not None:
                    instance.names[found] = name
                if found == digest:
                    if is_new:
                        os.fsync(self._descriptor)
                    return ReceivedFile(self.path / name, is_new)

    def remove(self, name: str) -> None:
        """Remove a file that has no other name, or whose other name stays."""
        try:
            os.unlink(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            pass

    def wrote(self, size_bytes: int) -> None:
        """So many bytes of a data set were written."""
        if self._on_bytes is not None:
            self._on_bytes(size_bytes)

    def kept(self, file: ReceivedFile) -> None:
        """An object has its file."""
        if self._on_file is not None:
            self._on_file(file)

    # -- inside ---------------------------------------------------------------------------------------------

    def _create(self) -> tuple[int, str]:
        name = f".receiving-{secrets.token_hex(8)}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, FILE_MODE, dir_fd=self._descriptor), name

    def _link(self, partial: str, name: str) -> bool:
        """Give a file a name that nothing has; False where something has it."""
        folder = self._descriptor
        try:
            os.link(partial, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            try:
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, dir_fd=folder))
            except FileExistsError:
                return False
            os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
            return True
        os.unlink(partial, dir_fd=folder)
        return True

    def _digest_of(self, name: str) -> bytes | None:
        """The digest of a file's object; None for what is no object, or cannot be read."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            meta = read_file_meta(os.pread(descriptor, MAX_FILE_META_BYTES, 0))
            digest = new_digest(meta.transfer_syntax_uid)
            offset = meta.dataset_offset_bytes
            while chunk := os.pread(descriptor, _READ_BYTES, offset):
                digest.update(chunk)
                offset += len(chunk)
        except (OSError, ValueError):
            return None
        finally:
            os.close(descriptor)
        return digest.digest()

    def _sweep(self) -> None:
        """Remove what a process that is no more left half-written; whoever lives holds a lock."""
        for name in os.listdir(self._descriptor):
            if _PARTIAL(name) is None:
                continue
            try:
                descriptor = os.open(
                    name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._descriptor
                )
            except OSError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.remove(name)
            except BlockingIOError:
                pass
            finally:
                os.close(descriptor)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class ReceivedFileWriter:
    """Writes one object (`ObjectSinkWriter`). The lock keeps an `abort` behind what a thread still does."""

    def __init__(self, folder: ReceivedFolder, request: CStoreRQ, context: AcceptedContext) -> None:
        self._folder = folder
        self._request = request
        self._context = context
        self._lock = threading.Lock()
        self._descriptor = -1
        self._name = ""
        self._ended = False
        self._digest = new_digest(context.transfer_syntax)
        self._file_meta = folder.make_file_meta(request, context)
        # Only DICOS files say in their File Meta Information what only the data set knows.
        dicos = self._file_meta.dicos_version_offset_bytes is not None
        self._tap = HeaderTap(context.transfer_syntax) if dicos else None

    def open(self) -> None:
        """Create the file. Blocks. Raises StorageError."""
        with self._lock:
            if self._ended:
                return
            try:
                self._descriptor, self._name = self._folder.create()
                write_all(self._descriptor, [self._file_meta.data])
            except OSError as error:
                raise storage_failure(error, "write the object") from error

    async def write(self, chunks: Sequence[Buffer]) -> None:
        """See `ObjectSinkWriter`. Raises StorageError."""
        await asyncio.to_thread(self._write, chunks)
        self._folder.wrote(sum(map(len, chunks)))

    async def commit(self) -> None:
        """See `ObjectSinkWriter`. Raises StorageError."""
        self._folder.kept(await asyncio.to_thread(self._commit))

    async def abort(self) -> None:
        """See `ObjectSinkWriter`."""
        await asyncio.to_thread(self._discard)

    def _write(self, chunks: Sequence[Buffer]) -> None:
        with self._lock:
            if self._ended:
                return
            try:
                write_all(self._descriptor, chunks)
            except OSError as error:
                raise storage_failure(error, "write the object") from error
            for chunk in chunks:
                self._digest.update(chunk)
                self._look_through(chunk)

    def _look_through(self, chunk: Buffer) -> None:
        if self._tap is None or self._tap.header_complete:
            return
        try:
            self._tap.feed(chunk)
        except UnreadableDataset:
            self._tap = None  # It is kept as it came, all the same.

    def _commit(self) -> ReceivedFile:
        with self._lock:
            if self._ended:
                raise StorageError("the object was given up")
            try:
                self._patch_dicos_version()
                os.fsync(self._descriptor)
                instance = clean_uid(self._request.affected_sop_instance_uid)
                file = self._folder.place(self._name, instance, self._digest.digest())
            except OSError as error:
                raise storage_failure(error, "keep the object") from error
            self._end()
            return file

    def _patch_dicos_version(self) -> None:
        tap, offset = self._tap, self._file_meta.dicos_version_offset_bytes
        if tap is None or offset is None:
            return
        try:
            if not tap.header_complete:
                tap.finish()
        except UnreadableDataset:
            return
        write_at(self._descriptor, dicos_version_value(summarize(tap.header).dicos_version), offset)

    def _discard(self) -> None:
        with self._lock:
            if not self._ended:
                self._end()

    def _end(self) -> None:
        """Close, and remove the hidden name where it is still there."""
        self._ended = True
        if self._descriptor >= 0:
            self._folder.remove(self._name)
            os.close(self._descriptor)
            self._descriptor = -1


def new_digest(transfer_syntax_uid: str) -> blake3:
    """What tells objects apart: the data set's bytes and its transfer syntax."""
    return blake3(transfer_syntax_uid.encode() + b"\0")


def _stem(sop_instance_uid: str) -> str:
    """A file's name without its ending: digits and dots only where it is the peer's, never a path."""
    if is_valid_uid(sop_instance_uid):
        return sop_instance_uid
    return "no-uid-" + blake3(sop_instance_uid.encode("utf-8", "surrogatepass")).hexdigest()[:32]
