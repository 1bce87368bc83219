"""Asking the service that answers queries, without a network: keys by keyword, answers as data sets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from scp_server.errors import OperationRefused
from scp_server.interfaces import AcceptedContext, PeerRules
from scp_server.protocol.message import CFindRQ, Response
from scp_server.runtime.build import build_find_service
from scp_server.services.query_retrieve.models import STUDY_ROOT, InformationModel
from scp_server.settings import Settings
from scp_server.settings.query import QuerySettings
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.dicos_objects import TWO_THREATS, dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_operation import FakeDataset, FakeOperation
from scp_server.testing.objects import JAPANESE, LATIN, Patient, ct_image, structured_report

EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
LEVEL = 0x00080052
JANE = Patient("Doe^Jane", "PAT-1")
NOBODY = Patient("", "PAT-0", birth_date="", sex="")
SECTIONS = two_section_ct()
REPORT = dicos_tdr(SECTIONS[0], threats=TWO_THREATS)


def image(uid: str, patient: Patient, seed: int = 0, *, private: bool = False) -> EncodedObject:
    """A CT image whose study's and series' UIDs are the beginning of its own."""
    return ct_image(
        study_instance_uid=uid[:-2],
        series_instance_uid=uid[:-1],
        sop_instance_uid=uid,
        patient=patient,
        seed=seed,
        private=private,
        sequences=private,
    )


def archived() -> list[EncodedObject]:
    """Two studies of one patient, three of others, a scan of two parts with its report."""
    report = structured_report(
        study_instance_uid="2.25.1",
        series_instance_uid="2.25.12",
        sop_instance_uid="2.25.121",
        patient=JANE,
    )
    return [
        image("2.25.111", JANE),
        image("2.25.112", JANE, seed=1),
        report,
        image("2.25.211", JANE, private=True),
        image("2.25.311", JAPANESE),
        image("2.25.411", LATIN),
        image("2.25.511", NOBODY),
        *SECTIONS,
        REPORT,
    ]


def key(keyword: str, value: Any = "") -> Element:
    """A key by its keyword, with the dictionary's VR."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return Element(tag, dictionary_VR(tag), value)


@dataclass
class Asked:
    """How a query ended, and what was answered before."""

    final: int
    statuses: list[int]
    matches: list[Dataset]
    operation: FakeOperation = field(repr=False)

    def values(self, keyword: str) -> list[str]:
        """The values of one attribute in all matches, sorted, several joined by a backslash."""
        return sorted(text_of(match, keyword) for match in self.matches)


def text_of(match: Dataset, keyword: str) -> str:
    """A value as text; several are joined by a backslash."""
    element = match[keyword]
    if element.value is None:
        return ""
    return "\\".join(map(str, element.value)) if element.VM > 1 else str(element.value)


def operation_for(
    level: str,
    *keys: Element,
    model: InformationModel = STUDY_ROOT,
    agreed: Sequence[int] = (),
    relational: bool | None = None,
    is_dicos: bool = False,
    syntax: TransferSyntax = EXPLICIT,
    codec: str = "ascii",
) -> FakeOperation:
    """A C-FIND. `agreed` are the bytes of extended negotiation, `relational` is what the peer's rules say."""
    levels = [Element(LEVEL, "CS", level)] if level else []
    data = DatasetEncoder(syntax, codec).encode([*levels, *keys])
    uid = model.find_sop_class_uid
    request = CFindRQ(message_id=7, has_dataset=True, affected_sop_class_uid=uid)
    operation = FakeOperation(request, AcceptedContext(3, uid, syntax.value), FakeDataset([[data]]))
    operation.association.extended_negotiations = {uid: bytes(agreed)}
    operation.association.is_dicos = is_dicos
    if relational is not None:
        operation.association.peer = PeerRules("peer", relational=relational)
    return operation


async def ask(index: Any, level: str, *keys: Element, query: Any = None, **how: Any) -> Asked:
    """Ask under settings of `[query]`; see `operation_for`."""
    return await perform(index, operation_for(level, *keys, **how), **(query or {}))


async def perform(index: Any, operation: FakeOperation, **query: Any) -> Asked:
    """Have an operation performed under settings of `[query]`."""
    final = await build_find_service(Settings(query=QuerySettings(**query)), index).find(operation)
    assert isinstance(final, Response)
    syntax = TransferSyntax(operation.context.transfer_syntax)
    matches, statuses = [], []
    for response, dataset in zip(operation.sent, operation.sent_datasets, strict=True):
        assert isinstance(response, Response)
        assert dataset is not None
        statuses.append(response.status)
        matches.append(read_dataset(io.BytesIO(dataset), syntax.is_implicit, syntax.byte_order == "<"))
    return Asked(final.status, statuses, matches, operation)


async def refused(index: Any, level: str, *keys: Element, **how: Any) -> tuple[int, tuple[int, ...]]:
    """The status and the offending elements that a query is refused with; it says why, in 64 characters."""
    with pytest.raises(OperationRefused) as refusal:
        await ask(index, level, *keys, **how)
    assert 0 < len(refusal.value.comment) <= 64, refusal.value.comment
    return refusal.value.status, refusal.value.offending_elements
