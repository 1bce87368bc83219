"""What the identifier of a C-MOVE or C-GET may ask for, and what is refused (PS3.4 C.4.2.1.4, C.4.2.2.1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import IndexUnavailable, OperationRefused
from scp_server.interfaces import AcceptedContext, PeerRules
from scp_server.objects.identifier import IdentifierLimits
from scp_server.protocol.message import CGetRQ, CMoveRQ
from scp_server.protocol.status import Status
from scp_server.services.query_retrieve.negotiation import RelationalQueries, offered_to_retrieve
from scp_server.testing.dataset_encoder import Element, TransferSyntax
from scp_server.testing.encoded_object import make_uid
from scp_server.testing.fake_operation import FakeOperation
from scp_server.testing.objects import Patient, ct_image
from scp_server.testing.retrieve_bench import RetrieveBench, retrieve_operation, study

PATIENT_ROOT, STUDY_ROOT, PATIENT_STUDY_ONLY = (f"1.2.840.10008.5.1.4.1.2.{n}" for n in (1, 2, 3))
LEVEL, PATIENT_ID, ISSUER, STUDY, SERIES, INSTANCE = (
    0x00080052,
    0x00100020,
    0x00100021,
    0x0020000D,
    0x0020000E,
    0x00080018,
)
A, B = Patient(patient_id="A"), Patient(patient_id="B")
HOSPITAL = Element(ISSUER, "LO", "HOSPITAL")
MISMATCH = Status.IDENTIFIER_DOES_NOT_MATCH_SOP_CLASS


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[RetrieveBench]:
    """Patient A has study s1 (series e1 of 0 and 1, series e2 of 2) and s2 (e3 of 3), B of two issuers s3
    (e4 of 4) and s4 (e5 of 5)."""
    objects = [
        ct_image(
            seed=n,
            patient=A if n < 4 else B,
            study_instance_uid=make_uid(of_study),
            series_instance_uid=make_uid(of_series),
            sop_instance_uid=make_uid(f"i{n}"),
            extra=[HOSPITAL] if n == 5 else [],
        )
        for n, (of_study, of_series) in enumerate(
            [("s1", "e1"), ("s1", "e1"), ("s1", "e2"), ("s2", "e3"), ("s3", "e4"), ("s4", "e5")]
        )
    ]
    async with await RetrieveBench.of(tmp_path, objects) as bench:
        yield bench


def identifier(level: str, *, extra: list[Element] | None = None, **values: str) -> list[Element]:
    """An identifier; UIDs are given by their names."""
    tags = {
        "patient": (PATIENT_ID, "LO"),
        "issuer": (ISSUER, "LO"),
        "study": (STUDY, "UI"),
        "series": (SERIES, "UI"),
        "instance": (INSTANCE, "UI"),
    }
    elements = [Element(LEVEL, "CS", level)] if level else []
    for name, value in values.items():
        tag, vr = tags[name]
        elements.append(Element(tag, vr, _uids(value) if vr == "UI" else value))
    return elements + (extra or [])


def _uids(names: str) -> str:
    parts = names.split("|") if names else []
    return "\\".join(part if set(part) & set("*?X") else make_uid(part) for part in parts)


async def sent(bench: RetrieveBench, elements: list[Element], **more: Any) -> list[int]:
    """The numbers of the objects that a C-MOVE sends."""
    await bench.perform(retrieve_operation(elements, **more))
    numbers = {each.sop_instance_uid: number for number, each in enumerate(bench.objects)}
    return [numbers[store.sop_instance_uid] for store in bench.remote.sent]


async def refused(bench: RetrieveBench, operation: FakeOperation) -> tuple[int, tuple[int, ...]]:
    """Status and offending elements of a refusal; nothing was sent before it."""
    with pytest.raises(OperationRefused) as refusal:
        await bench.perform(operation)
    assert not operation.sent
    assert not bench.remote.senders
    return refusal.value.status, refusal.value.offending_elements


@pytest.mark.parametrize("syntax", list(TransferSyntax)[:3])
@pytest.mark.parametrize(
    ("root", "elements", "expected"),
    [
        (PATIENT_ROOT, identifier("PATIENT", patient="A"), [0, 1, 2, 3]),
        (PATIENT_ROOT, identifier("PATIENT", patient="B"), [4, 5]),
        (PATIENT_ROOT, identifier("PATIENT", patient="B", issuer="HOSPITAL"), [5]),
        (PATIENT_ROOT, identifier("PATIENT", patient="B", issuer=""), [4, 5]),
        (PATIENT_ROOT, identifier("PATIENT", patient="a"), []),
        (PATIENT_ROOT, identifier("STUDY", patient="A", study="s1"), [0, 1, 2]),
        (PATIENT_ROOT, identifier("STUDY", patient="B", study="s1"), []),
        (PATIENT_ROOT, identifier("IMAGE", patient="A", study="s1", series="e1", instance="i1"), [1]),
        (STUDY_ROOT, identifier("STUDY", study="s1"), [0, 1, 2]),
        (STUDY_ROOT, identifier("STUDY", study="s4|s1"), [0, 1, 2, 5]),
        (STUDY_ROOT, identifier("STUDY", study="s1", patient="B"), [0, 1, 2]),
        (STUDY_ROOT, identifier("STUDY", study="s1", series="", instance=""), [0, 1, 2]),
        (STUDY_ROOT, identifier("SERIES", study="s1", series="e2"), [2]),
        (STUDY_ROOT, identifier("SERIES", study="s1", series="e2|e1|e3"), [0, 1, 2]),
        (STUDY_ROOT, identifier("IMAGE", study="s1", series="e1", instance="i1|i0|i2"), [0, 1]),
        (PATIENT_STUDY_ONLY, identifier("STUDY", patient="A", study="s2"), [3]),
        (PATIENT_STUDY_ONLY, identifier("PATIENT", patient="A"), [0, 1, 2, 3]),
    ],
)
async def test_unique_keys_say_what_is_sent(
    bench: RetrieveBench, syntax: TransferSyntax, root: str, elements: list[Element], expected: list[int]
) -> None:
    """PS3.4 C.4.2.2.1, PS3.4 C.4.3.2.1."""
    assert await sent(bench, elements, root=root, syntax=syntax) == expected


@pytest.mark.parametrize("get", [False, True], ids=["move", "get"])
@pytest.mark.parametrize(
    ("root", "elements", "offending"),
    [
        (STUDY_ROOT, identifier("", study="s1"), LEVEL),
        (STUDY_ROOT, identifier("INSTANCE", study="s1"), LEVEL),
        (STUDY_ROOT, identifier("PATIENT", patient="A"), LEVEL),
        (PATIENT_STUDY_ONLY, identifier("SERIES", patient="A", study="s1", series="e1"), LEVEL),
        (STUDY_ROOT, identifier("STUDY"), STUDY),
        (STUDY_ROOT, identifier("STUDY", study=""), STUDY),
        (STUDY_ROOT, identifier("STUDY", study="*"), STUDY),
        (STUDY_ROOT, identifier("STUDY", study="X"), STUDY),
        (STUDY_ROOT, identifier("STUDY", study="1.2.*"), STUDY),
        (STUDY_ROOT, identifier("STUDY", study="s1|1.2.?"), STUDY),
        (STUDY_ROOT, identifier("SERIES", series="e1"), STUDY),
        (STUDY_ROOT, identifier("SERIES", study="s1|s2", series="e1"), STUDY),
        (STUDY_ROOT, identifier("IMAGE", study="s1", instance="i1"), SERIES),
        (STUDY_ROOT, identifier("IMAGE", study="s1", series="e1|e2", instance="i1"), SERIES),
        (STUDY_ROOT, identifier("IMAGE", study="s1", series="e1"), INSTANCE),
        (STUDY_ROOT, identifier("STUDY", study="s1", instance="i1"), INSTANCE),
        (STUDY_ROOT, identifier("SERIES", study="s1", series="e1", instance="i1"), INSTANCE),
        (PATIENT_ROOT, identifier("PATIENT", patient="A\\B"), PATIENT_ID),
        (PATIENT_ROOT, identifier("PATIENT", patient="A*"), PATIENT_ID),
        (PATIENT_ROOT, identifier("PATIENT", patient="*"), PATIENT_ID),
        (PATIENT_ROOT, identifier("PATIENT", patient=""), PATIENT_ID),
        (PATIENT_ROOT, identifier("PATIENT", patient="B", issuer="HOS*"), ISSUER),
        (PATIENT_ROOT, identifier("PATIENT", patient="B", issuer="X\\Y"), ISSUER),
        (PATIENT_ROOT, identifier("STUDY", study="s1"), PATIENT_ID),
        (PATIENT_ROOT, identifier("STUDY", patient="?", study="s1"), PATIENT_ID),
    ],
)
async def test_what_the_model_does_not_allow_is_a900_with_the_offending_element(
    bench: RetrieveBench, get: bool, root: str, elements: list[Element], offending: int
) -> None:
    """PS3.4 C.4.2.2.1."""
    operation = retrieve_operation(elements, root=root, get=get)
    assert await refused(bench, operation) == (MISMATCH, (offending,))


async def test_other_keys_are_passed_over_whatever_they_say(bench: RetrieveBench) -> None:
    """PS3.4 C.4.2.1.4.1."""
    others = [
        Element(0x00080020, "DA", "no date"),
        Element(0x00080060, "CS", "MR"),
        Element(0x00100010, "PN", "Nobody*"),
        Element(0x00200013, "IS", "x"),
        Element(0x00400275, "SQ", [[Element(0x00400007, "LO", "?")]]),
        Element(0x00090010, "LO", "SOMEBODY"),
    ]
    assert await sent(bench, identifier("STUDY", study="s2", extra=others)) == [3]


@pytest.mark.parametrize(
    ("server", "peer", "agreed", "allowed"),
    [
        (RelationalQueries.NEVER, None, b"", False),
        (RelationalQueries.NEGOTIATED, None, b"", False),
        (RelationalQueries.NEGOTIATED, None, b"\0", False),
        (RelationalQueries.NEGOTIATED, None, b"\1", True),
        (RelationalQueries.NEGOTIATED, None, b"\1\0", True),
        (RelationalQueries.NEGOTIATED, True, b"", True),
        (RelationalQueries.ALWAYS, None, b"", True),
        (RelationalQueries.ALWAYS, False, b"\1", False),
    ],
)
async def test_unique_keys_of_higher_levels_may_be_left_out_of_a_relational_retrieve(
    bench: RetrieveBench, server: RelationalQueries, peer: bool | None, agreed: bytes, allowed: bool
) -> None:
    """PS3.4 C.4.2.2.2."""
    bench.config = replace(bench.config, relational=server)
    operation = retrieve_operation(identifier("IMAGE", instance="i1|i3|i4"))
    operation.association.extended_negotiations = {f"{STUDY_ROOT}.2": agreed}
    operation.association.peer = None if peer is None else PeerRules("peer", relational=peer)
    if allowed:
        assert (await bench.perform(operation)).final.status == Status.SUCCESS
        assert len(bench.remote.sent) == 3
    else:
        assert await refused(bench, operation) == (MISMATCH, (STUDY,))


async def test_a_relational_retrieve_holds_to_the_higher_keys_that_it_has(bench: RetrieveBench) -> None:
    bench.config = replace(bench.config, relational=RelationalQueries.ALWAYS)
    assert await sent(bench, identifier("IMAGE", study="s2|s3", instance="i1|i3|i4")) == [3, 4]
    bench.remote.senders.clear()
    wild = retrieve_operation(identifier("IMAGE", study="1.2.*", instance="i1"))
    assert await refused(bench, wild) == (MISMATCH, (STUDY,))


def test_relational_retrieval_is_offered_and_the_enhanced_multi_frame_view_is_not() -> None:
    """PS3.4 C.5.2.1."""
    assert offered_to_retrieve(RelationalQueries.NEGOTIATED) == b"\1\0"
    assert offered_to_retrieve(RelationalQueries.ALWAYS) == b"\1\0"
    assert offered_to_retrieve(RelationalQueries.NEVER) == b"\0\0"


async def test_ten_thousand_instances_can_be_named(bench: RetrieveBench) -> None:
    names = "|".join(f"i{number}" for number in range(10_000))
    elements = identifier("IMAGE", study="s1", series="e1", instance=names)
    assert await sent(bench, elements, syntax=TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN) == [0, 1]


# -- other refusals ------------------------------------------------------------------------------------------


async def test_an_unknown_destination_is_a801_before_anything_else(bench: RetrieveBench) -> None:
    """PS3.4 C.4.2.1.5."""
    operation = retrieve_operation(identifier("", study="*"), destination="192.0.2.1:104")
    assert await refused(bench, operation) == (Status.MOVE_DESTINATION_UNKNOWN, ())


@pytest.mark.parametrize("get", [False, True], ids=["move", "get"])
async def test_more_matches_than_allowed_are_a701(bench: RetrieveBench, get: bool) -> None:
    """PS3.4 C.4.2.1.5."""
    bench.config = replace(bench.config, max_suboperations=2)
    operation = retrieve_operation(identifier("STUDY", study="s1"), get=get)
    assert await refused(bench, operation) == (Status.UNABLE_TO_CALCULATE_NUMBER_OF_MATCHES, ())
    bench.config = replace(bench.config, max_suboperations=3)
    assert sum(filter(None, (await bench.perform(_again(operation))).outcome[1])) == 3


def _again(operation: FakeOperation) -> FakeOperation:
    return retrieve_operation(study(make_uid("s1")), get=isinstance(operation.request, CGetRQ))


async def test_a_retrieve_for_which_all_together_have_no_room_is_a701(bench: RetrieveBench) -> None:
    bench.config = replace(bench.config, max_waiting_suboperations=4)
    service, started, go_on = bench.service(), asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        started.set()
        await go_on.wait()

    bench.remote.before_answer = hold
    first = asyncio.create_task(service.move(retrieve_operation(study(make_uid("s1")))))
    await started.wait()
    with pytest.raises(OperationRefused, match="too many objects") as refusal:
        await service.move(retrieve_operation(study(make_uid("s3"), make_uid("s4"))))
    assert refusal.value.status == Status.UNABLE_TO_CALCULATE_NUMBER_OF_MATCHES
    go_on.set()
    await first
    await service.move(retrieve_operation(study(make_uid("s3"), make_uid("s4"))))
    assert len(bench.remote.sent) == 5


async def test_an_index_that_fails_is_a701(bench: RetrieveBench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise IndexUnavailable("locked")

    monkeypatch.setattr(bench.index, "retrievable", fail)
    operation = retrieve_operation(identifier("STUDY", study="s1"))
    assert await refused(bench, operation) == (Status.UNABLE_TO_CALCULATE_NUMBER_OF_MATCHES, ())


async def test_a_larger_identifier_than_allowed_is_c000(bench: RetrieveBench) -> None:
    """PS3.4 C.4.2.1.5."""
    bench.config = replace(bench.config, max_identifier_bytes=100)
    operation = retrieve_operation(identifier("STUDY", study="s1|s2|s3"))
    assert await refused(bench, operation) == (Status.CANNOT_UNDERSTAND, ())


async def test_more_keys_than_allowed_are_c000(bench: RetrieveBench) -> None:
    bench.config = replace(bench.config, limits=IdentifierLimits(max_keys=1))
    others = [Element(0x00400001, "AE", "X")]
    operation = retrieve_operation(identifier("STUDY", study="s1", extra=others))
    assert await refused(bench, operation) == (Status.CANNOT_UNDERSTAND, (0x00400001,))


async def test_a_request_without_identifier_is_a900(bench: RetrieveBench) -> None:
    operation = retrieve_operation([])
    operation.request = replace(operation.request, has_dataset=False)
    assert await refused(bench, operation) == (MISMATCH, ())


@pytest.mark.parametrize(
    ("context", "affected"),
    [
        (f"{STUDY_ROOT}.3", f"{STUDY_ROOT}.3"),
        (f"{STUDY_ROOT}.2", f"{PATIENT_ROOT}.2"),
        (f"{STUDY_ROOT}.1", f"{STUDY_ROOT}.2"),
        ("1.2.840.10008.5.1.4.1.2.4.2", "1.2.840.10008.5.1.4.1.2.4.2"),
    ],
)
async def test_a_move_on_another_context_than_its_own_is_0122(
    bench: RetrieveBench, context: str, affected: str
) -> None:
    """PS3.4 C.4.2.1.5."""
    operation = retrieve_operation(study(make_uid("s1")))
    assert isinstance(operation.request, CMoveRQ)
    operation.request = replace(operation.request, affected_sop_class_uid=affected)
    operation.context = AcceptedContext(1, context, TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN.value)
    assert await refused(bench, operation) == (Status.SOP_CLASS_NOT_SUPPORTED, ())
