"""Objects that are judged on their way in: what is found, what is refused, and that none is lost by it."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from scp_server.index.base import FindingFilter, FindingRecord
from scp_server.interfaces import PeerRules, ValidationPolicy
from scp_server.objects.changes import Changes
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.validation.finding import Code, Finding, Findings, Report, Severity
from scp_server.objects.validation.finding import Path as TagPath
from scp_server.objects.validation.steps import ValidationLimits
from scp_server.objects.validation.validator import Evidence, validating
from scp_server.observability.logs import captured_logs
from scp_server.pipeline.filters import ObjectFilter
from scp_server.pipeline.rules import CoerceRule, ObjectRules
from scp_server.runtime.build import build_quarantine, build_storage
from scp_server.runtime.recovery import recover
from scp_server.services.release import QuarantineRelease
from scp_server.services.validation import ValidationConfig, Validator, refusal_for
from scp_server.settings import Settings
from scp_server.storage.memory import MemoryStorage
from scp_server.storage.quarantine import Quarantine
from scp_server.testing.dataset_encoder import Element
from scp_server.testing.dicos_objects import dicos_ct, dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_operation import store_operation
from scp_server.testing.objects import ct_image
from scp_server.testing.storage_bench import StorageBench

OFF, RECORD = ValidationPolicy.OFF, ValidationPolicy.RECORD
QUARANTINE, REFUSE = ValidationPolicy.QUARANTINE, ValidationPolicy.REFUSE
OOI_ID = 0x40101040


def without_bag(*, seed: int = 0) -> EncodedObject:
    """A DICOS CT of which two attributes of type 1 are empty or absent."""
    return dicos_ct(seed=seed, replacing=[Element(0x00280301, "CS", ""), Element(0x52009230, "SQ", [])])


def undated(*, seed: int = 0) -> EncodedObject:
    """A medical CT whose Study Date (0008,0020) is none."""
    image = ct_image(seed=seed)
    header, study_date, rest = bytes(image.dataset).partition(b"\x08\x00\x20\x00DA\x08\x00")
    assert study_date
    return dataclasses.replace(image, dataset=header + study_date + b"20261399" + rest[8:])


def recording(**changed: Any) -> ValidationConfig:
    return ValidationConfig(**{"dicos": RECORD, **changed})


async def findings_of(bench: StorageBench) -> list[FindingRecord]:
    return await bench.index.findings(FindingFilter())


@asynccontextmanager
async def quarantining(
    folder: Path, config: ValidationConfig
) -> AsyncIterator[tuple[StorageBench, Quarantine]]:
    settings = Settings(data_dir=folder / "data")
    storage = build_storage(settings)
    quarantine = build_quarantine(settings, storage)
    async with StorageBench(folder, storage, quarantine=quarantine, validation=config) as bench:
        await quarantine.open()
        yield bench, quarantine
        await quarantine.close()


async def test_what_is_found_is_stored_beside_the_object(tmp_path: Path) -> None:
    async with StorageBench(tmp_path, validation=recording()) as bench:
        with captured_logs() as lines:
            assert await bench.status(store_operation(without_bag())) == 0
        found = await findings_of(bench)
        assert {each.code for each in found if each.severity == "error"} >= {"empty-type-1", "frames"}
        errors = sum(each.severity == "error" for each in found)
        assert bench.measures.findings[Severity.ERROR] == errors
        (line,) = (line for line in lines if line["event"] == "object.invalid")
        assert line["errors"] == errors
        assert "empty-type-1" in line["codes"]


async def test_a_good_object_has_no_findings_and_its_pixels_are_measured(tmp_path: Path) -> None:
    async with StorageBench(tmp_path, validation=recording()) as bench:
        assert await bench.status(store_operation(dicos_ct())) == 0
        assert await bench.status(store_operation(dicos_tdr())) == 0
        assert await findings_of(bench) == []
        short = dicos_ct(seed=2, pixels=bytes(4 * 16 * 16 * 2 - 2))
        assert await bench.status(store_operation(short)) == 0
        assert [each.code for each in await findings_of(bench)] == ["pixel-length"]


async def test_what_nobody_is_to_look_at_is_not_judged(tmp_path: Path) -> None:
    def never(*_: object) -> Generator[None, None, Report]:
        raise AssertionError("it was looked at")

    async with StorageBench(tmp_path, validator=Validator(validate=never), validation=recording()) as bench:
        assert await bench.status(store_operation(ct_image())) == 0
        operation = store_operation(without_bag())
        operation.association.peer = PeerRules("CT1", validation=OFF)
        assert await bench.status(operation) == 0
        assert await findings_of(bench) == []
        assert bench.measures.validator_failures == 0


@pytest.mark.parametrize("policy", [QUARANTINE, REFUSE])
async def test_a_refused_object_is_named_by_its_first_error_and_kept_only_in_quarantine(
    tmp_path: Path, policy: ValidationPolicy
) -> None:
    async with quarantining(tmp_path, recording(dicos=policy)) as (bench, quarantine):
        refusal = await bench.refusal(store_operation(without_bag()))
        assert refusal.status == 0xC000
        assert refusal.offending_elements == (0x00280301,)
        assert "BurnedInAnnotation" in refusal.comment or "(0028,0301)" in refusal.comment
        ids = quarantine.ids("", 10)
        assert len(ids) == (1 if policy is QUARANTINE else 0)
        for each in ids:
            record = await quarantine.record(each)
            pieces = [piece async for piece in quarantine.read(each, record.dataset_offset_bytes)]
            assert b"".join(pieces) == bytes(without_bag().dataset)
            assert record.reason == refusal.comment
        assert (await bench.index.totals()).parts == 0
        assert await bench.status(store_operation(dicos_ct(seed=9))) == 0


async def test_an_object_of_another_class_is_refused_with_a900(tmp_path: Path) -> None:
    wrong = dicos_ct(replacing=[Element(0x00080060, "CS", "DX")])
    async with StorageBench(tmp_path, validation=recording(dicos=REFUSE)) as bench:
        refusal = await bench.refusal(store_operation(wrong))
        assert (refusal.status, refusal.offending_elements) == (0xA900, (0x00080060,))
        await bench.nothing_is_left()


async def test_a_peers_own_policy_wins_over_that_of_its_objects_class(tmp_path: Path) -> None:
    async with StorageBench(tmp_path, validation=recording(dicos=REFUSE)) as bench:
        operation = store_operation(without_bag())
        operation.association.peer = PeerRules("CT1", validation=RECORD)
        assert await bench.status(operation) == 0
        assert await bench.status(store_operation(undated())) == 0
        operation = store_operation(undated(seed=5))
        operation.association.peer = PeerRules("CT2", validation=REFUSE)
        assert (await bench.refusal(operation)).offending_elements == (0x00080020,)


async def test_what_is_judged_is_the_object_as_it_will_be_stored(tmp_path: Path) -> None:
    wrong = dicos_ct(replacing=[Element(0x00280301, "CS", "")])
    mends = CoerceRule("mend", ObjectFilter(), Changes.of(set={"BurnedInAnnotation": "NO"}), dicos=True)
    rules = ObjectRules(coerce=(mends,))
    async with StorageBench(tmp_path, rules=rules, validation=recording(dicos=REFUSE)) as bench:
        assert await bench.status(store_operation(wrong)) == 0
        assert bench.measures.coerced == 1


async def test_released_from_quarantine_it_is_stored_with_what_was_found(tmp_path: Path) -> None:
    async with quarantining(tmp_path, recording(dicos=QUARANTINE)) as (bench, quarantine):
        await bench.refusal(store_operation(without_bag()))
        (object_id,) = quarantine.ids("", 10)
        result = await QuarantineRelease(quarantine, bench.service).release(object_id)
        assert result.released
        assert "empty-type-1" in {each.code for each in await findings_of(bench)}


def raising(*_: object) -> Generator[None, None, Report]:
    raise RuntimeError("a fault in a rule")


def endless(*_: object) -> Generator[None, None, Report]:
    while True:
        yield


@pytest.mark.parametrize("validate", [raising, endless])
@pytest.mark.parametrize("policy", [RECORD, QUARANTINE, REFUSE])
async def test_a_validator_that_fails_refuses_and_loses_nothing(
    tmp_path: Path, policy: ValidationPolicy, validate: Any
) -> None:
    config = recording(dicos=policy, timeout_seconds=0.05)
    validator = Validator(validate=validate)
    async with StorageBench(tmp_path, validator=validator, validation=config) as bench:
        with captured_logs() as lines:
            assert await bench.status(store_operation(without_bag())) == 0
        (found,) = await findings_of(bench)
        assert (found.code, found.severity) == ("validator-failed", "warning")
        assert [line["event"] for line in lines if line["level"] == "error"] == ["validation.failed"]


async def test_a_rule_that_fails_refuses_nothing_though_others_have_found_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault in a rule")

    monkeypatch.setattr("scp_server.objects.validation.elements.value_problems", fail)
    async with StorageBench(tmp_path, validation=recording(dicos=REFUSE)) as bench:
        assert await bench.status(store_operation(without_bag())) == 0
        assert {"empty-type-1", "validator-failed"} <= {each.code for each in await findings_of(bench)}
        assert bench.measures.validator_failures == 1


async def test_validators_that_never_end_are_left_alone_and_bounded(tmp_path: Path) -> None:
    ends, calls = threading.Event(), []

    def blocking(
        header: RawHeader, evidence: Evidence, limits: ValidationLimits
    ) -> Generator[None, None, Report]:
        calls.append(1)
        if len(calls) == 1:
            ends.wait()
        return (yield from validating(header, evidence, limits))

    validator = Validator(threads=1, validate=blocking)
    config = recording(timeout_seconds=0.05)
    async with StorageBench(tmp_path, validator=validator, validation=config) as bench:
        assert await bench.status(store_operation(dicos_ct(seed=1))) == 0
        assert await bench.status(store_operation(dicos_ct(seed=2))) == 0
        assert [each.sentence for each in await findings_of(bench)] == [
            "The validation failed: it took longer than 0.05 seconds.",
            "The validation failed: those before it have not ended.",
        ]
        assert len(calls) == 1
        ends.set()
        for seed in range(3, 500):
            assert await bench.status(store_operation(dicos_ct(seed=seed))) == 0
            if len(calls) > 1:
                break
        assert len(calls) == 2


async def test_no_more_are_judged_at_once_than_there_are_threads(tmp_path: Path) -> None:
    running: list[int] = []
    most = 0
    lock = threading.Lock()

    def counting(
        header: RawHeader, evidence: Evidence, limits: ValidationLimits
    ) -> Generator[None, None, Report]:
        nonlocal most
        with lock:
            running.append(1)
            most = max(most, len(running))
        report = yield from validating(header, evidence, limits)
        with lock:
            running.pop()
        return report

    validator = Validator(threads=2, validate=counting)
    async with StorageBench(tmp_path, validator=validator, validation=recording()) as bench:
        operations = [store_operation(dicos_ct(seed=seed)) for seed in range(8)]
        assert set(await asyncio.gather(*map(bench.status, operations))) == {0}
    assert most <= 2


async def test_no_more_findings_are_kept_than_the_setting_says(tmp_path: Path) -> None:
    async with StorageBench(tmp_path, validation=recording(max_findings=1)) as bench:
        assert await bench.status(store_operation(without_bag())) == 0
        assert [each.code for each in await findings_of(bench)][1:] == ["more-findings"]
        assert bench.measures.findings[Severity.ERROR] > 1


async def test_what_a_start_adopts_has_the_findings_it_would_have_had(tmp_path: Path) -> None:
    async with StorageBench(tmp_path, validation=recording()) as bench:
        bench.steps.stop_at("add")
        storing = asyncio.create_task(bench.status(store_operation(without_bag())))
        await bench.steps.stop_at("add").wait()
        storing.cancel()
        await asyncio.wait([storing])
        bench.steps.heal()
        successor = MemoryStorage(bench.place)
        await successor.open()
        report = await recover(successor, bench.index, bench.config, validator=bench.validator)
        await successor.close()
        assert report.adopted == 1
        assert "empty-type-1" in {each.code for each in await findings_of(bench)}


def report_of(*codes: Code) -> Report:
    findings = Findings(most=10)
    for code in codes:
        findings.add(code, f"{code}.", TagPath(OOI_ID, ((0x40101011, 2),)))
    return findings.report()


def test_only_what_is_severe_enough_and_the_objects_own_fault_refuses_it() -> None:
    mild = report_of(Code.NOT_EXAMINED, Code.VM, Code.PRIVATE_ELEMENTS)
    assert refusal_for(mild, REFUSE) is None
    refusal = refusal_for(mild, REFUSE, Severity.WARNING)
    assert refusal is not None
    assert (refusal.comment, refusal.offending_elements) == ("vm.", (OOI_ID,))
    assert refusal_for(report_of(Code.NOT_EXAMINED), REFUSE, Severity.WARNING) is None
    assert refusal_for(report_of(Code.UID), RECORD) is None
    nameless = Report((Finding(Severity.ERROR, Code.UNREADABLE, "", "", "", "It is cut."),), 1, 0, 0)
    without_element = refusal_for(nameless, QUARANTINE)
    assert without_element is not None
    assert without_element.offending_elements == ()


def test_of_an_object_that_is_read_again_the_first_peer_of_its_title_decides() -> None:
    config = ValidationConfig(dicos=RECORD, titles=(("CT1", OFF), ("US1", None), (None, REFUSE)))
    ct, dicos = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.501.1"
    assert not config.is_judged_again(dicos, "CT1")
    assert config.is_judged_again(dicos, "US1")
    assert not config.is_judged_again(ct, "US1")
    assert config.is_judged_again(ct, "OTHER")
