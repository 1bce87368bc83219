from __future__ import annotations

from typing import Any

import pytest

from scp_server.errors import ConfigurationError, QueryError
from scp_server.objects.query_encoding import encode_identifier
from scp_server.objects.query_model import QueryLevel, QueryModel
from scp_server.objects.retrieve import asked_instances, make_retrieve
from scp_server.objects.storage_contexts import (
    DEFAULT_SOP_CLASSES,
    MAX_RECEIVED_CONTEXTS,
    storage_contexts,
)
from scp_server.objects.uids import is_dicos_sop_class, transfer_syntax

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
CT = "1.2.840.10008.5.1.4.1.1.2"
DICOS_CT = "1.2.840.10008.5.1.4.1.1.501.1"
IMAGE = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "SOPInstanceUID": ["1.4", "1.5"]}


@pytest.mark.parametrize(
    ("keys", "level", "model"),
    [
        ({"StudyInstanceUID": "1.2"}, QueryLevel.STUDY, QueryModel.STUDY),
        ({"StudyInstanceUID": ["1.2", "1.3"]}, QueryLevel.STUDY, QueryModel.STUDY),
        ({"0020,000E": "1.3", "StudyInstanceUID": "1.2"}, QueryLevel.SERIES, QueryModel.STUDY),
        (IMAGE, QueryLevel.IMAGE, QueryModel.STUDY),
        ({"PatientID": "1"}, QueryLevel.PATIENT, QueryModel.PATIENT),
        ({"PatientID": "1", "StudyInstanceUID": "1.2"}, QueryLevel.STUDY, QueryModel.PATIENT),
        ({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": "1.2"}, QueryLevel.STUDY, QueryModel.STUDY),
    ],
)
def test_level_and_model_follow_from_the_keys(
    keys: dict[str, Any], level: QueryLevel, model: QueryModel
) -> None:
    query = make_retrieve(keys)
    assert (query.level, query.model) == (level, model)


@pytest.mark.parametrize(
    ("keys", "more", "problem"),
    [
        ({}, {}, "needs StudyInstanceUID"),
        ({"StudyInstanceUID": ""}, {}, "needs its value"),
        ({"StudyInstanceUID": "1.2\\"}, {}, "needs its value"),
        ({"StudyInstanceUID": "1.*"}, {}, "no wild cards"),
        ({"StudyInstanceUID": "1.2", "StudyDate": "20260101"}, {}, "StudyDate: .* unique keys only"),
        ({"StudyInstanceUID": "1.2", "PatientName": None}, {}, "unique keys only"),
        ({"StudyInstanceUID": ["1.2", "1.3"], "SeriesInstanceUID": "1.4"}, {}, "several values"),
        ({"PatientID": "A\\B"}, {}, "several values|single value"),
        ({"StudyInstanceUID": "1.2"}, {"level": "SERIES"}, "needs SeriesInstanceUID"),
        (IMAGE, {"level": "STUDY"}, "unique keys only"),
        ({"PatientID": "1", "StudyInstanceUID": "1.2"}, {"model": "study"}, "has no level PATIENT"),
        ({"StudyInstanceUID": "1.2"}, {"model": "worklist"}, "no level|worklist"),
        ({"PatientNam": "1"}, {}, "did you mean"),
    ],
)
def test_what_no_archive_could_retrieve_is_refused_by_name(
    keys: dict[str, Any], more: dict[str, str], problem: str
) -> None:
    with pytest.raises(QueryError, match=problem):
        make_retrieve(keys, **more)


def test_the_identifier_has_the_level_and_the_unique_keys_and_nothing_else() -> None:
    data = encode_identifier(make_retrieve(IMAGE), transfer_syntax(IMPLICIT))
    assert data == (
        b"\x08\0\x18\0\x08\0\0\x001.4\\1.5\0"
        b"\x08\0\x52\0\x06\0\0\0IMAGE "
        b"\x20\0\x0d\0\x04\0\0\x001.2\0"
        b"\x20\0\x0e\0\x04\0\0\x001.3\0"
    )


def test_instances_asked_for_by_name_are_known() -> None:
    assert asked_instances(make_retrieve(IMAGE)) == {"1.4", "1.5"}
    assert asked_instances(make_retrieve({"StudyInstanceUID": "1.2"})) == frozenset()


@pytest.mark.parametrize("model", [QueryModel.STUDY, QueryModel.PATIENT])
def test_the_classes_of_a_model_are_the_standard_s(model: QueryModel) -> None:
    from pynetdicom import sop_class

    name = f"{model.name.title()}RootQueryRetrieveInformationModel"
    assert model.move_sop_class_uid == getattr(sop_class, name + "Move")
    assert model.get_sop_class_uid == getattr(sop_class, name + "Get")
    with pytest.raises(QueryError):
        _ = QueryModel.WORKLIST.get_sop_class_uid


def test_what_is_received_by_default_are_storage_classes_that_fit() -> None:
    from pydicom._uid_dict import UID_dictionary

    contexts = storage_contexts()
    assert len(contexts) <= MAX_RECEIVED_CONTEXTS
    assert {uid for uid, _ in contexts} == set(DEFAULT_SOP_CLASSES)
    assert len(set(DEFAULT_SOP_CLASSES)) == len(DEFAULT_SOP_CLASSES)
    for uid in DEFAULT_SOP_CLASSES:
        known = UID_dictionary.get(uid, ("", "", "", "", ""))
        assert "Storage" in known[0] or is_dicos_sop_class(uid), uid
    for uid, syntaxes in contexts:
        assert not (is_dicos_sop_class(uid) and IMPLICIT in syntaxes), "it would lose DICOS's own VRs"
    assert len([uid for uid, _ in contexts if uid == CT]) == 2, "uncompressed, and compressed"


def test_few_named_classes_have_a_context_for_each_syntax() -> None:
    contexts = storage_contexts([CT, DICOS_CT])
    assert all(len(syntaxes) == 1 for _, syntaxes in contexts)
    assert (CT, (IMPLICIT,)) in contexts
    assert len(set(contexts)) == len(contexts)
    assert storage_contexts([CT], [EXPLICIT]) == ((CT, (EXPLICIT,)),)


def test_many_named_classes_share_contexts_and_too_many_are_refused() -> None:
    many = [f"1.2.3.{number}" for number in range(100)]
    assert len(storage_contexts(many)) == MAX_RECEIVED_CONTEXTS
    assert {uid for uid, _ in storage_contexts(many)} == set(many)
    with pytest.raises(ConfigurationError, match="do not fit"):
        storage_contexts([f"1.2.3.{number}" for number in range(121)])
    with pytest.raises(ConfigurationError, match="is no UID"):
        storage_contexts(["CT"])
