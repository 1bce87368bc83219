"""Where an object is put: a template of names and fields, and why what it makes is always a safe path.

`{study}/{series}/{instance}` is the default. Fields stand in braces, the rest is taken as it is written, and
the arrival id and `.dcm` end every file's name. So two objects never share a name, and where two values share
a folder that is harmless.

* `{study}`, `{series}` and `{instance}` are hashes of UIDs in small letters, alone in a folder's name. A hash
  that comes first has a folder of its first two digits above it, so that no folder holds all of an archive.
* All other fields are text of the object or its sender. Text in capitals, digits, `_` and `-`, or digits with
  dots between, of at most 64 characters, is taken as it is. Of any other text these characters are kept, in
  capitals, and a `+` and a hash of the whole text follow; so two texts give two names, also on a filesystem
  that knows no difference between small letters and capitals, or between two spellings in Unicode.
* A value that is missing, or a date that is none, is `_NONE`.
* A name that some system keeps for itself, or that could be taken for a hash, has a `_` before it.

Every folder holds objects of one series only, because start-up looks through whole folders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType

from scp_server.storage.base import ObjectKey
from scp_server.storage.layout import (
    MAX_ARRIVAL_ID_CHARACTERS,
    MAX_FOLDERS,
    MAX_LOCATION_CHARACTERS,
    MAX_NAME_CHARACTERS,
    OBJECTS,
    checked_arrival_id,
)

DEFAULT_TEMPLATE = "{study}/{series}/{instance}"
MISSING = "_NONE"

_HASH_BYTES = 10
_SHARD_CHARACTERS = 2
_TEXT_CHARACTERS = 64
_REDUCED_CHARACTERS = 48
_TEXT_HASH_CHARACTERS = 12
_PLAIN = re.compile(r"[0-9A-Z](?:[0-9A-Z_-]*[0-9A-Z])?|[0-9]+(?:\.[0-9]+)*")
_OTHERS = re.compile(r"[^0-9A-Z]+")
_DATE = re.compile(r"([0-9]{4})\.?(0[1-9]|1[0-2])\.?(0[1-9]|[12][0-9]|3[01])")
"""DA (PS3.5 6.2), and its form with dots of ACR-NEMA."""
_SPECIAL = re.compile(
    # Names that Windows, and who serves its clients, keep for devices, whatever follows their first dot.
    r"(?:CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(?:\..*)?"
    # A hash in capitals, and the folder above one.
    rf"|[0-9A-F]{{{2 * _HASH_BYTES}}}|(?=[0-9]?[A-F])[0-9A-F]{{{_SHARD_CHARACTERS}}}"
)
_PIECE = re.compile(r"\{([^{}]*)\}|([^{}]+)")
_WRITTEN = re.compile(r"[0-9A-Z_-]+")
_FILE_NAME_END_CHARACTERS = len("-") + MAX_ARRIVAL_ID_CHARACTERS + len(".dcm")


@dataclass(frozen=True, slots=True)
class _Piece:
    """A field, or what a template says between two."""

    name: str
    of: Callable[[ObjectKey], str]
    most_characters: int
    is_hash: bool = False


_Name = tuple[_Piece, ...]


class LayoutTemplate:
    """Makes locations. Immutable, and may be used from any thread."""

    def __init__(self, text: str = DEFAULT_TEMPLATE) -> None:
        """Raises ValueError that names the unknown field, or what would be unsafe."""
        names = [_parsed(name) for name in text.split("/")]
        self._folders, self._file = names[:-1], names[-1]
        self._has_shard = len(names) > 1 and _is_hash(names[0])
        self._check()

    def _check(self) -> None:
        if not any(piece.name in ("series", "series_uid") for name in self._folders for piece in name):
            raise ValueError(
                "a folder's name must contain {series} or {series_uid}: start-up looks through whole folders"
            )
        for name in self._folders:
            for piece in name:
                if piece.is_hash and len(name) > 1:
                    raise ValueError(
                        f"{{{piece.name}}} is alone in its folder's name; "
                        f"{{{piece.name}_uid}} may have others beside it"
                    )
        if len(self._folders) + self._has_shard > MAX_FOLDERS:
            raise ValueError(f"has more than {MAX_FOLDERS} folders")
        lengths = [_most_characters(name) for name in self._folders]
        lengths.append(_most_characters(self._file) + _FILE_NAME_END_CHARACTERS)
        if max(lengths) > MAX_NAME_CHARACTERS:
            raise ValueError(f"may make a name longer than {MAX_NAME_CHARACTERS} characters")
        longest = len(OBJECTS) + sum(lengths) + len(lengths) + self._has_shard * (1 + _SHARD_CHARACTERS)
        if longest > MAX_LOCATION_CHARACTERS:
            raise ValueError(f"may make a path longer than {MAX_LOCATION_CHARACTERS} characters")

    def location_of(self, key: ObjectKey) -> str:
        """The location of an object, relative to the data folder. Raises ValueError for its arrival id."""
        names = [_made(name, key) for name in self._folders]
        if self._has_shard:
            names.insert(0, names[0][:_SHARD_CHARACTERS])
        file = f"{_made(self._file, key)}-{checked_arrival_id(key.arrival_id)}.dcm"
        return "/".join((OBJECTS, *names, file))


def _is_hash(name: _Name) -> bool:
    return len(name) == 1 and name[0].is_hash


def _most_characters(name: _Name) -> int:
    return sum(piece.most_characters for piece in name) + len("_")


def _made(name: _Name, key: ObjectKey) -> str:
    if _is_hash(name):
        return name[0].of(key)
    made = "".join([piece.of(key) for piece in name])
    return f"_{made}" if _SPECIAL.fullmatch(made) else made


def _parsed(name: str) -> _Name:
    """The pieces of one name. Raises ValueError."""
    if not name:
        raise ValueError("has a name without a character: slashes stand between names only")
    pieces: list[_Piece] = []
    position = 0
    while position < len(name):
        piece = _PIECE.match(name, position)
        if piece is None:
            raise ValueError(f"{name!r} has a brace without its other half")
        field, written = piece.groups()
        pieces.append(_as_written(written) if field is None else _field(field))
        position = piece.end()
    if name.startswith("-"):
        raise ValueError(f"{name!r} begins with a -")
    return tuple(pieces)


def _field(name: str) -> _Piece:
    if name not in FIELDS:
        raise ValueError(f"{name!r} is no field; there are {', '.join(FIELDS)}")
    return FIELDS[name]


def _as_written(text: str) -> _Piece:
    if not _WRITTEN.fullmatch(text):
        raise ValueError(
            f"{text!r} is not safe in a path: beside fields there are only capital letters, digits, _ and -"
        )
    return _Piece(text, lambda _: text, len(text))


# --- fields


def _hashed(text: str) -> str:
    # surrogatepass: any str has a hash, whatever it was decoded from.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).hexdigest()


def _plain(text: str) -> str:
    """Peers' text as a name: two texts never give one, in whichever case a filesystem reads it."""
    if not text:
        return MISSING
    if len(text) <= _TEXT_CHARACTERS and _PLAIN.fullmatch(text):
        return text
    reduced = _OTHERS.sub("_", text.upper()).strip("_")[:_REDUCED_CHARACTERS]
    return f"{reduced or '_'}+{_hashed(text)[:_TEXT_HASH_CHARACTERS]}"


def _hash(name: str, value: Callable[[ObjectKey], str]) -> _Piece:
    return _Piece(name, lambda key: _hashed(value(key)), 2 * _HASH_BYTES, is_hash=True)


def _text(name: str, value: Callable[[ObjectKey], str | None]) -> _Piece:
    return _Piece(name, lambda key: _plain(value(key) or ""), _TEXT_CHARACTERS)


def _date(name: str, part: str) -> _Piece:
    def of(key: ObjectKey) -> str:
        date = _DATE.fullmatch(key.study_date or "")
        return date.expand(part) if date else MISSING

    return _Piece(name, of, len("YYYYMMDD"))


FIELDS: Mapping[str, _Piece] = MappingProxyType(
    {
        piece.name: piece
        for piece in (
            _hash("study", lambda key: key.study_instance_uid),
            _hash("series", lambda key: key.series_instance_uid),
            _hash("instance", lambda key: key.sop_instance_uid),
            _text("study_uid", lambda key: key.study_instance_uid),
            _text("series_uid", lambda key: key.series_instance_uid),
            _text("instance_uid", lambda key: key.sop_instance_uid),
            _text("sop_class_uid", lambda key: key.sop_class_uid),
            _text("patient", lambda key: key.patient_id),
            _text("modality", lambda key: key.modality),
            _date("study_date", r"\1\2\3"),
            _date("study_year", r"\1"),
            _date("study_month", r"\2"),
            _date("study_day", r"\3"),
            _text("calling_ae_title", lambda key: key.calling_ae_title),
        )
    }
)
"""What may stand in braces."""
