"""Where things lie below the data folder, and which strings name them.

::

    objects/<directories, as the layout has them>/<instance>-<arrival id>.dcm      visible objects
    incoming/<arrival id>.part                                                     being written
    incoming/directories.<generation>                                              see `ledger`

A *layout* is a template of directories, such as `{study_shard}/{study}/{series}`. UIDs become hashes, unless
it asks for them as they are; text of a peer is reduced to letters, digits, `_` and `-`. Two values may become
one name, which is harmless: the arrival id alone makes a file name unique.

What any layout may have written is recognised (`is_location`), whichever is in force: another one leaves
older objects where they are, and found.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from scp_server.storage.base import ObjectKey

OBJECTS = "objects"
INCOMING = "incoming"
PART_SUFFIX = ".part"
LEDGER_PREFIX = "directories."

MAX_DEPTH: Final = 8
"""Most directories of a layout."""
MAX_DIRECTORY_CHARACTERS: Final = 2_048
"""Longest path of a directory, from `objects` on; a record of the ledger has one more."""
_HASH_BYTES = 10
_MAX_TEXT_CHARACTERS: Final = 48
_MAX_LITERAL_CHARACTERS: Final = 32
_MAX_NAME_CHARACTERS: Final = 255
"""What file systems allow (NAME_MAX)."""
_UNKNOWN: Final = "none"
_ARRIVAL_ID = re.compile(r"[0-9a-f]{1,64}")
_FILE_NAME = re.compile(r"[0-9a-f]{20}-[0-9a-f]{1,64}\.dcm")
_NAME = rf"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{{0,{_MAX_NAME_CHARACTERS - 1}}})"
_DIRECTORY = re.compile(rf"objects(?:/{_NAME}){{1,{MAX_DEPTH}}}", re.ASCII)
_HASHES_ONLY = re.compile(r"objects/[0-9a-f]{2}/[0-9a-f]{20}/[0-9a-f]{20}/[0-9a-f]{20}-[0-9a-f]{1,64}\.dcm")
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+", re.ASCII)
_LITERAL = re.compile(rf"[A-Za-z0-9_-]{{0,{_MAX_LITERAL_CHARACTERS}}}", re.ASCII)
_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)", re.ASCII)


def _hashed(uid: str) -> str:
    # surrogatepass: any str has a hash, whatever it was decoded from.
    return blake2b(uid.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).hexdigest()


def _readable(uid: str) -> str:
    """A UID as it is, where it is one; its hash otherwise."""
    return uid if len(uid) <= 64 and _UID.fullmatch(uid) else _hashed(uid)


def _text(text: str) -> str:
    """A peer's text in letters, digits, `_` and `-`, beginning with none of those that options begin with."""
    reduced = _UNSAFE.sub("_", text)[:_MAX_TEXT_CHARACTERS].lstrip("-")
    return reduced or _UNKNOWN


def _date_part(group: int) -> Callable[[ObjectKey], str]:
    def part(key: ObjectKey) -> str:
        match = _DATE.fullmatch(key.study_date)
        if match is None:
            return _UNKNOWN
        return match[group] if group else "".join(match.groups())

    return part


FIELDS: Final[Mapping[str, Callable[[ObjectKey], str]]] = {
    "study_shard": lambda key: _hashed(key.study_instance_uid)[:2],
    "study": lambda key: _hashed(key.study_instance_uid),
    "series": lambda key: _hashed(key.series_instance_uid),
    "study_uid": lambda key: _readable(key.study_instance_uid),
    "series_uid": lambda key: _readable(key.series_instance_uid),
    "patient": lambda key: _text(key.patient_id),
    "modality": lambda key: _text(key.modality),
    "calling_ae_title": lambda key: _text(key.calling_ae_title),
    "study_date": _date_part(0),
    "year": _date_part(1),
    "month": _date_part(2),
    "day": _date_part(3),
}
"""What a layout may name, and what becomes of it: each a name that is safe in a path."""
_BOUNDED_BY: Final = frozenset({"study", "series", "study_uid", "series_uid"})
_MAX_FIELDS_IN_NAME: Final = 2

DEFAULT_TEMPLATE: Final = "{study_shard}/{study}/{series}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Which directories objects lie in. Raises ValueError for a template that cannot be one, saying why."""

    template: str = DEFAULT_TEMPLATE
    _format: str = field(init=False, repr=False, compare=False)
    _fields: tuple[Callable[[ObjectKey], str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = self.template.split("/")
        if len(names) > MAX_DEPTH:
            raise ValueError(f"has {len(names)} directories, and {MAX_DEPTH} are the most")
        formats, fields = [], []
        for name in names:
            text, used = _parsed(name)
            formats.append(text)
            fields += used
        if not _BOUNDED_BY.intersection(fields):
            raise ValueError(
                f"must name one of {', '.join(sorted(_BOUNDED_BY))}, or one directory would hold everything"
            )
        object.__setattr__(self, "_format", f"{OBJECTS}/{'/'.join(formats)}/{{}}-{{}}.dcm")
        object.__setattr__(self, "_fields", tuple(FIELDS[each] for each in fields))

    def location(self, key: ObjectKey) -> str:
        """The location of an object, relative to the data folder."""
        parts = [value(key) for value in self._fields]
        return self._format.format(*parts, _hashed(key.sop_instance_uid), checked_arrival_id(key.arrival_id))


def _parsed(name: str) -> tuple[str, list[str]]:
    """One directory of a template: its format with positions for fields, and the fields."""
    if not name:
        raise ValueError("has an empty directory name: no / at the ends, and not two together")
    formatted, fields = "", []
    try:
        pieces = list(string.Formatter().parse(name))
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None
    for literal, each, specification, conversion in pieces:
        if not _LITERAL.fullmatch(literal):
            raise ValueError(f"{literal!r} is not at most {_MAX_LITERAL_CHARACTERS} letters, digits, _ and -")
        formatted += literal
        if each is None:
            continue
        if each not in FIELDS or specification or conversion:
            raise ValueError(f"{{{each}}} is none of {', '.join(FIELDS)}")
        fields.append(each)
        formatted += "{}"
    if len(fields) > _MAX_FIELDS_IN_NAME or formatted.startswith("-"):
        raise ValueError(f"{name!r} names more than {_MAX_FIELDS_IN_NAME} fields, or begins with -")
    return formatted, fields


DEFAULT_LAYOUT: Final = Layout()


def checked_arrival_id(arrival_id: str) -> str:
    """Return `arrival_id`. Raises ValueError unless it is 1 to 64 lower-case hexadecimal digits."""
    if not _ARRIVAL_ID.fullmatch(arrival_id):
        raise ValueError("an arrival id is 1 to 64 lower-case hexadecimal digits")
    return arrival_id


def location_of(key: ObjectKey) -> str:
    """The location of an object in the default layout."""
    return DEFAULT_LAYOUT.location(key)


def directory_of(location: str) -> str:
    """The directory of a location."""
    return location.rpartition("/")[0]


def is_location(text: str) -> bool:
    """Whether `text` could have come from a layout's `location`."""
    directory, _, name = text.rpartition("/")
    return is_directory(directory) and is_file_name(name)


def is_directory(text: str) -> bool:
    """Whether `text` is the relative path of a directory that objects may lie in."""
    return len(text) <= MAX_DIRECTORY_CHARACTERS and _DIRECTORY.fullmatch(text) is not None


def is_directory_name(text: str) -> bool:
    """Whether `text` may be one directory of such a path."""
    return _DIRECTORY.fullmatch(f"{OBJECTS}/{text}") is not None and "/" not in text


def is_file_name(text: str) -> bool:
    """Whether `text` is the last part of a location."""
    return _FILE_NAME.fullmatch(text) is not None


def location_for_log(location: str) -> str:
    """A location without what may identify a person: of any layout's but the default one, the arrival id that
    names the file, as a pattern for a shell."""
    if _HASHES_ONLY.fullmatch(location):
        return location
    return f"{OBJECTS}/**/*-{location.rpartition('-')[2]}"


def ledger_generation(name: str) -> int | None:
    """The generation in a ledger's file name, or None for any other name."""
    number = name.removeprefix(LEDGER_PREFIX)
    if number == name or not (number.isascii() and number.isdigit()):
        return None
    return int(number[:18])
