"""What one association sends: PDUs in order, messages cut to the peer's maximum length (PS3.8 D.1, E.1).

Data sets are not copied: a header, then a view of what was given. Every P-DATA-TF carries one PDV item.
Fragments have an even length, except the last of an odd data set.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from scp_server.errors import LocalProtocolError
from scp_server.protocol.command import encode_command
from scp_server.protocol.events import Buffer
from scp_server.protocol.message import Message
from scp_server.protocol.pdata import COMMAND_FRAGMENT, LAST_FRAGMENT, PDV_HEADER, PDV_LENGTH_OVERHEAD
from scp_server.protocol.pdu import PDUType

LARGEST_PDU_LENGTH = 131_072
"""Longest P-DATA-TF we send, without its header, whatever the peer allows."""
SMALLEST_PDU_LENGTH = PDV_HEADER.size + 2
"""Below this a peer's maximum length leaves no room for an even fragment."""
COPIED_FRAGMENT_BYTES = 4096
"""Fragments up to this size are copied behind their headers: that is cheaper than two buffers for each."""

_HEADERS = struct.Struct(">BxIIBB")
"""The headers of a P-DATA-TF and of its only PDV item."""


def fragment_bytes(maximum_length: int) -> int:
    """The longest fragment, an even number, for a peer's maximum length (0: no limit)."""
    length = min(maximum_length or LARGEST_PDU_LENGTH, LARGEST_PDU_LENGTH)
    return (length - PDV_HEADER.size) & ~1


def _headers(context_id: int, control: int, size: int) -> bytes:
    return _HEADERS.pack(
        PDUType.P_DATA_TF, PDV_HEADER.size + size, PDV_LENGTH_OVERHEAD + size, context_id, control
    )


@dataclass(slots=True)
class DatasetCutter:
    """Cuts one data set, given in pieces of any length, into PDUs.

    An odd piece leaves its last byte behind, which goes out in front of the next one. `glued_command` is a
    command set that goes out in front of the first piece, in the same stream of PDVs, as from DICOS scanners.
    """

    context_id: int
    fragment_bytes: int
    glued_command: bytes = b""
    _carried: bytes = b""

    def cut(self, data: Buffer, *, last: bool) -> list[bytes | memoryview]:
        """The PDUs for the next piece; headers are new, the rest are views of `data`."""
        view = memoryview(data).cast("B")
        if self.glued_command:
            return self._cut_glued(view, last=last)
        carried, self._carried = self._carried, b""
        if not last:
            if (len(carried) + len(view)) % 2:
                if not view:
                    self._carried = carried
                    return []
                self._carried = bytes(view[-1:])
                view = view[:-1]
            if not carried and not view:
                return []
        return _cut(self.context_id, 0, self.fragment_bytes, carried, view, last)

    def _cut_glued(self, view: memoryview, *, last: bool) -> list[bytes | memoryview]:
        """The command set and the first piece: a fragment that begins in the command set is marked as one."""
        command, self.glued_command = self.glued_command, b""
        stream = memoryview(command + view)
        if not last and len(stream) % 2:
            self._carried, stream = bytes(stream[-1:]), stream[:-1]
        pieces: list[bytes | memoryview] = []
        for start in range(0, len(stream), self.fragment_bytes):
            fragment = stream[start : start + self.fragment_bytes]
            is_last = last and len(view) > 0 and start + len(fragment) == len(stream)
            control = (COMMAND_FRAGMENT if start < len(command) else 0) | (LAST_FRAGMENT if is_last else 0)
            pieces += [_headers(self.context_id, control, len(fragment)), fragment]
        if last and not view:
            # Of an empty data set, too, the end is a fragment of its own: it must not end the command set.
            pieces.append(_headers(self.context_id, LAST_FRAGMENT, 0))
        return pieces


def cut_command(context_id: int, command: bytes, maximum_fragment_bytes: int) -> list[bytes | memoryview]:
    """The PDUs of one command set."""
    return _cut(context_id, COMMAND_FRAGMENT, maximum_fragment_bytes, b"", memoryview(command), True)


def _cut(
    context_id: int, control: int, maximum_bytes: int, carried: bytes, view: memoryview, last: bool
) -> list[bytes | memoryview]:
    """PDUs for `carried` (at most one byte) followed by `view`."""
    left = len(carried) + len(view)
    offset = 0
    pieces: list[bytes | memoryview] = []
    while True:
        size = min(left, maximum_bytes)
        left -= size
        is_last = last and left == 0
        end = offset + size - len(carried)
        pieces.append(_headers(context_id, control | (LAST_FRAGMENT if is_last else 0), size) + carried)
        if end > offset:
            pieces.append(view[offset:end])
        offset, carried = end, b""
        if left == 0:
            break
    if maximum_bytes <= COPIED_FRAGMENT_BYTES or offset <= COPIED_FRAGMENT_BYTES:
        return [b"".join(pieces)]
    return pieces


class Outbox:
    """The bytes that wait to be written, and the data set that is still owed on the wire."""

    __slots__ = ("_dataset", "_is_final", "_pieces", "peer_maximum_length")

    def __init__(self) -> None:
        self._pieces: list[bytes | memoryview] = []
        self._is_final = False
        self._dataset: DatasetCutter | None = None
        self.peer_maximum_length = 0
        """Longest P-DATA-TF the peer takes, without its header; 0 is no limit."""

    @property
    def inside_dataset(self) -> bool:
        """A command set announced a data set whose last piece has not been queued."""
        return self._dataset is not None

    def refuse_inside_dataset(self) -> None:
        """Raises LocalProtocolError while a data set is owed: nothing may come between (PS3.8 E.1)."""
        if self._dataset is not None:
            raise LocalProtocolError(f"a data set is owed on context {self._dataset.context_id}")

    def add(self, pdu: bytes) -> None:
        """Queue a whole PDU."""
        self._pieces.append(pdu)

    def add_last(self, pdu: bytes) -> None:
        """Queue one more PDU behind the last one, unless that has been taken, or this was done before."""
        if not self._is_final:
            self._is_final = True
            self._pieces.append(pdu)

    def add_command(self, context_id: int, message: Message, *, glued: bool = False) -> None:
        """Queue a command set; `glued` leaves it to the first piece of its data set, where it has one.

        Raises LocalProtocolError for what cannot be encoded.
        """
        size = fragment_bytes(self.peer_maximum_length)
        command = encode_command(message)
        if glued and message.has_dataset:
            self._dataset = DatasetCutter(context_id, size, command)
            return
        self._pieces += cut_command(context_id, command, size)
        if message.has_dataset:
            self._dataset = DatasetCutter(context_id, size)

    def add_dataset(self, context_id: int, data: Buffer, *, last: bool) -> None:
        """Queue a piece of the data set that is owed. Raises LocalProtocolError where none is."""
        if self._dataset is None or self._dataset.context_id != context_id:
            raise LocalProtocolError(f"no data set is owed on presentation context {context_id}")
        self._pieces += self._dataset.cut(data, last=last)
        if last:
            self._dataset = None

    def forget_dataset(self) -> None:
        """The association ended: nothing is owed any more."""
        self._dataset = None

    def take(self, *, is_final: bool) -> list[bytes | memoryview]:
        """Everything queued; with `is_final`, nothing will be queued behind it."""
        pieces, self._pieces = self._pieces, []
        self._is_final = is_final
        return pieces
