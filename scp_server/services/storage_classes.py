"""Which SOP classes are storage, after the catalogues of pynetdicom and pydicom, and what a policy adds."""

from __future__ import annotations

from scp_server.protocol.negotiation import NegotiationPolicy, is_storage

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
    """The SOP classes that a policy takes objects of; a container, so that the registry can ask it."""

    def __init__(self, policy: NegotiationPolicy) -> None:
        self._policy = policy

    def __contains__(self, uid: object) -> bool:
        return isinstance(uid, str) and is_storage(uid, self._policy)
