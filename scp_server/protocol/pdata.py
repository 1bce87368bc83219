"""P-DATA-TF without assembling it: PDV items and messages from bytes cut anywhere (PS3.8 9.3.5, Annex E).

A message is a command set and, where the command announces one, a data set. The parser holds at most one
command set and six bytes of a PDV item's header. Fragments of a data set are handed on as views of what
came in, as it comes in, so that neither a PDU nor a PDV of 4 GiB costs memory.

Where the command set ends. PS3.8 E.2 ends it with the last-fragment bit of a command PDV. DICOS scanners
send command set and data set as one stream that never sets that bit for the command: one PDV with header
03 that holds both, or a first PDV 01 (command, not last) with the command set and the first bytes of the
data set, then 00 ... 02. So the command set ends where its own Command Group Length (0000,0000) says, and

- surplus bytes in the command's PDV are the start of the data set, if the command announces one; when that
  PDV had the last bit, the data set ends with it, otherwise data PDVs follow;
- a command PDV without the last bit that ends exactly there is taken as whole; data PDVs may follow, or an
  empty command PDV with the last bit;
- with a missing or too long group length the last bit decides, and the elements must fill what came.

Everything that breaks these rules is a ProtocolError with the A-ABORT it deserves: source 2, and reason 6
(invalid parameter value) for what is malformed, or 5 (unexpected parameter) for what comes out of order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container
from enum import Enum

from scp_server.errors import ProtocolError
from scp_server.protocol.command import decode_command
from scp_server.protocol.events import CommandReceived, DatasetFragment
from scp_server.protocol.limits import Limits
from scp_server.protocol.pdu import AbortReason

PDV_HEADER = struct.Struct(">IBB")
"""Item length (not counting itself), presentation context id, message control header (PS3.8 9.3.5.1)."""
PDV_LENGTH_OVERHEAD = 2
"""What the item length counts besides the fragment: the context id and the control header."""
COMMAND_FRAGMENT = 0x01
"""Message control header, bit 0: the fragment belongs to a command set (PS3.8 E.2)."""
LAST_FRAGMENT = 0x02
"""Message control header, bit 1: the last fragment of its command set or data set (PS3.8 E.2)."""

_GROUP_LENGTH = struct.Struct("<HHII")
_GROUP_LENGTH_HEADER = (0x0000, 0x0000, 4)
_NO_CONTEXT = 0

MessageEvent = CommandReceived | DatasetFragment


class _Phase(Enum):
    BETWEEN_MESSAGES = "between messages"
    COMMAND = "command set"
    DATASET = "data set"


def _invalid(text: str) -> ProtocolError:
    return ProtocolError(text, reason=AbortReason.INVALID_PDU_PARAMETER_VALUE)


def _out_of_order(text: str) -> ProtocolError:
    return ProtocolError(text, reason=AbortReason.UNEXPECTED_PDU_PARAMETER)


class PDataParser:
    """Turns the bodies of successive P-DATA-TF PDUs into `CommandReceived` and `DatasetFragment` events.

    `emit` is called in the order of the wire. `contexts` holds the accepted presentation context ids.
    After a ProtocolError the parser must not be fed again.
    """

    __slots__ = (
        "_command",
        "_command_end",
        "_context_id",
        "_contexts",
        "_emit",
        "_empty_fragments",
        "_end_is_declared",
        "_header",
        "_last",
        "_limits",
        "_pdu_left",
        "_pdv_left",
        "_phase",
        "_unclosed_context_id",
        "paused",
        "whole_messages",
    )

    def __init__(
        self, limits: Limits, contexts: Container[int], emit: Callable[[MessageEvent], None]
    ) -> None:
        self._limits = limits
        self._contexts = contexts
        self._emit = emit
        self._pdu_left = 0
        self._pdv_left = 0
        self._header = bytearray()
        self._last = False
        self._phase = _Phase.BETWEEN_MESSAGES
        self._context_id = _NO_CONTEXT
        self._command = bytearray()
        self._command_end = _GROUP_LENGTH.size
        self._end_is_declared = False
        self._unclosed_context_id = _NO_CONTEXT
        self._empty_fragments = 0
        self.whole_messages = 0
        """How many messages have arrived whole."""
        self.paused = False
        """Set by `emit` to have no more taken; by the owner to go on."""

    @property
    def in_message(self) -> bool:
        """A message has begun and is not whole yet."""
        return self._phase is not _Phase.BETWEEN_MESSAGES

    def begin_pdu(self, length: int) -> None:
        """A P-DATA-TF of `length` bytes after its header begins; the one before it has been fed whole."""
        self._pdu_left = length

    def feed(self, view: memoryview, offset: int, stop: int) -> int:
        """Take the next bytes of the PDU, `view[offset:stop]`, never beyond its end. Raises ProtocolError.

        Returns up to where it took them: `stop`, unless it is `paused`.
        """
        self._pdu_left -= stop - offset
        while offset < stop and not self.paused:
            if self._pdv_left == 0:
                offset = self._read_header(view, offset, stop)
                continue
            end = offset + self._pdv_left
            end = min(end, stop)
            if self._phase is _Phase.DATASET:
                self._pdv_left -= end - offset
                last = self._last and self._pdv_left == 0
                self._emit(DatasetFragment(self._context_id, view[offset:end], last))
                if last:
                    self._end_message()
                offset = end
            else:
                offset = self._read_command(view, offset, end)
        self._pdu_left += stop - offset
        return offset

    def _read_header(self, view: memoryview, offset: int, stop: int) -> int:
        header = self._header
        if not header and stop - offset >= PDV_HEADER.size:
            length, context_id, control = PDV_HEADER.unpack_from(view, offset)
            offset += PDV_HEADER.size
        else:
            end = min(offset + PDV_HEADER.size - len(header), stop)
            header += view[offset:end]
            if len(header) < PDV_HEADER.size:
                return end
            length, context_id, control = PDV_HEADER.unpack(header)
            header.clear()
            offset = end
        self._begin_pdv(length, context_id, control, self._pdu_left + stop - offset)
        return offset

    def _begin_pdv(self, length: int, context_id: int, control: int, pdu_left: int) -> None:
        """Judge a PDV item by its header; `pdu_left` counts the PDU's bytes after that header."""
        size = length - PDV_LENGTH_OVERHEAD
        after = pdu_left - size
        if size < 0:
            raise _invalid(f"PDV item length {length} is too short")
        if after < 0:
            raise _invalid(f"PDV item length {length} reaches beyond its PDU")
        if 0 < after < PDV_HEADER.size:
            raise _invalid(f"{after} bytes behind the last PDV item of a PDU")
        if context_id not in self._contexts:
            raise _invalid(f"presentation context {context_id} was not accepted")
        self._last = bool(control & LAST_FRAGMENT)
        is_command = bool(control & COMMAND_FRAGMENT)
        if self._phase is _Phase.BETWEEN_MESSAGES:
            if not is_command:
                raise _out_of_order("a data set fragment without a command set")
            if size or context_id != self._unclosed_context_id:
                self._begin_message(context_id)
        elif context_id != self._context_id:
            raise _out_of_order(f"context {context_id} inside a message on context {self._context_id}")
        elif is_command is not (self._phase is _Phase.COMMAND) and not (
            is_command and self._closes_command(size)
        ):
            raise _out_of_order(
                f"{'command' if is_command else 'data'} fragment inside a {self._phase.value}"
            )
        if not is_command:
            self._unclosed_context_id = _NO_CONTEXT
        if size:
            self._pdv_left = size
        else:
            self._empty_pdv(is_command)

    def _closes_command(self, size: int) -> bool:
        """Whether a command PDV of `size` bytes only brings the last bit that a whole command set lacked."""
        return size == 0 and self._unclosed_context_id == self._context_id

    def _begin_message(self, context_id: int) -> None:
        self._phase = _Phase.COMMAND
        self._context_id = context_id
        self._command_end = _GROUP_LENGTH.size
        self._end_is_declared = False
        self._unclosed_context_id = _NO_CONTEXT
        self._empty_fragments = 0

    def _empty_pdv(self, is_command: bool) -> None:
        self._empty_fragments += 1
        if self._empty_fragments > self._limits.max_empty_fragments:
            raise _invalid(f"more than {self._limits.max_empty_fragments} empty fragments in one message")
        if not self._last:
            return
        if self._phase is _Phase.COMMAND:
            self._end_command(surplus=0)
        elif is_command:
            self._unclosed_context_id = _NO_CONTEXT
        else:
            self._emit(DatasetFragment(self._context_id, memoryview(b""), True))
            self._end_message()

    def _read_command(self, view: memoryview, offset: int, stop: int) -> int:
        """Take bytes of the command set from the current PDV, up to its end and not a byte of a data set."""
        command = self._command
        end = min(offset + self._command_end - len(command), stop)
        command += view[offset:end]
        self._pdv_left -= end - offset
        if len(command) == self._command_end and not self._end_is_declared:
            self._find_command_end()
        if len(command) > self._limits.max_command_bytes:
            raise _invalid(f"a command set longer than {self._limits.max_command_bytes} bytes")
        if self._end_is_declared and len(command) == self._command_end:
            self._end_command(surplus=self._pdv_left)
        elif self._last and self._pdv_left == 0:
            self._end_command(surplus=0)
        return end

    def _find_command_end(self) -> None:
        """Having the first twelve bytes, learn the command set's end from its group length, if it has one."""
        *header, length = _GROUP_LENGTH.unpack_from(self._command)
        end = _GROUP_LENGTH.size + length
        self._end_is_declared = (
            tuple(header) == _GROUP_LENGTH_HEADER and end <= self._limits.max_command_bytes
        )
        self._command_end = end if self._end_is_declared else self._limits.max_command_bytes + 1

    def _end_command(self, surplus: int) -> None:
        """The command set is whole, `surplus` bytes before the end of its PDV. Raises ProtocolError."""
        message = decode_command(bytes(self._command))
        self._command = bytearray()
        if surplus and not message.has_dataset:
            raise _invalid(f"{surplus} bytes behind a command set that announces no data set")
        if not surplus and not self._last:
            self._unclosed_context_id = self._context_id
        self._emit(CommandReceived(self._context_id, message, glued=surplus > 0))
        if message.has_dataset:
            self._phase = _Phase.DATASET
        else:
            self._end_message()

    def _end_message(self) -> None:
        self._phase = _Phase.BETWEEN_MESSAGES
        self.whole_messages += 1
