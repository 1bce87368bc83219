"""The contract suite for indexes: a backend that passes it can be the index of this server.

Needs pytest and pytest-asyncio. Subclass it in a test module and say how to make an index::

    class TestMyIndex(IndexContract):
        @pytest.fixture
        def make_index(self, tmp_path):
            return lambda: MyIndex(tmp_path / "index")

        @pytest.fixture
        def make_unavailable(self, tmp_path):
            return MyOutage(tmp_path / "index")

Every call of what `make_index` returns gives another, not yet opened index over the *same place*, as a
restarted process would have it. The place is empty at the start of every test. `make_unavailable` is called
for a context manager inside which an open index over that place cannot write, and after which it can again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count
from typing import Any

import pytest
import pytest_asyncio

from scp_server.errors import IndexUnavailable, StorageFull
from scp_server.index.base import (
    AddOutcome,
    AddResult,
    DuplicatePolicy,
    Index,
    IndexEntry,
    IndexTotals,
    Level,
    RetrievablePart,
    Scope,
    UniqueKey,
)
from scp_server.objects.summary import InstanceSummary

MakeIndex = Callable[[], Index]
MakeUnavailable = Callable[[], AbstractContextManager[object]]

KEEP_FIRST = DuplicatePolicy.KEEP_FIRST
PARTS = DuplicatePolicy.PARTS
REPLACE = DuplicatePolicy.REPLACE

_ROOT = "1.2.840.99"
_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
_arrivals = count(1)


def index_entry(
    instance: str = "1",
    content: bytes = b"pixels",
    *,
    study: str = "1",
    series: str = "1",
    transfer_syntax_uid: str = _EXPLICIT_LITTLE_ENDIAN,
    digest_algorithm: str = "sha256",
    location: str | None = None,
    header: bytes = b"packed header",
    stored_digest: bytes | None = None,
    unsynced: bytes | None = None,
    **attributes: Any,
) -> IndexEntry:
    """An entry that arrived just now, at a location of its own; its UIDs are given by their last part."""
    arrival_id = f"{next(_arrivals):024x}"
    summary = InstanceSummary(
        sop_class_uid=_CT_IMAGE_STORAGE,
        sop_instance_uid=f"{_ROOT}.3.{instance}",
        study_instance_uid=f"{_ROOT}.1.{study}",
        series_instance_uid=f"{_ROOT}.2.{series}",
        **{"patient_id": "P1", **attributes},
    )
    return IndexEntry(
        summary=summary,
        transfer_syntax_uid=transfer_syntax_uid,
        digest_algorithm=digest_algorithm,
        digest=sha256(content).digest(),
        location=location or f"{study}/{series}/{arrival_id}.dcm",
        size_bytes=len(content) + 1_000,
        dataset_offset_bytes=340,
        arrival_id=arrival_id,
        received_at_ns=1_700_000_000_000_000_000 + int(arrival_id, 16),
        calling_ae_title="SCANNER",
        called_ae_title="SCP_SERVER",
        header=PackedHeader(header),
        stored_digest=stored_digest,
        unsynced=unsynced,
    )


@dataclass(frozen=True, slots=True)
class PackedHeader:
    """A header whose packed form is given."""

    packed: bytes

    def pack(self) -> bytes:
        """What was given."""
        return self.packed


def _uid(entry: IndexEntry) -> str:
    return entry.summary.sop_instance_uid


class IndexSuite:
    """The indexes of a suite. Subclasses override `make_index` and `make_unavailable`."""

    @pytest.fixture
    def make_index(self) -> MakeIndex:
        raise NotImplementedError("override make_index")

    @pytest.fixture
    def make_unavailable(self) -> MakeUnavailable:
        raise NotImplementedError("override make_unavailable")

    @pytest_asyncio.fixture
    async def index(self, make_index: MakeIndex) -> AsyncIterator[Index]:
        index = make_index()
        await index.open()
        yield index
        await index.close()


class IndexContract(IndexSuite):
    """What every index must do."""

    async def test_a_new_instance_is_added_as_part_one(self, index: Index) -> None:
        entry = index_entry()
        result = await index.add(entry, KEEP_FIRST)
        assert result.outcome is AddOutcome.ADDED
        assert (result.location, result.part_number) == (entry.location, 1)
        assert result.patient_conflict is False

    async def test_what_comes_first_is_done_in_a_thread_before_the_entry_is_known(self, index: Index) -> None:
        entry = index_entry()
        threads: list[int] = []
        result = await index.add(entry, KEEP_FIRST, lambda: threads.append(threading.get_ident()))
        assert result.outcome is AddOutcome.ADDED
        assert len(threads) == 1
        assert threads != [threading.get_ident()]

    async def test_what_comes_first_and_fails_costs_its_own_entry_only(self, index: Index) -> None:
        def fail() -> None:
            raise StorageFull("no space")

        entries = [index_entry(str(number)) for number in range(20)]
        results = await asyncio.gather(
            *(index.add(entry, KEEP_FIRST, fail if n % 3 == 0 else None) for n, entry in enumerate(entries)),
            return_exceptions=True,
        )
        for number, (entry, result) in enumerate(zip(entries, results, strict=True)):
            assert isinstance(result, StorageFull if number % 3 == 0 else AddResult)
            assert len(await index.parts(_uid(entry))) == (number % 3 != 0)

    # --- identity

    @pytest.mark.parametrize("policy", list(DuplicatePolicy))
    async def test_the_same_bytes_again_are_the_same_part(
        self, index: Index, policy: DuplicatePolicy
    ) -> None:
        first = index_entry()
        await index.add(first, policy)
        result = await index.add(index_entry(), policy)
        assert result.outcome is AddOutcome.SAME
        assert (result.location, result.part_number) == (first.location, 1)
        assert len(await index.parts(_uid(first))) == 1

    @pytest.mark.parametrize("policy", [KEEP_FIRST, DuplicatePolicy.REJECT])
    async def test_other_bytes_conflict_when_the_first_are_kept(
        self, index: Index, policy: DuplicatePolicy
    ) -> None:
        first, other = index_entry(content=b"first"), index_entry(content=b"other")
        await index.add(first, policy)
        result = await index.add(other, policy)
        assert result.outcome is AddOutcome.CONFLICT
        assert (result.location, result.part_number) == (first.location, 1)
        assert [part.location for part in await index.parts(_uid(first))] == [first.location]
        assert await index.header(other.location) is None

    async def test_a_conflicting_newcomer_makes_no_study_or_series(self, index: Index) -> None:
        await index.add(index_entry(content=b"first"), KEEP_FIRST)
        await index.add(index_entry(content=b"other", study="77", series="77"), KEEP_FIRST)
        totals = await index.totals()
        assert (totals.studies, totals.series) == (1, 1)

    async def test_other_bytes_replace_every_part_and_their_files_are_named(self, index: Index) -> None:
        old = [index_entry(content=b"section %d" % number) for number in range(3)]
        for entry in old:
            await index.add(entry, PARTS)
        assert await index.discarded() == []
        newcomer = index_entry(content=b"new")
        result = await index.add(newcomer, REPLACE)
        assert result.outcome is AddOutcome.REPLACED
        assert (result.location, result.part_number) == (newcomer.location, 1)
        assert result.discarded == tuple(entry.location for entry in old)
        assert [part.location for part in await index.parts(_uid(newcomer))] == [newcomer.location]
        assert await index.header(old[0].location) is None
        assert set(await index.discarded()) == set(result.discarded)
        again = await index.add(index_entry(content=b"new"), REPLACE)
        assert (again.outcome, again.location, again.discarded) == (AddOutcome.SAME, newcomer.location, ())
        back = await index.add(index_entry(content=b"section 1"), REPLACE)
        assert back.outcome is AddOutcome.REPLACED, "what was replaced is no longer known"

    async def test_discarded_files_are_remembered_until_they_are_gone(self, make_index: MakeIndex) -> None:
        index = make_index()
        await index.open()
        first = index_entry(content=b"first")
        await index.add(first, REPLACE)
        await index.add(index_entry(content=b"other"), REPLACE)
        await index.close()
        index = make_index()
        await index.open()
        assert await index.discarded() == [first.location]
        index.forget_discarded([first.location])
        await index.add(index_entry("2"), REPLACE)
        assert await index.discarded() == []
        await index.close()

    async def test_of_many_tasks_that_replace_one_is_kept_and_all_others_are_discarded(
        self, index: Index
    ) -> None:
        entries = [index_entry(content=b"%d" % number) for number in range(40)]
        results = await asyncio.gather(*(index.add(entry, REPLACE) for entry in entries))
        (part,) = await index.parts(_uid(entries[0]))
        discarded = [location for result in results for location in result.discarded]
        assert sorted([*discarded, part.location]) == sorted(entry.location for entry in entries)
        totals = await index.totals()
        assert (totals.patients, totals.studies, totals.series, totals.instances) == (1, 1, 1, 1)

    async def test_other_bytes_are_another_part_when_parts_are_kept(self, index: Index) -> None:
        entries = [index_entry(content=b"section %d" % number) for number in range(4)]
        results = [await index.add(entry, PARTS) for entry in entries]
        assert [result.outcome for result in results] == [AddOutcome.ADDED] + [AddOutcome.ADDED_PART] * 3
        assert [result.part_number for result in results] == [1, 2, 3, 4]
        assert [result.location for result in results] == [entry.location for entry in entries]

    async def test_the_bytes_of_any_part_are_recognised_under_any_policy(self, index: Index) -> None:
        entries = [index_entry(content=b"section %d" % number) for number in range(3)]
        for entry in entries:
            await index.add(entry, PARTS)
        for policy in DuplicatePolicy:
            result = await index.add(index_entry(content=b"section 1"), policy)
            assert (result.outcome, result.part_number) == (AddOutcome.SAME, 2)
            assert result.location == entries[1].location

    @pytest.mark.parametrize(
        "change",
        [{"transfer_syntax_uid": _IMPLICIT_LITTLE_ENDIAN}, {"digest_algorithm": "blake3"}],
        ids=lambda change: next(iter(change)),
    )
    async def test_transfer_syntax_and_digest_algorithm_belong_to_the_identity(
        self, index: Index, change: dict[str, Any]
    ) -> None:
        await index.add(index_entry(), PARTS)
        result = await index.add(index_entry(**change), PARTS)
        assert (result.outcome, result.part_number) == (AddOutcome.ADDED_PART, 2)
        kept_first = await index.add(index_entry(instance="2"), KEEP_FIRST)
        conflict = await index.add(index_entry(instance="2", **change), KEEP_FIRST)
        assert (kept_first.outcome, conflict.outcome) == (AddOutcome.ADDED, AddOutcome.CONFLICT)

    async def test_parts_stay_with_the_first_ones_series(self, index: Index) -> None:
        first = index_entry(content=b"first")
        await index.add(first, PARTS)
        result = await index.add(index_entry(content=b"other", study="8", series="9"), PARTS)
        assert result.outcome is AddOutcome.ADDED_PART
        places = {
            (part.study_instance_uid, part.series_instance_uid) for part in await index.parts(_uid(first))
        }
        assert places == {(first.summary.study_instance_uid, first.summary.series_instance_uid)}
        assert (await index.totals()).studies == 1

    async def test_a_part_that_was_changed_is_known_by_what_was_received(self, index: Index) -> None:
        changed = index_entry(stored_digest=b"of what lies there")
        assert (await index.add(changed, KEEP_FIRST)).outcome is AddOutcome.ADDED
        assert (await index.add(index_entry(), KEEP_FIRST)).outcome is AddOutcome.SAME
        (part,) = await index.parts(_uid(changed))
        assert (part.digest, part.content_digest) == (changed.digest, b"of what lies there")
        assert await index.list_parts() == [part]

    async def test_a_part_is_found_as_it_was_added(self, index: Index) -> None:
        entry = replace(
            index_entry(), digest=bytes(range(32)), calling_ae_title="Größe ' \"", size_bytes=2**40
        )
        await index.add(entry, KEEP_FIRST)
        (part,) = await index.parts(_uid(entry))
        summary = entry.summary
        assert (part.study_instance_uid, part.series_instance_uid) == (
            summary.study_instance_uid,
            summary.series_instance_uid,
        )
        assert (part.sop_class_uid, part.sop_instance_uid) == (summary.sop_class_uid, _uid(entry))
        for name in (
            *("transfer_syntax_uid", "digest_algorithm", "digest", "location", "size_bytes", "arrival_id"),
            *("dataset_offset_bytes", "received_at_ns", "calling_ae_title", "called_ae_title"),
        ):
            assert getattr(part, name) == getattr(entry, name), name
        assert isinstance(part.digest, bytes)

    async def test_parts_come_in_order_of_arrival(self, index: Index) -> None:
        entries = [index_entry(content=b"%d" % number, location=f"{9 - number}") for number in range(9)]
        for entry in entries:
            await index.add(entry, PARTS)
        parts = await index.parts(_uid(entries[0]))
        assert [part.location for part in parts] == [entry.location for entry in entries]
        assert [part.part_number for part in parts] == list(range(1, 10))

    async def test_an_unknown_instance_has_no_parts(self, index: Index) -> None:
        await index.add(index_entry(), KEEP_FIRST)
        assert await index.parts("1.2.3.4") == []
        assert await index.parts("") == []

    @pytest.mark.parametrize("header", [b"", b"\x00\xff" * 7, bytes(range(256)) * 512], ids=len)
    async def test_a_header_comes_back_byte_for_byte(self, index: Index, header: bytes) -> None:
        entry = index_entry(header=header)
        await index.add(entry, KEEP_FIRST)
        assert await index.header(entry.location) == header

    async def test_every_part_has_its_own_header(self, index: Index) -> None:
        entries = [index_entry(content=b"%d" % n, header=b"header %d" % n) for n in range(3)]
        for entry in entries:
            await index.add(entry, PARTS)
        assert [await index.header(entry.location) for entry in entries] == [e.header.pack() for e in entries]

    async def test_there_is_no_header_at_an_unknown_location(self, index: Index) -> None:
        assert await index.header("nowhere") is None

    async def test_a_part_is_found_at_its_location_until_it_is_removed(self, index: Index) -> None:
        first, second = (index_entry(content=b"%d" % n) for n in range(2))
        for entry in (first, second):
            await index.add(entry, PARTS)
        for entry in (first, second):
            assert await index.part(entry.location) == RetrievablePart(
                entry.summary.sop_class_uid,
                entry.summary.sop_instance_uid,
                entry.transfer_syntax_uid,
                entry.location,
                entry.size_bytes,
                entry.dataset_offset_bytes,
            )
        await index.remove([first.location])
        assert await index.part(first.location) is None
        assert await index.part(second.location) is not None
        assert await index.part("nowhere") is None

    async def test_unknown_locations_are_those_without_a_part_in_their_order(self, index: Index) -> None:
        known = [index_entry(str(number)) for number in range(5)]
        for entry in known:
            await index.add(entry, KEEP_FIRST)
        unknown = [f"x/{number}" for number in range(2_000)]
        asked = [*unknown[:900], *(entry.location for entry in known), *unknown[900:]]
        assert await index.unknown_locations(asked) == unknown
        assert await index.unknown_locations([]) == []

    async def test_totals_count_every_level(self, index: Index) -> None:
        assert await index.totals() == IndexTotals(0, 0, 0, 0, 0, 0)
        entries = [
            index_entry("1", study="1", series="1", patient_id="A"),
            index_entry("2", study="1", series="1", patient_id="A"),
            index_entry("3", study="1", series="2", patient_id="A"),
            index_entry("4", study="2", series="3", patient_id="A"),
            index_entry("5", study="3", series="4", patient_id="B"),
            index_entry("5", study="3", series="4", patient_id="B", content=b"another part"),
        ]
        for entry in entries:
            await index.add(entry, PARTS)
        totals = await index.totals()
        assert totals == IndexTotals(
            patients=2, studies=3, series=4, instances=5, parts=6, bytes=sum(e.size_bytes for e in entries)
        )

    async def test_one_series_uid_in_two_studies_is_two_series(self, index: Index) -> None:
        await index.add(index_entry("1", study="1", series="1"), KEEP_FIRST)
        await index.add(index_entry("2", study="2", series="1"), KEEP_FIRST)
        assert (await index.totals()).series == 2

    async def test_patients_without_an_id_are_one_only_within_their_study(self, index: Index) -> None:
        for patient_id in (None, ""):
            prefix = "1" if patient_id is None else "2"
            for number, study in enumerate(("1", "1", "2")):
                entry = index_entry(f"{prefix}{number}", study=f"{prefix}{study}", patient_id=patient_id)
                assert not (await index.add(entry, KEEP_FIRST)).patient_conflict
        assert (await index.totals()).patients == 4

    async def test_issuers_tell_patients_with_one_id_apart(self, index: Index) -> None:
        for number, issuer in enumerate((None, "", "Hospital", "Clinic", "Clinic")):
            entry = index_entry(str(number), study=str(number), issuer_of_patient_id=issuer)
            await index.add(entry, KEEP_FIRST)
        assert (await index.totals()).patients == 3

    @pytest.mark.parametrize(
        ("first", "second", "conflict"),
        [
            (("A", None), ("A", None), False),
            (("A", None), ("B", None), True),
            (("A", "X"), ("A", "Y"), True),
            (("A", None), ("A", "Y"), True),
            ((None, None), ("A", None), True),
            (("A", "X"), ("A", None), False),
            (("A", "X"), (None, None), False),
            (("A", "X"), (None, "Y"), False),
        ],
    )
    @pytest.mark.parametrize("instance", ["1", "2"], ids=["part", "instance"])
    async def test_a_study_keeps_its_first_patient_and_says_so(
        self,
        index: Index,
        first: tuple[str | None, str | None],
        second: tuple[str | None, str | None],
        conflict: bool,
        instance: str,
    ) -> None:
        await index.add(index_entry(patient_id=first[0], issuer_of_patient_id=first[1]), PARTS)
        newcomer = index_entry(instance, b"other", patient_id=second[0], issuer_of_patient_id=second[1])
        result = await index.add(newcomer, PARTS)
        assert result.outcome in {AddOutcome.ADDED, AddOutcome.ADDED_PART}
        assert result.patient_conflict is conflict
        assert (await index.totals()).patients == 1
        assert len(await index.parts(_uid(newcomer))) == 1 + (instance == "1")

    async def test_what_add_returned_is_seen_at_once(self, index: Index) -> None:
        for number in range(20):
            entry = index_entry(str(number))
            await index.add(entry, KEEP_FIRST)
            assert len(await index.parts(_uid(entry))) == 1
            assert await index.unknown_locations([entry.location]) == []

    @pytest.mark.parametrize("policy", list(DuplicatePolicy))
    async def test_one_of_many_tasks_with_the_same_bytes_adds(
        self, index: Index, policy: DuplicatePolicy
    ) -> None:
        entries = [index_entry() for _ in range(40)]
        results = await asyncio.gather(*(index.add(entry, policy) for entry in entries))
        outcomes = [result.outcome for result in results]
        assert (outcomes.count(AddOutcome.ADDED), outcomes.count(AddOutcome.SAME)) == (1, 39)
        winner = entries[outcomes.index(AddOutcome.ADDED)].location
        assert {result.location for result in results} == {winner}

    async def test_one_of_many_tasks_with_other_bytes_is_kept(self, index: Index) -> None:
        entries = [index_entry(content=b"%d" % number) for number in range(40)]
        results = await asyncio.gather(*(index.add(entry, KEEP_FIRST) for entry in entries))
        outcomes = [result.outcome for result in results]
        assert (outcomes.count(AddOutcome.ADDED), outcomes.count(AddOutcome.CONFLICT)) == (1, 39)
        (part,) = await index.parts(_uid(entries[0]))
        assert part.location == entries[outcomes.index(AddOutcome.ADDED)].location

    async def test_parts_from_many_tasks_get_each_number_once(self, index: Index) -> None:
        entries = [index_entry(content=b"%d" % (number % 30)) for number in range(60)]
        results = await asyncio.gather(*(index.add(entry, PARTS) for entry in entries))
        numbers = [r.part_number for r in results if r.outcome is not AddOutcome.SAME]
        assert sorted(numbers) == list(range(1, 31))
        assert {part.part_number for part in await index.parts(_uid(entries[0]))} == set(range(1, 31))

    async def test_many_instances_from_many_tasks_are_all_added(self, index: Index) -> None:
        entries = [
            index_entry(str(n), study=str(n % 7), series=str(n % 21), patient_id=f"P{n % 7 % 3}")
            for n in range(1_000)
        ]
        results = await asyncio.gather(*(index.add(entry, KEEP_FIRST) for entry in entries))
        assert {result.outcome for result in results} == {AddOutcome.ADDED}
        totals = await index.totals()
        assert (totals.patients, totals.studies, totals.series) == (3, 7, 21)
        assert (totals.instances, totals.parts) == (1_000, 1_000)
        assert await index.unknown_locations([entry.location for entry in entries]) == []

    async def test_references_that_repeat_are_no_error(self, index: Index) -> None:
        uids = (f"{_ROOT}.9.1", f"{_ROOT}.9.2")
        entries = [index_entry(content=b"%d" % n, referenced_sop_instance_uids=uids) for n in range(3)]
        assert (await index.add(entries[0], PARTS)).outcome is AddOutcome.ADDED
        results = await asyncio.gather(*(index.add(entry, PARTS) for entry in entries[1:]))
        assert {result.outcome for result in results} == {AddOutcome.ADDED_PART}

    async def test_a_cancelled_caller_does_not_undo_its_entry(self, index: Index) -> None:
        entry = index_entry()
        task = asyncio.create_task(index.add(entry, KEEP_FIRST))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await index.add(index_entry("2"), KEEP_FIRST)
        assert [part.location for part in await index.parts(_uid(entry))] == [entry.location]

    async def test_close_writes_what_was_accepted(self, make_index: MakeIndex) -> None:
        index = make_index()
        await index.open()
        entries = [index_entry(str(number)) for number in range(300)]
        tasks = [asyncio.create_task(index.add(entry, KEEP_FIRST)) for entry in entries]
        await asyncio.sleep(0)
        await index.close()
        assert {result.outcome for result in await asyncio.gather(*tasks)} == {AddOutcome.ADDED}
        await index.open()
        assert (await index.totals()).parts == 300
        await index.close()

    async def test_another_index_over_the_place_finds_everything(self, make_index: MakeIndex) -> None:
        first = make_index()
        await first.open()
        entries = [index_entry(content=b"%d" % number) for number in range(3)]
        for entry in entries:
            await first.add(entry, PARTS)
        before = (await first.totals(), await first.parts(_uid(entries[0])))
        await first.close()
        second = make_index()
        await second.open()
        assert (await second.totals(), await second.parts(_uid(entries[0]))) == before
        assert await second.header(entries[2].location) == entries[2].header.pack()
        repeated = await second.add(index_entry(content=b"1"), KEEP_FIRST)
        assert (repeated.outcome, repeated.part_number) == (AddOutcome.SAME, 2)
        added = await second.add(index_entry("2"), KEEP_FIRST)
        assert added.outcome is AddOutcome.ADDED
        assert (await second.totals()).series == 1
        await second.close()

    async def test_a_closed_index_is_unavailable(self, make_index: MakeIndex) -> None:
        index = make_index()
        with pytest.raises(IndexUnavailable):
            await index.add(index_entry(), KEEP_FIRST)
        await index.open()
        await index.close()
        await index.close()
        with pytest.raises(IndexUnavailable):
            await index.add(index_entry(), KEEP_FIRST)
        with pytest.raises(IndexUnavailable):
            await index.totals()

    async def test_unavailable_means_nothing_of_it_is_there_and_later_adds_succeed(
        self, index: Index, make_unavailable: MakeUnavailable
    ) -> None:
        await index.add(index_entry("0"), KEEP_FIRST)
        entries = [index_entry(str(number), study="5") for number in range(1, 9)]
        with make_unavailable():
            results = await asyncio.gather(
                *(index.add(entry, KEEP_FIRST) for entry in entries), return_exceptions=True
            )
        assert [type(result) for result in results] == [IndexUnavailable] * 8
        assert len({id(result) for result in results}) == 8
        totals = await index.totals()
        assert (totals.studies, totals.instances, totals.parts) == (1, 1, 1)
        for entry in entries:
            assert (await index.add(entry, KEEP_FIRST)).outcome is AddOutcome.ADDED

    async def test_parts_are_listed_in_pages_each_once_in_the_order_of_locations(self, index: Index) -> None:
        entries = [index_entry(str(n % 5), b"%d" % n, location=f"l/{n * 7 % 11:02}") for n in range(11)]
        for entry in entries:
            await index.add(entry, PARTS)
        for limit in (1, 4, 11, 50):
            listed: list[str] = []
            while page := await index.list_parts(after=listed[-1] if listed else "", limit=limit):
                assert len(page) <= limit
                listed += [part.location for part in page]
            assert listed == sorted(entry.location for entry in entries)
        (first,) = await index.list_parts(limit=1)
        assert first in await index.parts(first.sop_instance_uid)

    @pytest.mark.parametrize(
        ("scope", "expected"),
        [
            (Scope(Level.STUDY, f"{_ROOT}.1.1"), {"1", "2", "3", "3b"}),
            (Scope(Level.SERIES, f"{_ROOT}.2.1"), {"1", "2", "4"}),
            (Scope(Level.INSTANCE, f"{_ROOT}.3.3"), {"3", "3b"}),
            (Scope(Level.INSTANCE, f"{_ROOT}.1.1"), set()),
        ],
        ids=lambda value: value.level.value if isinstance(value, Scope) else "",
    )
    async def test_parts_of_a_scope_are_all_that_lie_below_it(
        self, index: Index, scope: Scope, expected: set[str]
    ) -> None:
        await _add_two_studies(index)
        for limit in (1, 2, 100):
            pages = [page async for page in index.parts_below(scope, limit=limit)]
            assert all(0 < len(page) <= limit for page in pages)
            assert [part.location for page in pages for part in page] == sorted(expected)

    async def test_what_comes_and_goes_while_a_scope_is_listed_is_not_in_it(self, index: Index) -> None:
        entries = [index_entry(str(n), location=f"l/{n * 7 % 11:02}") for n in range(11)]
        await asyncio.gather(*(index.add(entry, PARTS) for entry in entries))
        listed: list[str] = []
        async for page in index.parts_below(Scope(Level.STUDY, f"{_ROOT}.1.1"), limit=3):
            if not listed:
                await index.add(index_entry("99", location="l/99"), PARTS)
                await index.remove([f"l/{n:02}" for n in (1, 6, 7, 8)])
            listed += [part.location for part in page]
        assert listed == [f"l/{n:02}" for n in (0, 1, 2, 3, 4, 5, 9, 10)]

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ([UniqueKey("patient_id", ("P1",))], ["1", "2", "3", "3b"]),
            ([UniqueKey("patient_id", ("P2", "P1"))], ["1", "2", "3", "3b", "4"]),
            ([UniqueKey("patient_id", ("P1",)), UniqueKey("issuer_of_patient_id", ("HOSPITAL",))], []),
            ([UniqueKey("patient_id", ("p1",))], []),
            ([UniqueKey("study_instance_uid", (f"{_ROOT}.1.1",))], ["1", "2", "3", "3b"]),
            ([UniqueKey("study_instance_uid", (f"{_ROOT}.1.2", f"{_ROOT}.1.1") * 2)], [*"123", "3b", "4"]),
            ([UniqueKey("series_instance_uid", (f"{_ROOT}.2.1",))], ["1", "2", "4"]),
            (
                [
                    UniqueKey("study_instance_uid", (f"{_ROOT}.1.1",)),
                    UniqueKey("series_instance_uid", (f"{_ROOT}.2.1",)),
                ],
                ["1", "2"],
            ),
            ([UniqueKey("sop_instance_uid", (f"{_ROOT}.3.3",))], ["3", "3b"]),
            ([UniqueKey("sop_instance_uid", (f"{_ROOT}.3.4", f"{_ROOT}.3.9", f"{_ROOT}.3.1"))], ["1", "4"]),
            ([UniqueKey("sop_instance_uid", ("1' OR '1'='1",))], []),
            ([UniqueKey("sop_instance_uid", ())], []),
        ],
    )
    async def test_a_retrieve_is_given_every_part_once_in_the_order_of_instances(
        self, index: Index, keys: list[UniqueKey], expected: list[str]
    ) -> None:
        await _add_two_studies(index)
        found = await index.retrievable(keys, 100)
        assert [part.location for part in found] == expected
        assert [part.location for part in await index.retrievable(keys, 2)] == expected[:2]
        for part in found:
            (record,) = [r for r in await index.parts(part.sop_instance_uid) if r.location == part.location]
            assert part == tuple(getattr(record, name) for name in part._fields)

    async def test_a_retrieve_may_name_ten_thousand_instances(self, index: Index) -> None:
        await _add_two_studies(index)
        uids = tuple(f"{_ROOT}.3.{number}" for number in range(10_000))
        found = await index.retrievable([UniqueKey("sop_instance_uid", uids)], 100)
        assert [part.location for part in found] == ["1", "2", "3", "3b", "4"]

    async def test_a_retrieve_without_a_key_is_an_error(self, index: Index) -> None:
        with pytest.raises(ValueError, match="needs a key"):
            await index.retrievable([], 100)

    async def test_what_is_removed_takes_everything_with_it_that_is_empty_then(self, index: Index) -> None:
        await _add_two_studies(index)
        assert await index.remove(["4", "nowhere"]) == 1
        assert await index.totals() == IndexTotals(1, 1, 2, 3, 4, (await index.totals()).bytes)
        assert await index.header("4") is None
        assert await index.parts(f"{_ROOT}.3.4") == []
        assert await index.remove(["1", "2", "3", "3b"]) == 4
        assert await index.totals() == IndexTotals(0, 0, 0, 0, 0, 0)
        assert await index.remove([]) == 0

    async def test_other_parts_of_an_instance_stay_with_their_numbers(self, index: Index) -> None:
        await _add_two_studies(index)
        assert await index.remove(["3"]) == 1
        (left,) = await index.parts(f"{_ROOT}.3.3")
        assert (left.location, left.part_number) == ("3b", 2)
        assert await index.header("3b") == b"packed header"
        again = await index.add(index_entry("3", b"3b", series="2"), PARTS)
        assert (again.outcome, again.part_number) == (AddOutcome.SAME, 2)

    async def test_what_was_removed_can_be_added_again(self, index: Index) -> None:
        await _add_two_studies(index)
        await index.remove(["1", "2", "3", "3b", "4"])
        await _add_two_studies(index)
        totals = await index.totals()
        assert (totals.patients, totals.studies, totals.series, totals.instances) == (2, 2, 3, 4)

    async def test_many_parts_are_removed_at_once(self, index: Index) -> None:
        entries = [index_entry(str(n), study=str(n % 3)) for n in range(1_500)]
        await asyncio.gather(*(index.add(entry, KEEP_FIRST) for entry in entries))
        assert await index.remove([entry.location for entry in entries[:1_400]]) == 1_400
        assert (await index.totals()).parts == 100

    async def test_a_removal_that_fails_removes_nothing(
        self, index: Index, make_unavailable: MakeUnavailable
    ) -> None:
        await _add_two_studies(index)
        before = await index.totals()
        with make_unavailable(), pytest.raises(IndexUnavailable):
            await index.remove(["1", "2"])
        assert await index.totals() == before
        assert await index.remove(["1", "2"]) == 2

    async def test_adding_and_removing_at_once_happen_in_the_order_of_asking(self, index: Index) -> None:
        first = index_entry("1", location="first")
        results = await asyncio.gather(
            index.add(first, KEEP_FIRST),
            index.remove(["first"]),
            index.add(replace(first, location="second"), KEEP_FIRST),
        )
        assert (results[0].outcome, results[1], results[2].outcome) == (AddOutcome.ADDED, 1, AddOutcome.ADDED)
        assert [part.location for part in await index.list_parts()] == ["second"]


async def _add_two_studies(index: Index) -> None:
    """Two instances and one of two parts in study 1, one more in study 2; locations are their names."""
    for entry in (
        index_entry("1", location="1"),
        index_entry("2", location="2"),
        index_entry("3", b"3a", series="2", location="3"),
        index_entry("3", b"3b", series="2", location="3b"),
        index_entry("4", study="2", patient_id="P2", location="4", referenced_sop_instance_uids=("1.2",)),
    ):
        await index.add(entry, PARTS)
