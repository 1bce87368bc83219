"""The identifier of a query as the bytes of a data set (PS3.4 C.4.1.1.3.1, PS3.5 7)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from scp_server.errors import QueryError
from scp_server.objects.query import Query, QueryItem, QueryKey
from scp_server.objects.query_keys import KeyName
from scp_server.objects.uids import TransferSyntax
from scp_server.objects.vr import CHARACTER_SET_VRS, SHORT_FORM_VRS, TEXT_VRS

_CHARACTER_SET: Final = KeyName(0x00080005, "CS", "SpecificCharacterSet")
_LEVEL: Final = KeyName(0x00080052, "CS", "QueryRetrieveLevel")
_UTF_8: Final = "ISO_IR 192"
_ITEM: Final = b"\xfe\xff\x00\xe0"
_FIRST_BLOCK: Final = 0x10
_LAST_BLOCK: Final = 0xFF
_MAX_SHORT_BYTES: Final = 0xFFFE


def encode_identifier(query: Query, syntax: TransferSyntax) -> bytes:
    """Encode a query in explicit or implicit VR little endian; text beyond ASCII in UTF-8.

    Raises QueryError for a value that is too long, or text where its VR has ASCII only.
    """
    keys = query.keys
    if query.level is not None:
        keys = (QueryKey(_LEVEL, query.level.value), *keys)
    if not _is_ascii(keys):
        keys = (QueryKey(_CHARACTER_SET, _UTF_8), *keys)
    return _encode_item(keys, syntax.implicit_vr)


def _encode_item(keys: QueryItem, implicit: bool) -> bytes:
    elements = {tag: _encode_element(tag, key, implicit) for tag, key in _in_blocks(keys)}
    return b"".join(elements[tag] for tag in sorted(elements))


def _in_blocks(keys: QueryItem) -> Iterator[tuple[int, QueryKey]]:
    """Each key with its whole tag: private ones in a block of their creator, which comes with them."""
    taken = {key.key.tag for key in keys if key.key.creator is None}
    blocks: dict[tuple[int, str], int] = {}
    for key in keys:
        creator = key.key.creator
        if creator is None:
            yield key.key.tag, key
            continue
        group = key.key.tag >> 16
        if (group, creator) not in blocks:
            block = _free_block(key.key, taken)
            blocks[group, creator] = block
            name = KeyName(group << 16 | block, "LO", f"private creator {creator!r}")
            taken.add(name.tag)
            yield name.tag, QueryKey(name, creator)
        yield key.key.tag | blocks[group, creator] << 8, key


def _free_block(name: KeyName, taken: set[int]) -> int:
    """The first block of the group that neither a creator nor an element has (PS3.5 7.8.1)."""
    group = name.tag >> 16
    used = {tag & 0xFFFF for tag in taken if tag >> 16 == group}
    used |= {element >> 8 for element in used}
    for block in range(_FIRST_BLOCK, _LAST_BLOCK + 1):
        if block not in used:
            return block
    raise QueryError(f"{name.name}: no private block is free")


def _encode_element(tag: int, key: QueryKey, implicit: bool) -> bytes:
    name, value = key.key, key.value
    if isinstance(value, tuple):
        items = [_encode_item(item, implicit) for item in value]
        data = b"".join(_ITEM + struct.pack("<I", len(item)) + item for item in items)
    elif isinstance(value, str):
        data = _encode_text(name, value)
    else:
        data = value + b"\0" * (len(value) % 2)
    header = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return header + struct.pack("<I", len(data)) + data
    vr = name.vr.encode("ascii")
    if vr not in SHORT_FORM_VRS:
        return header + vr + struct.pack("<HI", 0, len(data)) + data
    if len(data) > _MAX_SHORT_BYTES:
        raise QueryError(f"{name.name}: the value is longer than {_MAX_SHORT_BYTES} bytes")
    return header + vr + struct.pack("<H", len(data)) + data


def _encode_text(name: KeyName, value: str) -> bytes:
    try:
        data = value.encode("utf-8" if name.vr in CHARACTER_SET_VRS else "ascii")
    except UnicodeEncodeError:
        raise QueryError(f"{name.name}: a value of VR {name.vr} is ASCII") from None
    return data + (b"\0" if name.vr == "UI" else b" ") * (len(data) % 2)


def _is_ascii(keys: QueryItem) -> bool:
    """Whether no text in them, private creators included, needs a character set."""
    for key in keys:
        if not (key.key.creator or "").isascii():
            return False
        if isinstance(key.value, tuple):
            if not all(map(_is_ascii, key.value)):
                return False
        elif isinstance(key.value, str) and key.key.vr in TEXT_VRS and not key.value.isascii():
            return False
    return True
