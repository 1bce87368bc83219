"""Part 10 files: the preamble and File Meta Information before a data set, written and read (PS3.10 7.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from scp_server.objects.uids import PRIVATE_INFORMATION_CREATOR_UID, clean_uid
from scp_server.objects.vr import LONG_FORM_VRS, SHORT_FORM_VRS
from scp_server.protocol.negotiation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

PREAMBLE_BYTES: Final = 132
"""128 free bytes and the prefix `DICM`."""
MAX_FILE_META_BYTES: Final = 1_048_576
"""Longest preamble and File Meta that `read_file_meta` follows; real ones have a few hundred bytes."""
DICOS_VERSION_BYTES: Final = 4
"""Length of the value that is reserved for (0002,0004) and patched before commit."""

_PREAMBLE = bytes(128) + b"DICM"
_TAG_FILE_META_GROUP_LENGTH = 0x0000
_FILE_META_GROUP = 0x0002
_FILE_META_VERSION = b"\x02\x00\x01\x00OB\0\0\x02\0\0\0\x00\x01"
_SHORT = struct.Struct("<HH2sH")
_GROUP_LENGTH = struct.Struct("<HH2sHI")
_LENGTH = struct.Struct("<I")

_RECORD = struct.Struct("<4sBBQ")
"""(0002,0102): name, version, length of the arrival id, nanoseconds since the epoch; then the arrival id.
Of an object that was changed on arrival there follow algorithm and digest of what was received, each behind
its length in one byte, else a length of 0; of a DICOS object sending and receiving AE title in the same way.
Versions that know nothing of that pass over it."""
_RECORD_NAME = b"SCPS"
_RECORD_VERSION = 1
_MAX_RECORDED = 255
"""Bytes of a value whose length has one byte."""


@dataclass(frozen=True, slots=True)
class FileMetaBytes:
    """What lies before a data set in its file: preamble, prefix and group 0002.

    `dicos_version_offset_bytes` is where the 4-byte value of (0002,0004) begins, None where there is none.
    """

    data: bytes
    dicos_version_offset_bytes: int | None


class ReceivedDigest(NamedTuple):
    """The digest of a data set as it was received, where it was changed before it was stored."""

    algorithm: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What a file's meta information says. UIDs are cleaned, texts stripped; absent ones are empty.

    `arrival_id` and `received_at_ns` are None in files that this server did not write, `received_digest` also
    where the data set is what was received.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dicos_version: str
    implementation_class_uid: str
    implementation_version_name: str
    source_ae_title: str
    sending_ae_title: str
    receiving_ae_title: str
    arrival_id: str | None
    received_at_ns: int | None
    received_digest: ReceivedDigest | None
    dataset_offset_bytes: int


def dicos_version_value(version: str | None) -> bytes:
    """The 4 bytes for a reserved (0002,0004): padded, blank where the version is absent or does not fit."""
    raw = (version or "").encode("latin-1", "replace")
    return raw.ljust(DICOS_VERSION_BYTES) if len(raw) <= DICOS_VERSION_BYTES else b" " * DICOS_VERSION_BYTES


def file_meta(
    *,
    sop_class_uid: str,
    sop_instance_uid: str,
    transfer_syntax_uid: str,
    dicos_version: str | None = None,
    reserve_dicos_version: bool = False,
    source_ae_title: str = "",
    sending_ae_title: str = "",
    receiving_ae_title: str = "",
    received_at_ns: int = 0,
    arrival_id: str = "",
    received_digest: ReceivedDigest | None = None,
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID,
    implementation_version_name: str = IMPLEMENTATION_VERSION_NAME,
) -> FileMetaBytes:
    """Preamble and File Meta Information of a file about to be written (PS3.10 7.1).

    AE titles may be any peer's text: what a title cannot hold becomes `?`, and 16 characters are kept.
    (0002,0004), which only DICOS has, is written when `dicos_version` is given or `reserve_dicos_version`
    is set. The File Meta of DICOS has neither (0002,0017) nor (0002,0018), and its readers may refuse a file
    that does: there sending and receiving AE title go to the private record. `arrival_id` (ASCII, at most
    255) and `received_at_ns` (nanoseconds since the epoch, UTC) go there always, so that the order of arrival
    survives the index; `received_digest`, too, by which an object that was changed on arrival is known.
    Without an arrival id there is no record. Raises ValueError
    when a UID or what is to be recorded cannot be written.
    """
    parts = [
        _FILE_META_VERSION,
        _short(0x0002, b"UI", _uid(sop_class_uid)),
        _short(0x0003, b"UI", _uid(sop_instance_uid)),
    ]
    offset = None
    if dicos_version is not None or reserve_dicos_version:
        value = dicos_version_value(dicos_version)
        offset = PREAMBLE_BYTES + _GROUP_LENGTH.size + sum(map(len, parts)) + _SHORT.size
        parts.append(_short(0x0004, b"CS", value))
    parts.append(
        _constant_elements(transfer_syntax_uid, implementation_class_uid, implementation_version_name)
    )
    is_recorded = offset is not None and bool(arrival_id)
    titles = (sending_ae_title, receiving_ae_title)
    parts.append(_ae_title_elements(source_ae_title, *(("", "") if is_recorded else titles)))
    if arrival_id:
        recorded = titles if is_recorded else ()
        parts.append(_record_elements(arrival_id, received_at_ns, received_digest, recorded))
    body = b"".join(parts)
    length = _GROUP_LENGTH.pack(_FILE_META_GROUP, _TAG_FILE_META_GROUP_LENGTH, b"UL", 4, len(body))
    return FileMetaBytes(b"".join((_PREAMBLE, length, body)), offset)


def _short(element: int, vr: bytes, value: bytes) -> bytes:
    return _SHORT.pack(_FILE_META_GROUP, element, vr, len(value)) + value


def _uid(uid: str) -> bytes:
    if not uid.isascii() or len(uid) > 1024:
        raise ValueError("a UID for the File Meta Information is not ASCII text")
    raw = uid.encode("ascii")
    return raw + b"\0" if len(raw) & 1 else raw


@lru_cache(maxsize=256)
def _constant_elements(transfer_syntax_uid: str, class_uid: str, version_name: str) -> bytes:
    version = version_name.encode("ascii")[:16]
    return (
        _short(0x0010, b"UI", _uid(transfer_syntax_uid))
        + _short(0x0012, b"UI", _uid(class_uid))
        + _short(0x0013, b"SH", version + b" " * (len(version) & 1))
    )


@lru_cache(maxsize=256)
def _ae_title_elements(source: str, sending: str, receiving: str) -> bytes:
    """(0002,0016), (0002,0017) and (0002,0018); an empty title is left out."""
    return b"".join(
        _short(element, b"AE", _ae_title(title))
        for element, title in ((0x0016, source), (0x0017, sending), (0x0018, receiving))
        if title.strip()
    )


def _ae_title(title: str) -> bytes:
    """AE allows the default repertoire without backslash and control characters (PS3.5 6.2)."""
    safe = "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in title.strip()[:16])
    return (safe + " " * (len(safe) & 1)).encode("ascii")


_PRIVATE_CREATOR = _short(0x0100, b"UI", _uid(PRIVATE_INFORMATION_CREATOR_UID))


def _record_elements(
    arrival_id: str, received_at_ns: int, received: ReceivedDigest | None, titles: tuple[str, ...]
) -> bytes:
    arrival = arrival_id.encode("ascii")
    if len(arrival) > _MAX_RECORDED or not 0 <= received_at_ns < 1 << 64:
        raise ValueError("arrival id or receive time cannot be recorded")
    record = _RECORD.pack(_RECORD_NAME, _RECORD_VERSION, len(arrival), received_at_ns) + arrival
    for value in () if received is None else (received.algorithm.encode("ascii"), received.digest):
        if not 0 < len(value) <= _MAX_RECORDED:
            raise ValueError("the digest cannot be recorded")
        record += bytes([len(value)]) + value
    if titles and received is None:
        record += b"\0"
    for title in titles:
        value = _ae_title(title) or b" "
        record += bytes([len(value)]) + value
    record += b"\0" * (len(record) & 1)
    return b"".join((_PRIVATE_CREATOR, b"\x02\x00\x02\x01OB\0\0", _LENGTH.pack(len(record)), record))


def read_file_meta(buffer: bytes) -> FileMeta:
    """Read a file's meta information from its first bytes (all of it, or at least the first 1 MiB).

    Group 0002 is followed element by element, so a missing or wrong group length does no harm.
    Raises ValueError, naming what is wrong, when this is no Part 10 file, when the meta information is cut
    or malformed, or when it does not name a transfer syntax.
    """
    if buffer[128:PREAMBLE_BYTES] != b"DICM":
        raise ValueError("not a DICOM Part 10 file: no DICM prefix after 128 bytes")
    values, position = _read_elements(buffer)
    transfer_syntax_uid = clean_uid(values.get(0x0010, b""))
    if not transfer_syntax_uid:
        raise ValueError("the File Meta Information has no Transfer Syntax UID (0002,0010)")
    record = _read_record(values)
    return FileMeta(
        sop_class_uid=clean_uid(values.get(0x0002, b"")),
        sop_instance_uid=clean_uid(values.get(0x0003, b"")),
        transfer_syntax_uid=transfer_syntax_uid,
        dicos_version=_text(values, 0x0004),
        implementation_class_uid=clean_uid(values.get(0x0012, b"")),
        implementation_version_name=_text(values, 0x0013),
        source_ae_title=_text(values, 0x0016),
        sending_ae_title=_text(values, 0x0017) or record.sending_ae_title,
        receiving_ae_title=_text(values, 0x0018) or record.receiving_ae_title,
        arrival_id=record.arrival_id,
        received_at_ns=record.received_at_ns,
        received_digest=record.received_digest,
        dataset_offset_bytes=position,
    )


def _read_elements(buffer: bytes) -> tuple[dict[int, bytes], int]:
    """Group 0002's values by element number, each one's first occurrence, and where the group ends."""
    values: dict[int, bytes] = {}
    position = PREAMBLE_BYTES
    while position < len(buffer) and buffer[position : position + 2] == b"\x02\0":
        if position + 8 > len(buffer):
            raise ValueError(f"the File Meta Information is cut at byte {position}")
        _, element, vr, length = _SHORT.unpack_from(buffer, position)
        start = position + 8
        if vr in LONG_FORM_VRS:
            if position + 12 > len(buffer):
                raise ValueError(f"the File Meta Information is cut at byte {position}")
            (length,) = _LENGTH.unpack_from(buffer, start)
            start += 4
        elif vr not in SHORT_FORM_VRS:
            raise ValueError(
                f"the File Meta Information is malformed at (0002,{element:04X}), byte {position}"
            )
        end = start + length
        if end > MAX_FILE_META_BYTES:
            raise ValueError(f"(0002,{element:04X}) ends beyond the first {MAX_FILE_META_BYTES} bytes")
        if end > len(buffer):
            raise ValueError(f"the File Meta Information is cut in (0002,{element:04X}), byte {position}")
        values.setdefault(element, bytes(buffer[start:end]))
        position = end
    if len(buffer) - position == 1:
        raise ValueError(f"the File Meta Information is cut at byte {position}")
    return values, position


class _Record(NamedTuple):
    """What our private record says."""

    arrival_id: str | None = None
    received_at_ns: int | None = None
    received_digest: ReceivedDigest | None = None
    sending_ae_title: str = ""
    receiving_ae_title: str = ""


def _read_record(values: dict[int, bytes]) -> _Record:
    """Our own record, where it lies there whole."""
    record = values.get(0x0102, b"")
    creator = clean_uid(values.get(0x0100, b""))
    if creator != PRIVATE_INFORMATION_CREATOR_UID or len(record) < _RECORD.size:
        return _Record()
    name, version, length, received_at_ns = _RECORD.unpack_from(record)
    arrival = record[_RECORD.size : _RECORD.size + length]
    if name != _RECORD_NAME or version != _RECORD_VERSION or len(arrival) != length or not arrival.isascii():
        return _Record()
    rest = record[_RECORD.size + length :]
    digest: ReceivedDigest | None = None
    if rest[:1] == b"\0":
        rest = rest[1:]
    else:
        (algorithm, value), rest = _read_pair(rest)
        if algorithm and value and algorithm.isascii():
            digest = ReceivedDigest(algorithm.decode("ascii"), value)
    titles, _ = _read_pair(rest)
    sending, receiving = (title.decode("latin-1").strip(" \0") for title in titles)
    return _Record(arrival.decode("ascii"), received_at_ns, digest, sending, receiving)


def _read_pair(data: bytes) -> tuple[tuple[bytes, bytes], bytes]:
    """Two values, each behind its length, and what follows; empty ones where they are not there whole."""
    found: list[bytes] = []
    position = 0
    while len(found) < 2:
        if position >= len(data) or not data[position]:
            return (b"", b""), b""
        end = position + 1 + data[position]
        if end > len(data):
            return (b"", b""), b""
        found.append(data[position + 1 : end])
        position = end
    return (found[0], found[1]), data[position:]


def _text(values: dict[int, bytes], element: int) -> str:
    return values.get(element, b"").decode("latin-1").strip(" \0")
