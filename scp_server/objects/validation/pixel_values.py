"""How long an object's pixel data is, found by walking through its elements; no pixel is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scp_server.errors import CannotTranscode, UnreadableDataset
from scp_server.objects.element_stream import ElementReader
from scp_server.objects.header_tap import DEFAULT_LIMITS, TapLimits
from scp_server.objects.inflate import BoundedInflate
from scp_server.objects.uids import TransferSyntax

if TYPE_CHECKING:
    from scp_server.objects.validation.steps import Steps
    from scp_server.protocol.events import Buffer

PIXEL_VALUES: Final = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010, 0x7FE00011, 0x7FE00012, 0x7FE00013))
"""Float, double and integer pixel data, and DICOS's of 32 bits, 64 bits and float."""


@dataclass(frozen=True, slots=True)
class PixelValue:
    """One value of pixels: its length, or for an encapsulated one that of its fragments and their number.

    The offset table is not counted.
    """

    tag: int
    length_bytes: int
    fragments: int | None = None


class PixelMeasure:
    """Measures the pixel data of one data set that arrives in pieces, cut anywhere.

    Give it every piece with `steps`, then ask `finish`. It raises nothing: a data set that it cannot follow
    has no answer. Whether a data set can be read at all is `HeaderTap`'s to say.
    """

    def __init__(
        self, syntax: TransferSyntax, dataset_bytes: int | None = None, limits: TapLimits = DEFAULT_LIMITS
    ) -> None:
        self._inflate = (
            BoundedInflate(limits.max_inflate_ratio, limits.max_inflated_bytes, limits.inflate_grace_bytes)
            if syntax.deflated
            else None
        )
        self._found = _PixelListener()
        self._reader = ElementReader(syntax, self._found, None if syntax.deflated else dataset_bytes)
        self._is_lost = False

    def steps(self, data: Buffer) -> Steps:
        """Take the data set's next bytes."""
        if self._is_lost:
            return
        try:
            for piece in (data,) if self._inflate is None else self._inflate.feed(data):
                yield from self._reader.feeding(piece)
        except (CannotTranscode, UnreadableDataset):
            self._is_lost = True

    def finish(self) -> tuple[PixelValue, ...] | None:
        """The data set has ended: its pixel values, none of them or several; None where that is not known."""
        try:
            self._reader.finish()
        except (CannotTranscode, UnreadableDataset):
            self._is_lost = True
        return None if self._is_lost else tuple(self._found.values)


class _PixelListener:
    """An `ElementListener` that remembers the pixel values of the data set itself."""

    def __init__(self) -> None:
        self.values: list[PixelValue] = []
        self._depth = 0
        self._tag = 0
        self._fragments = -1
        self._length_bytes = 0

    def element(self, tag: int, vr: bytes, length: int) -> None:
        if not self._depth and tag in PIXEL_VALUES and len(self.values) < len(PIXEL_VALUES):
            self.values.append(PixelValue(tag, length))

    def value(self, piece: memoryview) -> None: ...

    def sequence(self, tag: int, vr: bytes, length: int) -> None:
        self._depth += 1

    def end_sequence(self, delimited: bool) -> None:
        self._depth -= 1

    def item(self, length: int) -> None: ...

    def end_item(self) -> None: ...

    def fragments(self, tag: int, vr: bytes) -> None:
        self._tag, self._fragments, self._length_bytes = tag, -1, 0

    def fragment(self, length: int) -> None:
        self._fragments += 1
        if self._fragments:
            self._length_bytes += length

    def end_fragments(self) -> None:
        if not self._depth and self._tag in PIXEL_VALUES and len(self.values) < len(PIXEL_VALUES):
            self.values.append(PixelValue(self._tag, self._length_bytes, max(0, self._fragments)))
