"""Keeps book of what an archive was sent and has acknowledged, and says whether what lies there agrees."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from scp_server.testing.daemon import SentDataset, read_stored_file

_LEDGER = "directories."
"""What `incoming` may hold besides unfinished objects: which directories were written to."""
_MOST_TOLD = 5


class Witness:
    """The book of one data folder, in which every object has a SOP Instance UID of its own."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.acknowledged: set[str] = set()
        """SOP Instance UIDs that must be there."""
        self._sent: dict[str, str] = {}
        self._doomed: list[frozenset[str]] = []
        self._gone: set[str] = set()
        self._read: dict[str, tuple[str, str]] = {}

    @property
    def sent(self) -> int:
        """How many objects were sent, whole or not."""
        return len(self._sent)

    def sending(self, stored: SentDataset) -> None:
        """To be called before: from now on it may be there, whole."""
        self._sent[stored.sop_instance_uid] = _digest(stored)

    def was_acknowledged(self, stored: SentDataset) -> None:
        """It got 0x0000."""
        self.acknowledged.add(stored.sop_instance_uid)

    def is_as_sent(self, received: SentDataset) -> bool:
        """Whether these are the bytes that were sent under this UID, in that transfer syntax."""
        return self._sent.get(received.sop_instance_uid) == _digest(received)

    def deleting(self, uids: Iterable[str]) -> None:
        """Their deletion is asked for: all of them must be there, or none."""
        doomed = frozenset(uids)
        self.acknowledged -= doomed
        self._doomed.append(doomed)

    def were_deleted(self, uids: Iterable[str]) -> None:
        """Their deletion was acknowledged."""
        self._gone.update(uids)

    def testify(self, *, anew: bool = False) -> None:
        """Files, index and this book agree; raises AssertionError that says where not.

        Files that an earlier call has read are read again only when `anew`. The archive must be at rest:
        nothing is being sent to it, and no deletion is left.
        """
        files = {str(path.relative_to(self.data_dir)): path for path in self._all_files("objects")}
        rows = self._rows()
        if anew:
            self._read.clear()
        self._read = {location: read for location, read in self._read.items() if location in files}
        for location in files.keys() - self._read.keys():
            if location.endswith(".dcm"):
                stored = read_stored_file(files[location])
                self._read[location] = (stored.sop_instance_uid, _digest(stored))
        kept = Counter(uid for uid, _ in self._read.values())
        _none("half done", (str(path) for path in self._all_files("incoming") if _is_stray(path)))
        _none("no object", files.keys() - self._read.keys())
        _none("a file without a row", files.keys() - rows.keys())
        _none("a row without a file", rows.keys() - files.keys())
        _none("another one's row", (at for at in rows if rows[at] != self._read[at][0]))
        _none("damaged", (at for at, (uid, digest) in self._read.items() if self._sent.get(uid) != digest))
        _none("kept twice", (uid for uid, count in kept.items() if count > 1))
        _none("acknowledged and lost", self.acknowledged - kept.keys())
        _none("deleted and still there", self._gone & kept.keys())
        _none("half deleted", (uid for group in self._doomed for uid in _halved(group, kept)))

    def _all_files(self, folder: str) -> list[Path]:
        return [path for path in (self.data_dir / folder).rglob("*") if not path.is_dir()]

    def _rows(self) -> dict[str, str]:
        """SOP Instance UIDs by location."""
        with closing(sqlite3.connect(self.data_dir / "index" / "index.sqlite")) as database:
            found = database.execute(
                "SELECT location, sop_instance_uid FROM parts JOIN instances USING (instance_key)"
            )
            return dict(found.fetchall())


def _digest(one: SentDataset) -> str:
    return hashlib.sha256(one.transfer_syntax_uid.encode() + b"\0" + one.dataset).hexdigest()


def _is_stray(path: Path) -> bool:
    return not path.name.startswith(_LEDGER)


def _halved(group: frozenset[str], kept: Counter[str]) -> Iterable[str]:
    left = group & kept.keys()
    return () if left in (frozenset(), group) else left


def _none(what: str, found: Iterable[str]) -> None:
    told = sorted(found)
    assert not told, f"{what}: {len(told)}, such as {told[:_MOST_TOLD]}"
