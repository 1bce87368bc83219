"""Giving a data set another uncompressed transfer syntax as it streams by (PS3.5 7, A.1, A.2, A.5).

Values stay what they are: only their byte order, VRs, lengths and deflation change. Where lengths of
sequences would have to be known ahead, sequences and items are written with undefined length and delimiters,
and group lengths, whose values would be wrong, are left out (both as PS3.5 7.5 and 7.2 allow).
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from scp_server.errors import CannotTranscode
from scp_server.objects.element_headers import ITEM, ITEM_DELIMITER, SEQUENCE_DELIMITER
from scp_server.objects.element_stream import ElementReader
from scp_server.objects.inflate import BoundedInflate
from scp_server.objects.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN_64,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax,
    transfer_syntax,
)
from scp_server.objects.vr import (
    LONG_64_HEADER_BYTES,
    LONG_FORM_VRS,
    SHORT_FORM_VRS,
    UNDEFINED_LENGTH,
    WORD_BYTES,
    header_bytes_by_vr,
    tag_text,
)

if TYPE_CHECKING:
    from scp_server.protocol.events import Buffer

UNCOMPRESSED: Final = (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN_64,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
)
"""The transfer syntaxes that can be made of one another, those that lose least first."""
LONGEST_VALUE_BYTES: Final = 0xFFFFFFFE
"""Longest value outside DICOS's 64-bit transfer syntax (PS3.5 7.1.1)."""
REENCODING_BYTES: Final = 6 << 20
"""Most that is held of one object that is given another transfer syntax: what a piece inflates to, twice."""

_LONGEST_SHORT_VALUE_BYTES: Final = 0xFFFF
_LENGTH_TO_END: Final = 0x00080001
"""Retired, and of the same kind as group lengths."""
_NO_RATIO: Final = 2_000
"""Deflate cannot do more than 1032 to 1: the bounds were applied when the object was received."""
_DEFLATE_LEVEL: Final = 1
"""Three times as fast as the default for a few per cent more bytes."""
_CHUNK_BYTES: Final = 4 << 20
_INFLATE_BYTES: Final = 2_048
_DEFLATE_BYTES: Final = 65_536
"""Most that is deflated in one step."""
_SMALL_BYTES: Final = 4_096
"""Shorter pieces are joined with what is before them."""
_WORD_BYTES: Final = {vr.encode(): size for vr, size in WORD_BYTES.items()}
_KNOWN_VRS: Final = SHORT_FORM_VRS | LONG_FORM_VRS
_ARRAY_CODES: Final = {array(code).itemsize: code for code in "HIQ"}


def is_reencodable(source_uid: str, target_uid: str, dataset_bytes: int | None = None) -> bool:
    """Whether a data set can be given another transfer syntax, as far as that is known ahead.

    `dataset_bytes` is the data set's length as it is stored, where it is known. A longer one than 4 GiB can
    only stay where lengths have 64 bits.
    """
    if source_uid not in UNCOMPRESSED or target_uid not in UNCOMPRESSED:
        return False
    is_long = dataset_bytes is not None and dataset_bytes > LONGEST_VALUE_BYTES
    loses_long_lengths = (
        transfer_syntax(source_uid).long_lengths and not transfer_syntax(target_uid).long_lengths
    )
    return not (is_long and loses_long_lengths)


def reencoder(source_uid: str, target_uid: str, dataset_bytes: int | None = None) -> Reencoder | None:
    """What gives a data set of one transfer syntax the other; None where it is not `is_reencodable`."""
    if not is_reencodable(source_uid, target_uid, dataset_bytes):
        return None
    return Reencoder(transfer_syntax(source_uid), transfer_syntax(target_uid), dataset_bytes)


class Reencoder:
    """Gives one data set another transfer syntax. Its memory is constant, whatever is fed.

    `feed` and `finish` raise UnreadableDataset for damage, and CannotTranscode where a value cannot be said
    in the target: one above 4 GiB, or one of a VR nobody knows whose byte order would change. After that the
    reencoder is of no more use, and what it returned is not a whole data set.
    """

    def __init__(self, source: TransferSyntax, target: TransferSyntax, dataset_bytes: int | None) -> None:
        self._inflate = BoundedInflate(_NO_RATIO, 0, 0) if source.deflated else None
        self._deflater = zlib.compressobj(_DEFLATE_LEVEL, wbits=-zlib.MAX_WBITS) if target.deflated else None
        self._deflated_bytes = 0
        self._writer: ElementWriter | None = None
        if _same_elements(source, target):
            self._reader = None
        else:
            self._writer = ElementWriter(source, target)
            known = None if source.deflated else dataset_bytes
            self._reader = ElementReader(source, self._writer, known)

    @property
    def chunk_bytes(self) -> int:
        """Most to feed at once, so that what it inflates to stays a few MiB."""
        return _INFLATE_BYTES if self._inflate is not None else _CHUNK_BYTES

    def feed(self, data: Buffer) -> list[bytes]:
        """Take the data set's next bytes, and return what can be sent of it."""
        steps = self.feeding(data)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                pieces: list[bytes] = end.value
                return pieces

    def feeding(self, data: Buffer) -> Generator[None, None, list[bytes]]:
        """`feed` in steps of about a millisecond, between two of which others may have their turn."""
        view = memoryview(data)
        if self._inflate is not None:
            parts: Iterable[Buffer] = self._inflate.feed(view)
        elif self._deflater is not None:
            parts = (view[start : start + _DEFLATE_BYTES] for start in range(0, len(view), _DEFLATE_BYTES))
        else:
            parts = (data,)
        pieces: list[bytes] = []
        for part in parts:
            if self._reader is None or self._writer is None:
                pieces += self._deflated([bytes(part)])
                yield
            else:
                yield from self._reader.feeding(part)
                pieces += self._deflated(self._writer.take())
        return pieces

    def finish(self) -> list[bytes]:
        """The data set has ended: return the rest."""
        pieces: list[bytes] = []
        if self._inflate is not None:
            self._inflate.finish()
        if self._reader is not None and self._writer is not None:
            self._reader.finish()
            pieces = self._writer.take()
        pieces = self._deflated(pieces)
        if self._deflater is not None:
            rest = self._deflater.flush()
            # PS3.5 A.5: one NUL makes the length even.
            pieces.append(rest + b"\0" * ((self._deflated_bytes + len(rest)) % 2))
        return pieces

    def _deflated(self, pieces: list[bytes]) -> list[bytes]:
        deflater = self._deflater
        if deflater is None:
            return pieces
        deflated = [piece for piece in map(deflater.compress, pieces) if piece]
        self._deflated_bytes += sum(map(len, deflated))
        return deflated


def _same_elements(source: TransferSyntax, target: TransferSyntax) -> bool:
    """Whether the data sets differ in deflation at most."""
    return source.little_endian == target.little_endian and _same_headers(source, target)


def _same_headers(source: TransferSyntax, target: TransferSyntax) -> bool:
    """Whether each element is as long in one as in the other, so that all lengths stay right."""
    return source.implicit_vr == target.implicit_vr and source.long_lengths == target.long_lengths


def is_length(tag: int) -> bool:
    """Whether an element says how long others are: a group length, or its retired kin (PS3.5 7.2)."""
    return not tag & 0xFFFF or tag == _LENGTH_TO_END


class _Open(NamedTuple):
    """A sequence or an item that is being written."""

    delimited: bool
    """It ends with a delimiter."""
    verbatim: bool
    """What is around it is inside UN: implicit VR little endian, of which nothing changes."""


class ElementWriter:
    """Writes what an `ElementReader` tells in another transfer syntax: an `ElementListener`.

    Raises CannotTranscode for what cannot be said in it.
    """

    def __init__(self, source: TransferSyntax, target: TransferSyntax) -> None:
        self._target = target
        self._order = "<" if target.little_endian else ">"
        self._swaps = source.little_endian != target.little_endian
        self._keeps_lengths = _same_headers(source, target)
        self._header_bytes = header_bytes_by_vr(target)
        self._open: list[_Open] = []
        self._verbatim = False
        self._pieces: list[bytes] = []
        self._small = bytearray()
        self._left = 0
        self._word = 1
        self._cut = b""
        self._skipping = False

    def take(self) -> list[bytes]:
        """What has been written since the last time."""
        self._flush()
        pieces, self._pieces = self._pieces, []
        return pieces

    def element(self, tag: int, vr: bytes, length: int) -> None:
        self._left, self._word, self._cut = length, 1, b""
        self._skipping = is_length(tag) and not self._keeps_lengths and not self._verbatim
        if self._skipping:
            return
        if not self._verbatim and self._swaps:
            if vr not in _KNOWN_VRS and length:
                raise CannotTranscode(
                    f"{tag_text(tag)} has the unknown VR {vr.decode()}: its byte order stays"
                )
            self._word = _WORD_BYTES.get(vr, 1)
        self._header(tag, vr, length)

    def value(self, piece: memoryview) -> None:
        self._left -= len(piece)
        if self._skipping:
            return
        if self._word > 1:
            self._write(self._swapped(piece))
        elif isinstance(piece.obj, bytes) and len(piece.obj) == len(piece):
            self._write(piece.obj)
        else:
            self._write(piece)

    def sequence(self, tag: int, vr: bytes, length: int) -> None:
        length = self._length(length)
        self._header(tag, vr, length)
        self._push(length, self._verbatim or vr == b"UN")

    def end_sequence(self, delimited: bool) -> None:
        # A delimiter that follows a sequence of defined length lies inside that length.
        has_delimiter = delimited and (self._keeps_lengths or self._verbatim)
        if self._open[-1].delimited or has_delimiter:
            self._item_header(SEQUENCE_DELIMITER, 0)
        self._verbatim = self._open.pop().verbatim

    def item(self, length: int) -> None:
        length = self._length(length)
        self._item_header(ITEM, length)
        self._push(length, self._verbatim)

    def end_item(self) -> None:
        if self._open[-1].delimited:
            self._item_header(ITEM_DELIMITER, 0)
        self._verbatim = self._open.pop().verbatim

    def fragments(self, tag: int, vr: bytes) -> None:
        raise CannotTranscode(f"{tag_text(tag)} is encapsulated in an uncompressed transfer syntax")

    def fragment(self, length: int) -> None:
        raise CannotTranscode("a fragment in an uncompressed transfer syntax")

    def end_fragments(self) -> None:
        raise CannotTranscode("fragments in an uncompressed transfer syntax")

    def _length(self, length: int) -> int:
        """The length of a sequence or item in the target."""
        return length if self._verbatim or self._keeps_lengths or not length else UNDEFINED_LENGTH

    def _push(self, length: int, verbatim: bool) -> None:
        self._open.append(_Open(length == UNDEFINED_LENGTH, self._verbatim))
        self._verbatim = verbatim

    def _header(self, tag: int, vr: bytes, length: int) -> None:
        if self._verbatim or self._target.implicit_vr:
            if length > LONGEST_VALUE_BYTES and length != UNDEFINED_LENGTH:
                raise self._too_long(tag)
            self._small += struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length)
            return
        if vr in SHORT_FORM_VRS:
            if length <= _LONGEST_SHORT_VALUE_BYTES:
                self._small += struct.pack(self._order + "HH2sH", tag >> 16, tag & 0xFFFF, vr, length)
                return
            # PS3.5 6.2.2: what is too long for its VR becomes UN, whose value is little endian as it came.
            vr, self._word = b"UN", 1
        where = struct.pack(self._order + "HH2sH", tag >> 16, tag & 0xFFFF, vr, 0)
        if self._header_bytes.get(vr) == LONG_64_HEADER_BYTES:
            self._small += where + struct.pack("<Q", length)
            return
        if length > LONGEST_VALUE_BYTES and length != UNDEFINED_LENGTH:
            raise self._too_long(tag)
        self._small += where + struct.pack(self._order + "I", length)

    def _too_long(self, tag: int) -> CannotTranscode:
        return CannotTranscode(
            f"{tag_text(tag)} has 4 GiB or more, which only DICOS's 64-bit lengths can say"
        )

    def _item_header(self, tag: int, length: int) -> None:
        order = "<" if self._verbatim else self._order
        self._small += struct.pack(order + "HHI", tag >> 16, tag & 0xFFFF, length)

    def _swapped(self, piece: memoryview) -> bytes:
        """The words of the next piece of a value, their bytes the other way round.

        The first bytes of a word that is cut wait for the rest; what is no whole word at a value's end stays.
        """
        data: Buffer = self._cut + bytes(piece) if self._cut else piece
        whole = len(data) - len(data) % self._word
        words = array(_ARRAY_CODES[self._word])
        words.frombytes(data[:whole])
        words.byteswap()
        self._cut = b"" if not self._left else bytes(data[whole:])
        return words.tobytes() if self._left else words.tobytes() + data[whole:]

    def _write(self, piece: Buffer) -> None:
        if len(piece) < _SMALL_BYTES:
            self._small += piece
        else:
            self._flush()
            self._pieces.append(bytes(piece))

    def _flush(self) -> None:
        if self._small:
            self._pieces.append(bytes(self._small))
            self._small = bytearray()
