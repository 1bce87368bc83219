"""Where things lie below the data folder, and which strings name them.

::

    objects/<names that a template makes>/<name>-<arrival id>.dcm    visible objects, see `template`
    incoming/<arrival id>.part                                       being written
    incoming/directories.<generation>                                see `ledger`
    incoming/directories.<writer>-<generation>                       the same of one of several processes

What is recognised here is whatever *any* template may have made, so that a change of template leaves old
objects found. It is never hidden, never absolute, has no `..`, and no character but ASCII letters, digits
and `_ + - .`, so that no location leads out of `objects`.
"""

from __future__ import annotations

import re

OBJECTS = "objects"
INCOMING = "incoming"
PART_SUFFIX = ".part"
LEDGER_PREFIX = "directories."

MAX_ARRIVAL_ID_CHARACTERS = 64
MAX_NAME_CHARACTERS = 200
"""Longest name of a folder or file: filesystems take 255 bytes, and a copy in the making has a suffix."""
MAX_FOLDERS = 16
"""Most folders between `objects` and a file: bounds the descriptors that a listing holds."""
MAX_LOCATION_CHARACTERS = 1_000
"""Longest location: the system takes paths of 4096 bytes, and the data folder has one of its own."""

_LEDGER = re.compile(rf"{re.escape(LEDGER_PREFIX)}(?:([0-9a-f]{{1,16}})-)?([0-9]{{1,18}})")
_ARRIVAL_ID = re.compile(rf"[0-9a-f]{{1,{MAX_ARRIVAL_ID_CHARACTERS}}}")
_NAME = rf"[0-9A-Za-z_][0-9A-Za-z_+.-]{{0,{MAX_NAME_CHARACTERS - 1}}}"
_DIRECTORY = re.compile(rf"{OBJECTS}(?:/{_NAME}){{1,{MAX_FOLDERS}}}")
_FILE_NAME = re.compile(rf"[0-9A-Za-z_][0-9A-Za-z_+.-]*-{_ARRIVAL_ID.pattern}\.dcm")
_HASHES_ONLY = re.compile(
    rf"{OBJECTS}/([0-9a-f]{{2}})/\1[0-9a-f]{{18}}/[0-9a-f]{{20}}"
    rf"(?:/[0-9a-f]{{20}}-{_ARRIVAL_ID.pattern}\.dcm)?"
)
"""What the default template makes: locations, and their directories."""


def checked_arrival_id(arrival_id: str) -> str:
    """Return `arrival_id`. Raises ValueError unless it is 1 to 64 lower-case hexadecimal digits."""
    if not _ARRIVAL_ID.fullmatch(arrival_id):
        raise ValueError("an arrival id is 1 to 64 lower-case hexadecimal digits")
    return arrival_id


def directory_of(location: str) -> str:
    """The directory of a location."""
    return location.rpartition("/")[0]


def is_location(text: str) -> bool:
    """Whether `text` could be where some template puts an object."""
    directory, _, name = text.rpartition("/")
    return len(text) <= MAX_LOCATION_CHARACTERS and is_directory(directory) and is_file_name(name)


def is_directory(text: str) -> bool:
    """Whether `text` could be the relative path of a directory that objects lie in."""
    return len(text) <= MAX_LOCATION_CHARACTERS and _DIRECTORY.fullmatch(text) is not None


def is_file_name(text: str) -> bool:
    """Whether `text` could be the last part of a location."""
    return len(text) <= MAX_NAME_CHARACTERS and _FILE_NAME.fullmatch(text) is not None


def location_for_log(path: str) -> str:
    """A location, or the directory of one, without what may identify a person.

    Of any but the default template's, a pattern for a shell is left; a file's arrival id names it in there.
    """
    if _HASHES_ONLY.fullmatch(path):
        return path
    name = path.rpartition("/")[2]
    return f"{OBJECTS}/**/*-{name.rpartition('-')[2]}" if is_file_name(name) else f"{OBJECTS}/**"


def arrival_id_in(location: str) -> str:
    """The arrival id that ends a location."""
    return location.rpartition("-")[2].removesuffix(".dcm")


def ledger_name(generation: int, writer: str = "") -> str:
    """The file name of a ledger; `writer` is hexadecimal, and empty for the process that owns the folder."""
    return f"{LEDGER_PREFIX}{writer}{'-' if writer else ''}{generation}"


def ledger_generation(name: str) -> int | None:
    """The generation in a ledger's file name, whoever wrote it, or None for any other name."""
    found = _LEDGER.fullmatch(name)
    return None if found is None else int(found[2])


def ledger_writer(name: str) -> str | None:
    """Whose ledger it is: empty for the folder's owner; None for any other name."""
    found = _LEDGER.fullmatch(name)
    return None if found is None else found[1] or ""
