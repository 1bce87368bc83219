"""What becomes of a batch of entries: a plain function over a connection, whichever database it leads to.

`EntryWriter.write_batch` runs inside a transaction of its caller. In the steady state, new instances of known
series, it is four kinds of statement however many entries there are: which instances are known already, then
the rows of instances, parts and headers. Two writers that meet (several processes) are kept apart by the
unique constraints: the second fails with an IntegrityError; its caller rolls back, forgets, and tries again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, func, select

from scp_server.index.base import AddOutcome, AddResult, DuplicatePolicy, IndexEntry
from scp_server.index.bulk import BulkInsert, ListSelect
from scp_server.index.hierarchy import Hierarchy, Patient, padded
from scp_server.index.keys import KeyAllocator
from scp_server.index.replacing import remove_instances
from scp_server.index.report_links import Leaving, leaving
from scp_server.index.schema import (
    findings,
    headers,
    instance_references,
    instances,
    parts,
    patients,
    series,
    studies,
    unsynced_objects,
)


class AddRequest(NamedTuple):
    """An entry, what to do when its UID is known, and what to do before anything else."""

    entry: IndexEntry
    policy: DuplicatePolicy
    first: Callable[[], None] | None = None


class _Identity(NamedTuple):
    """What tells the parts of one instance apart."""

    transfer_syntax_uid: str
    digest_algorithm: str
    digest: bytes


class _Kept(NamedTuple):
    location: str
    part_number: int


@dataclass(slots=True)
class _Instance:
    """What is known of an instance while a batch is being worked out. `key` is 0 until it is given one."""

    key: int
    patient: Patient | None
    first: _Kept | None
    last_part_number: int
    kept: dict[_Identity, _Kept] = field(default_factory=dict)


class _NewPart(NamedTuple):
    instance: _Instance
    part_number: int
    entry: IndexEntry


MAX_FILES = 8
"""Files in one statement: the driver keeps a prepared statement's last values, for each number of rows."""
_FIRST_STAYS = frozenset({DuplicatePolicy.KEEP_FIRST, DuplicatePolicy.REJECT})

_first_part = parts.alias("first_part")
_part_numbers = select(func.min(parts.c.part_number)).where(parts.c.instance_key == instances.c.instance_key)
_known_instances = ListSelect(
    select(
        instances.c.sop_instance_uid,
        instances.c.instance_key,
        patients.c.patient_id,
        patients.c.issuer_of_patient_id,
        _first_part.c.location,
        _first_part.c.part_number,
        select(func.max(parts.c.part_number))
        .where(parts.c.instance_key == instances.c.instance_key)
        .scalar_subquery(),
    )
    .select_from(instances)
    .join(series, series.c.series_key == instances.c.series_key)
    .join(studies, studies.c.study_key == series.c.study_key)
    .join(patients, patients.c.patient_key == studies.c.patient_key)
    .outerjoin(
        _first_part,
        (_first_part.c.instance_key == instances.c.instance_key)
        & (_first_part.c.part_number == _part_numbers.scalar_subquery()),
    )
    .where(instances.c.sop_instance_uid.in_(bindparam("uids", expanding=True))),
    "uids",
)
_known_parts = select(
    parts.c.instance_key,
    parts.c.transfer_syntax_uid,
    parts.c.digest_algorithm,
    parts.c.digest,
    parts.c.location,
    parts.c.part_number,
).where(
    parts.c.instance_key.in_(bindparam("keys", expanding=True)),
    parts.c.digest.in_(bindparam("digests", expanding=True)),
)
_known_references = select(
    instance_references.c.instance_key, instance_references.c.referenced_sop_instance_uid
).where(instance_references.c.instance_key.in_(bindparam("keys", expanding=True)))

_insert_instances = BulkInsert(instances)
_insert_parts = BulkInsert(parts)
_insert_headers = BulkInsert(headers)
_insert_references = BulkInsert(instance_references)
_insert_unsynced = BulkInsert(unsynced_objects, MAX_FILES)
_insert_findings = BulkInsert(findings)
_instance_values = attrgetter(*_insert_instances.columns[2:])
_part_values = attrgetter(*_insert_parts.columns[3:])
_finding_values = attrgetter(*_insert_findings.columns[2:])


class EntryWriter:
    """Writes batches through one connection after another, never two at a time.

    It remembers the keys of recent studies and series; `forget` after every transaction that did not commit.
    """

    def __init__(self) -> None:
        self._keys = KeyAllocator()
        self._hierarchy = Hierarchy(self._keys)
        self._replaced = Leaving()

    def forget(self) -> None:
        """Drop everything remembered, because a rolled-back transaction may have given it."""
        self._keys.forget()
        self._hierarchy.forget()
        self._replaced = Leaving()

    def take_replaced(self) -> Leaving:
        """What was replaced since this was asked last."""
        replaced, self._replaced = self._replaced, Leaving()
        return replaced

    def forget_places(self) -> None:
        """Drop the studies and series remembered: a removal may have taken them away. Keys in hand stay."""
        self._hierarchy.forget()

    def write_batch(self, connection: Connection, requests: Sequence[AddRequest]) -> list[AddResult]:
        """Record `requests` one after the other and tell what became of each.

        Neither begins nor commits. Raises SQLAlchemy's errors; then the transaction must be rolled back.
        """
        return [result for run in _runs(requests) for result in self._write_run(connection, run)]

    def _write_run(self, connection: Connection, requests: Sequence[AddRequest]) -> list[AddResult]:
        """Record requests of which those that replace something replace only what the database holds."""
        known = _find_instances(connection, requests)
        outcomes: list[tuple[AddOutcome, _Kept, _Instance | None]] = []
        new_instances: list[tuple[_Instance, IndexEntry]] = []
        new_parts: list[_NewPart] = []
        replaced: dict[str, int] = {}
        for entry, policy, _ in requests:
            uid = entry.summary.sop_instance_uid
            instance = known.get(uid)
            if instance is None:
                instance = known[uid] = _Instance(key=0, patient=None, first=None, last_part_number=0)
                new_instances.append((instance, entry))
            identity = _Identity(entry.transfer_syntax_uid, entry.digest_algorithm, entry.digest)
            same = instance.kept.get(identity)
            if same is not None:
                outcomes.append((AddOutcome.SAME, same, None))
                continue
            if instance.first is not None and policy in _FIRST_STAYS:
                outcomes.append((AddOutcome.CONFLICT, instance.first, None))
                continue
            if instance.first is not None and policy is DuplicatePolicy.REPLACE:
                replaced[entry.location] = instance.key
                instance = known[uid] = _Instance(key=0, patient=None, first=None, last_part_number=0)
                new_instances.append((instance, entry))
            instance.last_part_number += 1
            kept = instance.kept[identity] = _Kept(entry.location, instance.last_part_number)
            outcome = AddOutcome.ADDED if instance.first is None else AddOutcome.ADDED_PART
            if entry.location in replaced:
                outcome = AddOutcome.REPLACED
            instance.first = instance.first or kept
            new_parts.append(_NewPart(instance, kept.part_number, entry))
            outcomes.append((outcome, kept, instance))
        discarded = self._remove_instances(connection, list(replaced.values()))
        self._insert_instances(connection, new_instances)
        self._insert_parts(connection, new_parts)
        return [
            AddResult(
                outcome,
                kept.location,
                kept.part_number,
                patient_conflict=instance is not None and _conflicts(entry, instance.patient),
                discarded=discarded[replaced[entry.location]] if outcome is AddOutcome.REPLACED else (),
            )
            for (entry, *_), (outcome, kept, instance) in zip(requests, outcomes, strict=True)
        ]

    def _remove_instances(
        self, connection: Connection, instance_keys: Sequence[int]
    ) -> dict[int, tuple[str, ...]]:
        if not instance_keys:
            return {}
        left = leaving(connection, instance_keys)
        self._replaced = Leaving(self._replaced.uids | left.uids, self._replaced.study_keys | left.study_keys)
        discarded = remove_instances(connection, instance_keys)
        self.forget_places()
        return discarded

    def _insert_instances(self, connection: Connection, new: list[tuple[_Instance, IndexEntry]]) -> None:
        if not new:
            return
        places = self._hierarchy.place(connection, [entry.summary for _, entry in new])
        keys = self._keys.take(connection, len(new))
        rows = []
        for (instance, entry), place, key in zip(new, places, keys, strict=True):
            instance.key = key
            instance.patient = place.patient
            rows.append((key, place.series_key, *_instance_values(entry.summary)))
        _insert_instances.execute(connection, rows)

    def _insert_parts(self, connection: Connection, new: list[_NewPart]) -> None:
        if not new:
            return
        keys = self._keys.take(connection, len(new))
        _insert_parts.execute(
            connection,
            [
                (key, part.instance.key, part.part_number, *_part_values(part.entry))
                for key, part in zip(keys, new, strict=True)
            ],
        )
        _insert_headers.execute(
            connection, [(key, part.entry.header.pack()) for key, part in zip(keys, new, strict=True)]
        )
        _insert_unsynced.execute(
            connection,
            [
                (key, part.entry.unsynced)
                for key, part in zip(keys, new, strict=True)
                if part.entry.unsynced is not None
            ],
        )
        _insert_findings.execute(
            connection,
            [
                (key, number, *_finding_values(finding))
                for key, part in zip(keys, new, strict=True)
                if part.entry.report is not None
                for number, finding in enumerate(part.entry.report.findings, 1)
            ],
        )
        self._insert_references(connection, new)

    def _insert_references(self, connection: Connection, new: list[_NewPart]) -> None:
        """Parts of one instance may refer to the same others: each reference is recorded once."""
        wanted = {
            (part.instance.key, uid): None
            for part in new
            for uid in part.entry.summary.referenced_sop_instance_uids
        }
        if not wanted:
            return
        later = {part.instance.key for part in new if part.part_number > 1}
        if later:
            for key, uid in connection.execute(_known_references, {"keys": padded(later)}):
                wanted.pop((key, uid), None)
        _insert_references.execute(connection, list(wanted))


def _runs(requests: Sequence[AddRequest]) -> Iterator[Sequence[AddRequest]]:
    """The requests in order, cut before each that may replace what one of the same piece has added."""
    begin = 0
    seen: set[str] = set()
    for position, (entry, policy, _) in enumerate(requests):
        uid = entry.summary.sop_instance_uid
        if policy is DuplicatePolicy.REPLACE and uid in seen:
            yield requests[begin:position]
            begin = position
            seen.clear()
        seen.add(uid)
    yield requests[begin:]


def _find_instances(connection: Connection, requests: Sequence[AddRequest]) -> dict[str, _Instance]:
    """The instances of the batch that exist already, with those of their parts that the batch may repeat."""
    uids = {request.entry.summary.sop_instance_uid for request in requests}
    known: dict[str, _Instance] = {}
    by_key: dict[int, _Instance] = {}
    for uid, key, patient_id, issuer, location, number, last in _known_instances.rows(
        connection, padded(uids)
    ):
        first = None if location is None else _Kept(location, number)
        by_key[key] = known[uid] = _Instance(key, Patient(patient_id, issuer), first, last or 0)
    if by_key:
        digests = {
            request.entry.digest for request in requests if request.entry.summary.sop_instance_uid in known
        }
        for key, syntax, algorithm, digest, location, number in connection.execute(
            _known_parts, {"keys": padded(by_key), "digests": padded(digests)}
        ):
            by_key[key].kept[_Identity(syntax, algorithm, bytes(digest))] = _Kept(location, number)
    return known


def _conflicts(entry: IndexEntry, patient: Patient | None) -> bool:
    """Whether the entry names another patient than the one kept. One that names none contradicts nothing."""
    named = entry.summary.patient_id
    if not named or patient is None:
        return False
    issuer = entry.summary.issuer_of_patient_id
    return named != patient.patient_id or bool(issuer and issuer != patient.issuer_of_patient_id)
