"""The contract suite for reports, scans and decisions in an index. See `index_contract`."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from typing import Any

import pytest

from scp_server.index.base import DuplicatePolicy, Index, IndexEntry
from scp_server.index.events import DECISION_CHANGED, TDR_MISSING, TDR_ORPHAN, TDR_RECEIVED
from scp_server.index.search import Entity, EntityLevel, Search
from scp_server.testing.dicos_objects import DICOS_CT_IMAGE_STORAGE, DICOS_TDR_STORAGE
from scp_server.testing.index_contract import (
    KEEP_FIRST,
    PARTS,
    REPLACE,
    IndexSuite,
    MakeIndex,
    index_entry,
)

DECISION = (
    *("current_alarm_decision", "current_alarm_decision_time", "current_tdr_type"),
    "deciding_sop_instance_uid",
)
_EARLY, _LATE, _LATEST = (f"2026112010{minute}00+0000" for minute in (11, 12, 13))
NEVER = -1


def uid(instance: str) -> str:
    """The SOP Instance UID of `ct(instance)` or `tdr(instance)`."""
    return index_entry(instance).summary.sop_instance_uid


def study_uid(study: str) -> str:
    """The Study Instance UID."""
    return index_entry(study=study).summary.study_instance_uid


def ct(instance: str, *, study: str = "1", peer_name: str | None = "lane 7", **attributes: Any) -> IndexEntry:
    """A DICOS image."""
    entry = index_entry(instance, instance.encode(), study=study, series=f"1{study}", **attributes)
    summary = replace(entry.summary, sop_class_uid=DICOS_CT_IMAGE_STORAGE)
    return replace(entry, summary=summary, peer_name=peer_name)


def tdr(
    instance: str,
    on: tuple[str, ...] = ("1",),
    *,
    kind: str | None = "MACHINE",
    decision: str | None = "ALARM",
    at: str | None = _EARLY,
    study: str = "1",
    content: str = "",
) -> IndexEntry:
    """A report on the instances `on`."""
    entry = index_entry(
        instance,
        f"{instance} {content}".encode(),
        study=study,
        series=f"2{study}",
        tdr_type=kind,
        alarm_decision=decision,
        alarm_decision_time=at,
        referenced_sop_instance_uids=tuple(map(uid, on)),
    )
    summary = replace(entry.summary, sop_class_uid=DICOS_TDR_STORAGE)
    return replace(entry, summary=summary, peer_name="viewer")


async def decisions(index: Index) -> dict[str, tuple[Any, ...]]:
    """Decision, time, type and report of each study; UIDs by their last part."""

    def judge(entity: Entity) -> tuple[str, tuple[Any, ...]]:
        decision, at, kind, report = (entity.values[name] for name in DECISION)
        last = None if report is None else str(report).rpartition(".")[2]
        return str(entity.values["study_instance_uid"]).rpartition(".")[2], (decision, at, kind, last)

    search = index.search(Search(EntityLevel.STUDY), judge)
    return dict([each async for page in search for each in page])


async def told(index: Index, *kinds: str) -> list[dict[str, Any]]:
    """What the log has of these kinds."""
    rows = await index.event_log.rows(0, 10_000)
    return [{"kind": row.kind, **json.loads(row.data)} for row in rows if row.kind in kinds]


async def changes(index: Index) -> list[tuple[str, Any, Any, Any]]:
    """Study, from, to, and whose of each change."""
    return [
        (each["study_instance_uid"].rpartition(".")[2], each["from"], each["to"], each["tdr_type"])
        for each in await told(index, DECISION_CHANGED)
    ]


class DecisionContract(IndexSuite):
    """What every index must do with reports; its log is kept by this process."""

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["image first", "report first"])
    async def test_a_report_decides_on_the_scan_of_its_image_whichever_comes_first(
        self, index: Index, order: tuple[int, int]
    ) -> None:
        both = ct("1"), tdr("9", study="2")
        for number in order:
            await index.add(both[number], PARTS)
        assert await decisions(index) == {
            "1": ("ALARM", _EARLY, "MACHINE", "9"),
            "2": (None, None, None, None),
        }
        assert await changes(index) == [("1", None, "ALARM", "MACHINE")]
        (received,) = await told(index, TDR_RECEIVED)
        assert received["sop_instance_uid"] == uid("9")
        assert received["scans"] == ([study_uid("1")] if order == (0, 1) else [])

    async def test_an_operator_overrides_the_machine_and_a_later_report_an_earlier_one(
        self, index: Index
    ) -> None:
        reports = [
            tdr("11", at=_LATEST),
            tdr("12", kind="OPERATOR", decision="CLEAR"),
            tdr("13", kind="MACHINE", decision="UNKNOWN", at=_LATEST),
            tdr("14", kind="OPERATOR", decision="ALARM", at=_LATE),
            tdr("15", kind="OPERATOR", decision="CLEAR", at=_EARLY),
            tdr("16", kind="GROUND TRUTH", decision="CLEAR", at=_LATEST),
        ]
        for entry in [ct("1"), *reports]:
            await index.add(entry, PARTS)
        assert await decisions(index) == {"1": ("ALARM", _LATE, "OPERATOR", "14")}
        assert await changes(index) == [
            ("1", None, "ALARM", "MACHINE"),
            ("1", "ALARM", "CLEAR", "OPERATOR"),
            ("1", "CLEAR", "ALARM", "OPERATOR"),
        ]

    async def test_a_report_may_be_on_several_scans(self, index: Index) -> None:
        for entry in (ct("1", study="1"), tdr("9", ("1", "2"), study="3"), ct("2", study="2")):
            await index.add(entry, PARTS)
        found = await decisions(index)
        assert [found[study][0] for study in "123"] == ["ALARM", "ALARM", None]

    async def test_a_report_that_names_a_study_is_on_that(self, index: Index) -> None:
        report = tdr("9", (), study="3")
        summary = replace(report.summary, referenced_sop_instance_uids=(study_uid("1"),))
        await index.add(replace(report, summary=summary), PARTS)
        await index.add(ct("1"), PARTS)
        assert (await decisions(index))["1"][0] == "ALARM"

    async def test_a_report_that_refers_to_nothing_is_on_its_own_study(self, index: Index) -> None:
        await index.add(tdr("9", (), decision="CLEAR"), PARTS)
        assert await decisions(index) == {"1": ("CLEAR", _EARLY, "MACHINE", "9")}
        await index.event_log.tell_overdue(NEVER, 2**62)
        assert await told(index, TDR_ORPHAN) == []

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
    async def test_an_aggregate_of_an_operators_report_counts_as_one(
        self, index: Index, order: tuple[int, ...]
    ) -> None:
        reports = [
            tdr("11", kind="OPERATOR", decision="CLEAR"),
            tdr("12", ("1", "11"), kind="AGGREGATE", decision="ALARM", at=_LATE),
            tdr("13", kind="AGGREGATE", decision="CLEAR", at=_LATEST),
        ]
        await index.add(ct("1"), PARTS)
        for number in order:
            await index.add(reports[number], PARTS)
        assert await decisions(index) == {"1": ("ALARM", _LATE, "AGGREGATE", "12")}
        await index.remove([reports[0].location])
        assert await decisions(index) == {"1": ("CLEAR", _LATEST, "AGGREGATE", "13")}

    async def test_a_report_that_is_deleted_decides_no_more(self, index: Index) -> None:
        machine, operator = tdr("11"), tdr("12", kind="OPERATOR", decision="CLEAR")
        for entry in (ct("1"), machine, operator):
            await index.add(entry, PARTS)
        await index.remove([operator.location])
        assert await decisions(index) == {"1": ("ALARM", _EARLY, "MACHINE", "11")}
        await index.remove([machine.location])
        assert await decisions(index) == {"1": (None,) * 4}
        assert (await changes(index))[-2:] == [("1", "CLEAR", "ALARM", "MACHINE"), ("1", "ALARM", None, None)]

    async def test_a_report_whose_image_is_deleted_is_not_on_its_scan_any_more(self, index: Index) -> None:
        first, second = ct("1"), ct("2")
        for entry in (first, second, tdr("9", study="3")):
            await index.add(entry, PARTS)
        await index.remove([first.location])
        assert (await decisions(index))["1"] == (None,) * 4
        await index.add(first, PARTS)
        assert (await decisions(index))["1"][0] == "ALARM"

    async def test_a_report_that_is_replaced_decides_as_the_newcomer_says(self, index: Index) -> None:
        await index.add(ct("1"), KEEP_FIRST)
        await index.add(tdr("9"), KEEP_FIRST)
        await index.add(tdr("9", decision="CLEAR", content="new"), REPLACE)
        assert await decisions(index) == {"1": ("CLEAR", _EARLY, "MACHINE", "9")}
        await index.add(tdr("9", ("7",), decision="CLEAR", content="elsewhere"), REPLACE)
        assert await decisions(index) == {"1": (None,) * 4}

    async def test_a_report_follows_its_image_when_that_is_replaced_in_another_scan(
        self, index: Index
    ) -> None:
        for entry in (ct("1", study="1"), ct("2", study="1"), tdr("9", study="3")):
            await index.add(entry, KEEP_FIRST)
        newcomer = replace(ct("1", study="2"), digest=b"new")
        await index.add(newcomer, REPLACE)
        found = await decisions(index)
        assert (found["1"][0], found["2"][0]) == (None, "ALARM")

    async def test_what_is_no_dicos_object_is_no_scan(self, index: Index) -> None:
        await index.add(index_entry("1"), KEEP_FIRST)
        await index.event_log.tell_overdue(2**62, 2**62)
        assert await told(index, TDR_MISSING) == []

    async def test_a_scan_without_a_report_is_told_of_once_also_after_a_restart(
        self, index: Index, make_index: MakeIndex
    ) -> None:
        await index.add(ct("1"), PARTS)
        first_at, _ = index.event_log.oldest_awaiting_ns
        await index.add(ct("2"), PARTS)
        await index.event_log.tell_overdue(first_at, NEVER)
        assert await told(index, TDR_MISSING) == []
        await index.close()
        again = make_index()
        await again.open()
        await again.event_log.tell_overdue(2**62, NEVER)
        await again.add(ct("3"), PARTS)
        await again.event_log.tell_overdue(2**62, NEVER)
        (missing,) = await told(again, TDR_MISSING)
        assert (missing["study_instance_uid"], missing["peer_name"]) == (study_uid("1"), "lane 7")
        assert again.event_log.oldest_awaiting_ns == (0, 0)
        await again.add(tdr("9"), PARTS)
        (change,) = await told(again, DECISION_CHANGED)
        assert (change["to"], change["peer_name"]) == ("ALARM", "lane 7")
        await again.close()

    async def test_a_scan_with_a_report_waits_for_none(self, index: Index) -> None:
        await index.add(tdr("9"), PARTS)
        await index.add(ct("1"), PARTS)
        await index.add(ct("2"), PARTS)
        await index.event_log.tell_overdue(2**62, 2**62)
        assert await told(index, TDR_MISSING, TDR_ORPHAN) == []

    async def test_a_report_on_nothing_is_told_of_once_and_decides_when_its_image_comes(
        self, index: Index
    ) -> None:
        await index.add(tdr("9", study="2"), PARTS)
        for _ in range(2):
            await index.event_log.tell_overdue(NEVER, 2**62)
        (orphan,) = await told(index, TDR_ORPHAN)
        assert (orphan["sop_instance_uid"], orphan["study_instance_uid"]) == (uid("9"), study_uid("2"))
        await index.add(ct("1"), PARTS)
        assert (await decisions(index))["1"][0] == "ALARM"

    async def test_what_is_deleted_is_not_told_of(self, index: Index) -> None:
        image, report = ct("1", study="1"), tdr("9", ("7",), study="2")
        for entry in (image, report):
            await index.add(entry, PARTS)
        await index.remove([image.location, report.location])
        await index.event_log.tell_overdue(2**62, 2**62)
        assert await told(index, TDR_MISSING, TDR_ORPHAN) == []

    async def test_latency_is_by_the_machines_clock_and_by_ours(self, index: Index) -> None:
        image = ct("1", study_date="20261120", study_time="101058")
        report = tdr("9")
        await index.add(replace(image, received_at_ns=1_000_000_000), PARTS)
        await index.add(replace(report, received_at_ns=4_500_000_000), PARTS)
        (change,) = await told(index, DECISION_CHANGED)
        assert (change["scan_to_decision_ms"], change["image_to_report_ms"]) == (2_000, 3_500)

    async def test_no_event_says_whose_bag_it_is(self, index: Index) -> None:
        for entry in (ct("1", patient_id="BAG42"), tdr("9"), tdr("8", ("5",)), ct("2", study="2")):
            await index.add(entry, PARTS)
        await index.event_log.tell_overdue(2**62, 2**62)
        rows = await index.event_log.rows(0, 100)
        assert {row.kind for row in rows} >= {TDR_RECEIVED, TDR_MISSING, TDR_ORPHAN, DECISION_CHANGED}
        assert not any("BAG42" in row.data for row in rows)

    @pytest.mark.parametrize("seed", range(6))
    async def test_the_order_in_which_a_bags_objects_come_and_restarts_make_no_difference(
        self, make_index: MakeIndex, seed: int
    ) -> None:
        chance = random.Random(seed)
        arrivals: list[tuple[IndexEntry, DuplicatePolicy]] = [
            (entry, PARTS)
            for entry in (
                *(ct("1", study="1"), ct("2", study="1"), ct("3", study="2")),
                tdr("11", ("1", "2"), at=_LATEST),
                tdr("12", ("1", "3"), kind="AGGREGATE", decision="CLEAR", study="3"),
                tdr("13", ("2", "11"), kind="AGGREGATE", decision="UNKNOWN", at=_LATE),
                tdr("14", ("3", "12"), kind="OPERATOR", decision="CLEAR", study="2"),
                tdr("15", ("3", "14"), kind="AGGREGATE", decision="ALARM", at=_LATE, study="2"),
                tdr("16", ("1",), kind="GROUND TRUTH", decision="CLEAR", at=_LATEST),
                tdr("17", ("99",), kind="OPERATOR", decision="CLEAR", study="1"),
            )
        ]
        chance.shuffle(arrivals)
        index = make_index()
        await index.open()
        while arrivals:
            size = chance.randint(1, 3)
            batch, arrivals = arrivals[:size], arrivals[size:]
            await asyncio.gather(*(index.add(entry, policy) for entry, policy in batch))
            if chance.random() < 0.5:
                await index.close()
                index = make_index()
                await index.open()
                # What was acknowledged comes again.
                await index.add(*batch[0])
        assert await decisions(index) == {
            "1": ("UNKNOWN", _LATE, "AGGREGATE", "13"),
            "2": ("ALARM", _LATE, "AGGREGATE", "15"),
            "3": (None,) * 4,
        }
        last = {each[0]: each[2] for each in await changes(index)}
        assert last == {"1": "UNKNOWN", "2": "ALARM"}
        await index.event_log.tell_overdue(2**62, 2**62)
        assert [each["sop_instance_uid"] for each in await told(index, TDR_ORPHAN)] == [uid("17")]
        assert await told(index, TDR_MISSING) == []
        await index.close()
