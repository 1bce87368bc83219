"""A stored object's file: mapped into memory, its header read, everything else left where it is."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from scp_server.errors import CannotTranscode, CannotView, UnreadableDataset
from scp_server.objects.element_headers import PIXEL_GROUP
from scp_server.objects.element_stream import ElementReader
from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.inflate import BoundedInflate
from scp_server.objects.part10 import MAX_FILE_META_BYTES, FileMeta, read_file_meta
from scp_server.objects.raw_header import AttributeSource, RawHeader
from scp_server.objects.uids import TransferSyntax, transfer_syntax
from scp_server.objects.vr import tag_text

T = TypeVar("T")

_READ_BYTES: Final = 1 << 16
"""How much of a file is read at once until its header has ended."""
_LIMITS: Final = TapLimits(max_header_bytes=64 << 20)
"""A view keeps a header whole, but for long values, which stay in the file."""
_PIXELS: Final = (0x7FE00010, 0x7FE00011, 0x7FE00012, 0x7FE00013, 0x7FE00008, 0x7FE00009)
"""Pixel data: DICOM's and DICOS's of 16 bits; 32 and 64 bits and floating point, DICOS's and DICOM's."""


@runtime_checkable
class HasPath(Protocol):
    """Whatever lies in a file: a stored instance, for one."""

    @property
    def path(self) -> Path: ...


Source = str | os.PathLike[str] | HasPath


class PixelElement(NamedTuple):
    """Where an object's pixels lie, in bytes from the beginning of its data set (after inflating)."""

    tag: int
    vr: str
    offset_bytes: int
    length_bytes: int
    encapsulated: bool
    """They are fragments (PS3.5 A.4), and `length_bytes` says nothing."""


class StoredFile:
    """One Part 10 file. What is wrong with it is a CannotView, with its name.

    The file stays mapped for as long as this, or an array over its pixels, is referred to. It must not be
    changed meanwhile; the server never changes one.
    """

    def __init__(self, source: Source) -> None:
        """Reads up to the end of the header. Raises CannotView, and OSError where it cannot be opened."""
        self.path = _path_of(source)
        with open(self.path, "rb") as file:
            self.size_bytes = os.fstat(file.fileno()).st_size
            mapped = _mapped(file.fileno(), self.size_bytes)
        self.file_meta: FileMeta = self.explained(
            lambda: read_file_meta(bytes(mapped[: MAX_FILE_META_BYTES + 1]))
        )
        stored = mapped[self.file_meta.dataset_offset_bytes :]
        self.data: memoryview = self.explained(lambda: _inflated(stored)) if self._is_deflated else stored
        """The data set, inflated; a view of the mapped file, or of an unnamed one."""
        self.header: RawHeader = self.explained(self._read_header)

    @property
    def transfer_syntax(self) -> TransferSyntax:
        """How the data set is encoded; once it is inflated, deflation is no more part of that."""
        return transfer_syntax(self.file_meta.transfer_syntax_uid)

    @property
    def _is_deflated(self) -> bool:
        return self.transfer_syntax.deflated

    @property
    def _plain_uid(self) -> str:
        """The transfer syntax of `data`."""
        uid = self.file_meta.transfer_syntax_uid
        return "1.2.840.10008.1.2.1" if self._is_deflated else uid

    def value(self, source: AttributeSource, tag: int) -> bytes:
        """The value of any element of the header, also of one so long that it was left in the file.

        Empty where the element is absent. Raises CannotView where the file ends before the value does.
        """
        element = source.get(tag)
        if element is None:
            return b""
        if element.value is not None:
            return element.value
        end = element.offset_bytes + element.length_bytes
        if end > len(self.data):
            raise self.error(f"{tag_text(tag)} is cut: it ends at byte {end} of {len(self.data)}")
        return bytes(self.data[element.offset_bytes : end])

    @cached_property
    def pixels(self) -> PixelElement | None:
        """Where the pixels are; None where there are none. Raises CannotView unless the data set is whole."""
        listener = _PixelFinder()
        reader = ElementReader(transfer_syntax(self._plain_uid), listener, len(self.data))
        listener.reader = reader

        def read() -> None:
            reader.feed(self.data)
            reader.finish()

        self.explained(read)
        return listener.found

    def explained(self, read: Callable[[], T]) -> T:
        """What `read` gives; damage that it finds as CannotView with the file's name."""
        try:
            return read()
        except UnreadableDataset as error:
            raise self.error(f"the data set is damaged: {error}") from error
        except (CannotTranscode, ValueError) as error:
            raise self.error(str(error)) from error

    def error(self, text: str) -> CannotView:
        """Something is wrong with this file."""
        return CannotView(f"{self.path}: {text}")

    def _read_header(self) -> RawHeader:
        tap = HeaderTap(self._plain_uid, _LIMITS)
        for start in range(0, len(self.data), _READ_BYTES):
            tap.feed(self.data[start : start + _READ_BYTES])
            if tap.header_complete:
                return tap.header
        tap.finish()
        return tap.header


class _PixelFinder:
    """Remembers where the first pixel data element of the data set itself lies; of nothing is a byte read."""

    def __init__(self) -> None:
        self.reader: ElementReader | None = None
        self.found: PixelElement | None = None

    def element(self, tag: int, vr: bytes, length: int) -> None:
        self._note(tag, vr, length, False)

    def fragments(self, tag: int, vr: bytes) -> None:
        self._note(tag, vr, 0, True)

    def _note(self, tag: int, vr: bytes, length: int, encapsulated: bool) -> None:
        reader = self.reader
        # Fragments are told of once they are open, one level down.
        if tag >> 16 != PIXEL_GROUP or tag not in _PIXELS or reader is None or self.found is not None:
            return
        if reader.depth == int(encapsulated):
            self.found = PixelElement(tag, vr.decode("latin-1"), reader.offset_bytes, length, encapsulated)

    def value(self, piece: memoryview) -> None:
        pass

    def sequence(self, tag: int, vr: bytes, length: int) -> None:
        pass

    def end_sequence(self, delimited: bool) -> None:
        pass

    def item(self, length: int) -> None:
        pass

    def end_item(self) -> None:
        pass

    def fragment(self, length: int) -> None:
        pass

    def end_fragments(self) -> None:
        pass


def _path_of(source: Source) -> Path:
    if isinstance(source, str | os.PathLike):
        return Path(source)
    return Path(source.path)


def _mapped(descriptor: int, size_bytes: int) -> memoryview:
    """The file's bytes; an empty file cannot be mapped."""
    if not size_bytes:
        return memoryview(b"")
    return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))


def _inflated(stored: memoryview) -> memoryview:
    """A deflated data set, inflated into an unnamed file. Raises UnreadableDataset."""
    inflate = BoundedInflate(_LIMITS.max_inflate_ratio, 0, _LIMITS.inflate_grace_bytes)
    with TemporaryFile() as file:
        for piece in inflate.feed(stored):
            file.write(piece)
        inflate.finish()
        file.flush()
        return _mapped(file.fileno(), inflate.inflated_bytes)
