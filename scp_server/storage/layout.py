"""Where things lie below the data folder, and which strings name them.

::

    objects/<2 hex>/<study>/<series>/<instance>-<arrival id>.dcm      visible objects
    incoming/<arrival id>.part                                       being written
    incoming/directories.<generation>                                see `ledger`

`<study>`, `<series>` and `<instance>` are hashes of UIDs, so that no text of a peer reaches a path. Two UIDs
with one hash are harmless: the arrival id alone makes a file name unique.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from scp_server.storage.base import ObjectKey

OBJECTS = "objects"
INCOMING = "incoming"
PART_SUFFIX = ".part"
LEDGER_PREFIX = "directories."

_HASH_BYTES = 10
_ARRIVAL_ID = re.compile(r"[0-9a-f]{1,64}")
_DIRECTORY = re.compile(r"objects/([0-9a-f]{2})/\1[0-9a-f]{18}/[0-9a-f]{20}")
_FILE_NAME = re.compile(r"[0-9a-f]{20}-[0-9a-f]{1,64}\.dcm")

DIRECTORY_CHARACTERS = len(OBJECTS) + 1 + 2 + 1 + 4 * _HASH_BYTES + 1
"""Every series directory's relative path has this length."""


def _hashed(uid: str) -> str:
    # surrogatepass: any str has a hash, whatever it was decoded from.
    return blake2b(uid.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).hexdigest()


def checked_arrival_id(arrival_id: str) -> str:
    """Return `arrival_id`. Raises ValueError unless it is 1 to 64 lower-case hexadecimal digits."""
    if not _ARRIVAL_ID.fullmatch(arrival_id):
        raise ValueError("an arrival id is 1 to 64 lower-case hexadecimal digits")
    return arrival_id


def location_of(key: ObjectKey) -> str:
    """The location of an object, relative to the data folder."""
    study = _hashed(key.study_instance_uid)
    series = _hashed(key.series_instance_uid)
    instance = _hashed(key.sop_instance_uid)
    return f"{OBJECTS}/{study[:2]}/{study}/{series}/{instance}-{checked_arrival_id(key.arrival_id)}.dcm"


def directory_of(location: str) -> str:
    """The series directory of a location."""
    return location.rpartition("/")[0]


def is_location(text: str) -> bool:
    """Whether `text` could have come from `location_of`."""
    directory, _, name = text.rpartition("/")
    return is_directory(directory) and is_file_name(name)


def is_directory(text: str) -> bool:
    """Whether `text` is a series directory's relative path."""
    return _DIRECTORY.fullmatch(text) is not None


def is_file_name(text: str) -> bool:
    """Whether `text` is the last part of a location."""
    return _FILE_NAME.fullmatch(text) is not None


def ledger_generation(name: str) -> int | None:
    """The generation in a ledger's file name, or None for any other name."""
    number = name.removeprefix(LEDGER_PREFIX)
    if number == name or not (number.isascii() and number.isdigit()):
        return None
    return int(number[:18])
