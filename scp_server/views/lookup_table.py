"""Lookup tables: LUT data, and the palettes of pseudo-colour (PS3.3 C.11.1, C.7.6.3.1.5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scp_server.objects.raw_header import AttributeSource
from scp_server.objects.vr import little_endian_words, tag_text
from scp_server.views.arrays import numpy
from scp_server.views.fields import text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scp_server.views.stored_file import StoredFile


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A table of entries; the first is for `first_value` and all below, the last for all above the last."""

    first_value: int
    bits: int
    """Bits of an entry."""
    entries: tuple[int, ...] = field(repr=False)
    explanation: str = ""

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """The entries for these values."""
        module = numpy()
        table = module.array(self.entries, "u1" if self.bits <= 8 else "u2")
        places = module.clip(values.astype("i8") - self.first_value, 0, len(self.entries) - 1)
        found: NDArray[Any] = table[places]
        return found


def read_lookup_table(
    file: StoredFile, source: AttributeSource, descriptor: int, data: int, explanation: int = 0
) -> LookupTable | None:
    """The table that two elements make; None where one is absent. Raises CannotView where they disagree."""
    described = [value for value in source.value(descriptor) if isinstance(value, int)]
    if len(described) != 3 or data not in source:
        return None
    count, first, bits = described
    if not 1 <= bits <= 16:
        raise file.error(f"{tag_text(descriptor)} says {bits} bits for an entry")
    # Zero says 65536, which 16 bits cannot (PS3.3 C.11.1.1).
    count = count % 65_536 or 65_536
    value = little_endian_words(source.vr(data) or "OW", file.value(source, data), source.little_endian)
    entry_bytes = 1 if bits <= 8 and len(value) in (count, count + 1) else 2
    if len(value) < count * entry_bytes:
        raise file.error(f"{tag_text(data)} has {len(value)} bytes, too few for {count} entries")
    # The DICOS toolkit writes entries of 8 bits into both bytes of a word.
    entries = tuple(
        int.from_bytes(value[start : start + entry_bytes], "little") & ((1 << bits) - 1)
        for start in range(0, count * entry_bytes, entry_bytes)
    )
    return LookupTable(first, bits, entries, text(source, explanation) if explanation else "")
