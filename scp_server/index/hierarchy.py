"""Finding or making the series, study and patient that a new instance belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

from sqlalchemy import Connection, bindparam, select, tuple_

from scp_server.index.bulk import BulkInsert
from scp_server.index.keys import KeyAllocator
from scp_server.index.schema import DECISION_COLUMNS, patients, series, studies
from scp_server.objects.summary import InstanceSummary

REMEMBERED = 8192
"""Studies, and series, whose keys are kept in memory: far more than are being received at once."""

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


class Patient(NamedTuple):
    """Who a study is about; both empty where its first object did not say."""

    patient_id: str
    issuer_of_patient_id: str


class Place(NamedTuple):
    """Where an instance belongs."""

    series_key: int
    patient: Patient


class _Study(NamedTuple):
    study_key: int
    patient: Patient


class _PatientIdentity(NamedTuple):
    patient_id: str
    issuer_of_patient_id: str
    unidentified_study_instance_uid: str


_SeriesIdentity = tuple[int, str]


def padded(values: Iterable[T]) -> list[T]:
    """`values`, the last repeated up to a power of two, so that few lengths of IN exist to be prepared."""
    found = list(values)
    length = 1 << (len(found) - 1).bit_length()
    return found + found[-1:] * (length - len(found))


class RecentlyUsed(Generic[K, V]):
    """A mapping that keeps the `capacity` entries used last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, which counts as used now."""
        value = self._entries.pop(key, None)
        if value is not None:
            self._entries[key] = value
        return value

    def put(self, key: K, value: V) -> None:
        """Remember a value, and drop the one unused for longest where there are too many."""
        self._entries[key] = value
        if len(self._entries) > self._capacity:
            del self._entries[next(iter(self._entries))]

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()


_patient_columns = (
    patients.c.patient_id,
    patients.c.issuer_of_patient_id,
    patients.c.unidentified_study_instance_uid,
)
_known_patients = select(patients.c.patient_key, *_patient_columns).where(
    tuple_(*_patient_columns).in_(bindparam("identities", expanding=True))
)
_known_studies = (
    select(
        studies.c.study_instance_uid,
        studies.c.study_key,
        patients.c.patient_id,
        patients.c.issuer_of_patient_id,
    )
    .join(patients, patients.c.patient_key == studies.c.patient_key)
    .where(studies.c.study_instance_uid.in_(bindparam("uids", expanding=True)))
)
_known_series = select(series.c.series_key, series.c.study_key, series.c.series_instance_uid).where(
    tuple_(series.c.study_key, series.c.series_instance_uid).in_(bindparam("identities", expanding=True))
)
_insert_patients = BulkInsert(patients)
_insert_studies = BulkInsert(studies, without=DECISION_COLUMNS)
_insert_series = BulkInsert(series)
_patient_values = attrgetter(*_insert_patients.columns[4:])
_study_values = attrgetter(*_insert_studies.columns[2:])
_series_values = attrgetter(*_insert_series.columns[2:])


class Hierarchy:
    """Places instances, remembering recent studies and series; the first writer's attributes stay."""

    def __init__(self, keys: KeyAllocator) -> None:
        self._keys = keys
        self._studies: RecentlyUsed[str, _Study] = RecentlyUsed(REMEMBERED)
        self._series: RecentlyUsed[_SeriesIdentity, int] = RecentlyUsed(REMEMBERED)

    def forget(self) -> None:
        """Drop what is remembered."""
        self._studies.clear()
        self._series.clear()

    def place(self, connection: Connection, summaries: Sequence[InstanceSummary]) -> list[Place]:
        """The place of each of `summaries`, made where it did not exist. At most one batch at a time."""
        in_study = self._find_or_make_studies(connection, summaries)
        found: dict[_SeriesIdentity, int] = {}
        missing: dict[_SeriesIdentity, InstanceSummary] = {}
        for summary in summaries:
            identity = (in_study[summary.study_instance_uid].study_key, summary.series_instance_uid)
            if identity in found or identity in missing:
                continue
            remembered = self._series.get(identity)
            if remembered is None:
                missing[identity] = summary
            else:
                found[identity] = remembered
        if missing:
            self._find_or_make_series(connection, missing, found)
        places = []
        for summary in summaries:
            study = in_study[summary.study_instance_uid]
            places.append(Place(found[study.study_key, summary.series_instance_uid], study.patient))
        return places

    def _find_or_make_series(
        self,
        connection: Connection,
        missing: dict[_SeriesIdentity, InstanceSummary],
        found: dict[_SeriesIdentity, int],
    ) -> None:
        """Move every one of `missing` to `found`."""
        for key, study_key, uid in connection.execute(_known_series, {"identities": padded(missing)}):
            found[study_key, uid] = key
            self._series.put((study_key, uid), key)
            missing.pop((study_key, uid), None)
        if not missing:
            return
        rows = []
        keys = self._keys.take(connection, len(missing))
        for key, (identity, summary) in zip(keys, missing.items(), strict=True):
            rows.append((key, identity[0], *_series_values(summary)))
            found[identity] = key
            self._series.put(identity, key)
        _insert_series.execute(connection, rows)

    def _find_or_make_studies(
        self, connection: Connection, summaries: Sequence[InstanceSummary]
    ) -> dict[str, _Study]:
        found: dict[str, _Study] = {}
        missing: dict[str, InstanceSummary] = {}
        for summary in summaries:
            uid = summary.study_instance_uid
            if uid in found or uid in missing:
                continue
            remembered = self._studies.get(uid)
            if remembered is None:
                missing[uid] = summary
            else:
                found[uid] = remembered
        if not missing:
            return found
        for uid, key, patient_id, issuer in connection.execute(_known_studies, {"uids": padded(missing)}):
            found[uid] = _Study(key, Patient(patient_id, issuer))
            self._studies.put(uid, found[uid])
            missing.pop(uid, None)
        if missing:
            self._make_studies(connection, missing, found)
        return found

    def _make_studies(
        self, connection: Connection, missing: dict[str, InstanceSummary], found: dict[str, _Study]
    ) -> None:
        identities = {uid: _patient_identity(summary) for uid, summary in missing.items()}
        # Backwards, so that of several studies of one new patient the first one's attributes stay.
        wanted = {identities[uid]: summary for uid, summary in reversed(missing.items())}
        patient_keys = self._find_or_make_patients(connection, wanted)
        rows = []
        keys = self._keys.take(connection, len(missing))
        for key, (uid, summary) in zip(keys, missing.items(), strict=True):
            identity = identities[uid]
            rows.append((key, patient_keys[identity], *_study_values(summary)))
            found[uid] = _Study(key, Patient(identity.patient_id, identity.issuer_of_patient_id))
            self._studies.put(uid, found[uid])
        _insert_studies.execute(connection, rows)

    def _find_or_make_patients(
        self, connection: Connection, wanted: dict[_PatientIdentity, InstanceSummary]
    ) -> dict[_PatientIdentity, int]:
        found: dict[_PatientIdentity, int] = {}
        for key, *columns in connection.execute(_known_patients, {"identities": padded(wanted)}):
            found[_PatientIdentity(*columns)] = key
        missing = {identity: summary for identity, summary in wanted.items() if identity not in found}
        if not missing:
            return found
        rows = []
        keys = self._keys.take(connection, len(missing))
        for key, (identity, summary) in zip(keys, missing.items(), strict=True):
            rows.append((key, *identity, *_patient_values(summary)))
            found[identity] = key
        _insert_patients.execute(connection, rows)
        return found


def _patient_identity(summary: InstanceSummary) -> _PatientIdentity:
    """The patient's key; objects without a Patient ID are of one patient only within their study."""
    patient_id = summary.patient_id or ""
    unidentified = "" if patient_id else summary.study_instance_uid
    return _PatientIdentity(patient_id, summary.issuer_of_patient_id or "", unidentified)
