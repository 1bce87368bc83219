"""Which SOP classes are storage: the catalogues of pynetdicom and pydicom, and what neither can list."""

from __future__ import annotations

DICOS_PREFIX = "1.2.840.10008.5.1.4.1.1.501"
DICONDE_PREFIX = "1.2.840.10008.5.1.4.1.1.601"
STORAGE_PREFIXES = (DICOS_PREFIX, DICONDE_PREFIX)
"""Every class below these is storage: DICOS has classes that no catalogue names."""

_NOT_OBJECTS = ("Storage Commitment", "Media Storage Directory")


def standard_storage_sop_classes() -> frozenset[str]:
    """Every storage SOP class, retired ones too, that pynetdicom's catalogue or pydicom's dictionary names.

    Imports both, which takes a third of a second: for the daemon, not for the client commands.
    """
    from pydicom._uid_dict import UID_dictionary
    from pynetdicom.sop_class import _STORAGE_CLASSES

    named = {
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and not name.startswith(_NOT_OBJECTS)
    }
    return frozenset(named | {str(uid) for uid in _STORAGE_CLASSES.values()})


class StorageSOPClasses:
    """The SOP classes that storage is offered for; a container, so that the registry can ask it."""

    def __init__(self, named: frozenset[str], prefixes: tuple[str, ...], *, any_other: bool) -> None:
        self._named = named
        self._prefixes = tuple(f"{prefix}." for prefix in prefixes)
        self._any_other = any_other

    def __contains__(self, uid: object) -> bool:
        return isinstance(uid, str) and (
            self._any_other
            or uid in self._named
            or uid.startswith(self._prefixes)
            or f"{uid}." in self._prefixes
        )
