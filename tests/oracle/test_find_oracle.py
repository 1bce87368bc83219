"""Thousands of queries, made by chance, answered by the server and by a naive matcher: the same answers.

Every level, model and character set (PS3.4 C.4.1, C.6).
"""

from __future__ import annotations

import io
import random
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from scp_server.errors import OperationRefused
from scp_server.interfaces import AcceptedContext
from scp_server.protocol.message import CFindRQ, Response
from scp_server.protocol.status import Status
from scp_server.runtime.build import build_find_service
from scp_server.services.query_retrieve.find import FindService
from scp_server.services.query_retrieve.models import PATIENT_ROOT, PATIENT_STUDY_ONLY, STUDY_ROOT
from scp_server.testing.archive import Archive
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.fake_operation import FakeDataset, FakeOperation
from tests.oracle.find_archive import (
    PRIVATE,
    PRIVATE_CREATOR,
    SYNTAXES,
    VRS,
    archive,
    identifier,
    query,
    query_character_set,
)
from tests.oracle.find_matcher import (
    COUNTS,
    LEVEL_OF,
    UNIQUE,
    Asked,
    answer,
    broken_rule,
    compared,
    is_universal,
    read_date,
    stored,
)

ARCHIVES = 20
QUERIES = 125
MODELS = {"patient": PATIENT_ROOT, "study": STUDY_ROOT, "patient/study": PATIENT_STUDY_ONLY}
ADDED = {0x00080005, 0x00080052, 0x00080054, PRIVATE_CREATOR}
"""What an answer may have besides the keys."""

Row = tuple[Any, ...]


async def ask(
    service: FindService, asked: Asked, character_set: str, syntax: TransferSyntax
) -> tuple[int, list[tuple[int, Dataset]]]:
    """The final status, and the pending ones with their data sets."""
    model = MODELS[asked.model]
    data = identifier(asked, character_set, syntax)
    request = CFindRQ(message_id=1, has_dataset=True, affected_sop_class_uid=model.find_sop_class_uid)
    context = AcceptedContext(1, model.find_sop_class_uid, syntax.value)
    operation = FakeOperation(request, context, FakeDataset([[data]]))
    operation.association.extended_negotiations = {
        model.find_sop_class_uid: bytes(
            [asked.relational, asked.combined, asked.fuzzy, 0, 0, asked.empty_values, asked.all_values]
        )
    }
    final = await service.find(operation)
    assert isinstance(final, Response)
    implicit, big = syntax.is_implicit, syntax.byte_order == ">"
    found = []
    for response, dataset in zip(operation.sent, operation.sent_datasets, strict=True):
        assert isinstance(response, Response)
        assert dataset is not None
        found.append((response.status, read_dataset(io.BytesIO(dataset), implicit, not big)))
    return final.status, found


def expected_rows(asked: Asked, matches: dict[tuple[str, ...], dict[int, list[object]]]) -> Counter[Row]:
    return Counter(
        tuple((tag, canonical(VRS[tag], found, asked.keys[tag][1])) for tag, found in sorted(values.items()))
        for values in matches.values()
    )


def found_rows(asked: Asked, datasets: list[Dataset]) -> Counter[Row]:
    rows = []
    for dataset in datasets:
        extra = {int(element.tag) for element in dataset} - set(asked.keys)
        higher = {tag for level, tag in UNIQUE.items() if level in MODEL_TAGS}
        assert extra <= ADDED | higher
        rows.append(
            tuple(
                (tag, canonical(VRS[tag], plain_values(dataset[tag]), asked.keys[tag][1]))
                for tag in sorted(asked.keys)
                if tag in dataset
            )
        )
    return Counter(rows)


MODEL_TAGS = frozenset(UNIQUE)


def plain_values(element: Any) -> list[object]:
    if element.VR == "SQ":
        return [{int(each.tag): (each.VR, plain_values(each)) for each in item} for item in element.value]
    value = element.value
    if value is None or value == "" or value == []:
        return []
    values = list(value) if element.VM > 1 else [value]
    return [str(each) if not isinstance(each, int) or element.VR == "IS" else each for each in values]


def canonical(vr: str, values: list[Any], key: object = "") -> Row:
    """Values as they compare: padding, normal forms and old ways to write a date aside."""
    if vr == "SQ":
        return tuple(item_row(item, key) for item in values)
    texts = [unicodedata.normalize("NFC", str(value)).strip(" \0") for value in values]
    if vr == "DA":
        texts = [f"{day:%Y%m%d}" if (day := read_date(text)) else text for text in texts]
    return tuple(text for text in texts if text)


def item_row(item: dict[int, tuple[str, list[Any]]], key: object) -> Row:
    """Of an item the keys that were asked for, all of it where none was."""
    wanted = sorted(key) if isinstance(key, dict) and key else sorted(item)
    nested = key if isinstance(key, dict) else {}
    return tuple(
        (tag, canonical(VRS[tag], item.get(tag, ("", []))[1], nested.get(tag, ("", None))[1]))
        for tag in wanted
    )


def is_complete(asked: Asked, matches: dict[tuple[str, ...], dict[int, list[object]]]) -> bool:
    """Whether every key is supported, and compared where it has a value: 0xFF00, else 0xFF01."""
    for values in matches.values():
        for tag, (vr, key) in asked.keys.items():
            if tag not in values:
                return False
            if is_universal(vr, key):
                continue
            owner = LEVEL_OF.get(tag)
            if tag in COUNTS:
                return False
            if owner is not None and not asked.relational and not compared(asked, owner, tag):
                return False
    return True


@pytest.mark.parametrize("seed", range(ARCHIVES))
async def test_every_query_is_answered_as_the_naive_matcher_does(tmp_path: Path, seed: int) -> None:
    objects = archive(seed)
    made = Archive.at(tmp_path)
    statuses = await made.store(each.encoded for each in objects)
    assert set(statuses) == {0}
    kept = stored(each.plain for each in objects)
    chance = random.Random(f"queries {seed}")
    some = 0
    async with made.opened() as (_, index):
        service = build_find_service(made.settings, index)
        for number in range(QUERIES):
            asked = query(chance, objects)
            # What has no VR, neither there nor in a dictionary, is compared as bytes.
            syntaxes = [each for each in SYNTAXES if PRIVATE not in asked.keys or not each.is_implicit]
            character_set, syntax = query_character_set(chance, asked), chance.choice(syntaxes)
            said = f"seed {seed}, query {number}: {asked} in {character_set!r}, {syntax.name}"
            rule = broken_rule(asked)
            if rule is not None:
                with pytest.raises(OperationRefused) as refusal:
                    await ask(service, asked, character_set, syntax)
                assert (refusal.value.status, *refusal.value.offending_elements) == rule, said
                continue
            matches = answer(kept, asked)
            final, found = await ask(service, asked, character_set, syntax)
            assert final == Status.SUCCESS, said
            assert found_rows(asked, [each for _, each in found]) == expected_rows(asked, matches), said
            pending = Status.PENDING if is_complete(asked, matches) else 0xFF01
            assert {status for status, _ in found} <= {pending}, said
            some += bool(matches)
    assert some > QUERIES // 4, "chance made too few queries that find anything"
