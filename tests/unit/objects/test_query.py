from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import config, dcmread
from pydicom.dataset import Dataset

from scp_server.errors import QueryError
from scp_server.objects.query import Query, make_query
from scp_server.objects.query_encoding import encode_identifier
from scp_server.objects.query_keys import parse_key
from scp_server.objects.query_model import QueryLevel, QueryModel, QueryOptions
from scp_server.objects.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    transfer_syntax,
)

EXPLICIT = transfer_syntax(EXPLICIT_VR_LITTLE_ENDIAN)
IMPLICIT = transfer_syntax(IMPLICIT_VR_LITTLE_ENDIAN)


def identifier(keys: dict[str, Any], *, implicit: bool = False, **more: Any) -> Dataset:
    """What pydicom reads of the identifier."""
    syntax = IMPLICIT if implicit else EXPLICIT
    data = encode_identifier(make_query(keys, **more), syntax)
    file = dcmread(BytesIO(_meta(syntax.uid) + data), force=False)
    return Dataset(file)


def _meta(uid: str) -> bytes:
    raw = uid.encode() + b"\0" * (len(uid) % 2)
    element = b"\x02\x00\x10\x00UI" + len(raw).to_bytes(2, "little") + raw
    return bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00" + len(element).to_bytes(4, "little") + element


@pytest.fixture(autouse=True)
def _values_of_queries_are_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.IGNORE)


@pytest.mark.parametrize("key", ["PatientID", "0010,0020", "(0010,0020)", "00100020", " 00100020:LO "])
@pytest.mark.parametrize("implicit", [False, True])
def test_a_key_is_a_keyword_or_a_tag(key: str, implicit: bool) -> None:
    asked = identifier({key: "4711"}, implicit=implicit)
    assert asked.PatientID == "4711"
    assert asked["PatientID"].VR == "LO"


def test_keywords_of_dicos_are_known_with_their_vr() -> None:
    asked = identifier({"ThreatSequence": {"ATDAssessmentSequence": {"ThreatCategory": "EXPLOSIVE"}}})
    (threat,) = asked[0x4010, 0x1011].value
    assert asked[0x4010, 0x1011].VR == "SQ"
    (assessment,) = threat[parse_key("ATDAssessmentSequence").tag].value
    assert assessment[parse_key("ThreatCategory").tag].value == "EXPLOSIVE"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("PatientNam", "PatientName"), ("patient name", "PatientName"), ("ThreatSequenze", "Threat")],
)
def test_a_wrong_keyword_is_refused_with_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(QueryError, match=f"{wrong}.*did you mean .*{near}"):
        make_query({wrong: ""})


@pytest.mark.parametrize(
    "key", ["", "0010", "0000,0100", "0002,0010", "FFFE,E000", "0010,0000", "0010,0020:XX"]
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(QueryError):
        make_query({key: ""})


def test_levels_and_models() -> None:
    assert identifier({"PatientID": None}).QueryRetrieveLevel == "STUDY"
    assert identifier({"PatientID": None}, level="IMAGE").QueryRetrieveLevel == "IMAGE"
    assert identifier({"PatientID": None}, level="image").QueryRetrieveLevel == "IMAGE"
    assert identifier({"QueryRetrieveLevel": "SERIES", "Modality": ""}).QueryRetrieveLevel == "SERIES"
    assert "QueryRetrieveLevel" not in identifier({}, model="worklist")
    assert make_query({}, model="patient", level="PATIENT").level is QueryLevel.PATIENT


@pytest.mark.parametrize(
    ("level", "model", "said"),
    [
        ("PATIENT", "study", "the model study has no level PATIENT"),
        ("STUDIES", "study", "level 'STUDIES' is none of PATIENT, STUDY, SERIES, IMAGE"),
        ("STUDY", "worklist", "a worklist has no level"),
        (None, "root", "model 'root' is none of study, patient, worklist"),
    ],
)
def test_levels_that_a_model_has_not_are_refused(level: str | None, model: str, said: str) -> None:
    with pytest.raises(QueryError, match=said):
        make_query({}, level=level, model=model)


def test_a_level_in_the_query_and_another_beside_it_are_refused() -> None:
    with pytest.raises(QueryError, match="for level SERIES, not for STUDY"):
        make_query({"QueryRetrieveLevel": "SERIES"}, level="STUDY")


def _names(query: Query) -> list[str]:
    return [key.key.name for key in query.keys]


def test_without_a_return_key_the_usual_ones_of_the_level_are_asked_for() -> None:
    query = make_query({"StudyDate": "20260101-"}, level="STUDY")
    assert _names(query)[0] == "StudyDate"
    assert {"PatientName", "PatientID", "StudyInstanceUID"} <= set(_names(query))
    assert _names(query).count("StudyDate") == 1


@pytest.mark.parametrize("nothing", [None, "", [], [None]])
def test_with_a_return_key_exactly_what_was_asked_for(nothing: object) -> None:
    assert _names(make_query({"StudyDate": "20260101-", "PatientID": nothing})) == ["StudyDate", "PatientID"]
    inner = make_query({"ScheduledProcedureStepSequence": {"Modality": nothing}}, model=QueryModel.WORKLIST)
    assert _names(inner) == ["ScheduledProcedureStepSequence"]


def test_default_keys_are_added_inside_a_sequence_too() -> None:
    query = make_query({"ScheduledProcedureStepSequence": {"Modality": "CT"}}, model=QueryModel.WORKLIST)
    (step,) = (key for key in query.keys if key.key.name == "ScheduledProcedureStepSequence")
    assert isinstance(step.value, tuple)
    names = [key.key.name for key in step.value[0]]
    assert names[0] == "Modality"
    assert "ScheduledStationAETitle" in names
    assert names.count("Modality") == 1


@pytest.mark.parametrize("implicit", [False, True])
def test_values_of_every_kind(implicit: bool) -> None:
    asked = identifier(
        {
            "StudyInstanceUID": ["1.2.3", "1.2.4"],
            "SeriesNumber": 7,
            "SliceThickness": 1.5,
            "Rows:US": [512, "1024"],
            "(0018,9074):DT": "20260101-",
            "FrameIncrementPointer": ["00181063", "PatientID"],
            "0018,9087:FD": 0.5,
            "PatientName": {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"},
            "StudyDescription": None,
            "OtherPatientIDsSequence": [],
            "ReferencedStudySequence": [{}],
        },
        implicit=implicit,
    )
    assert asked.StudyInstanceUID == ["1.2.3", "1.2.4"]
    assert asked.SeriesNumber == 7
    assert asked.SliceThickness == 1.5
    assert asked.Rows == [512, 1024]
    assert asked[0x0018, 0x9074].value == "20260101-"
    assert asked.FrameIncrementPointer == [0x00181063, 0x00100020]
    assert asked[0x0018, 0x9087].value == 0.5
    assert asked.SpecificCharacterSet == "ISO_IR 192"
    assert asked.PatientName == "Yamada^Tarou=山田^太郎"
    assert asked.StudyDescription == ""
    assert list(asked.OtherPatientIDsSequence) == []
    assert list(asked.ReferencedStudySequence) == [Dataset()]


def test_elements_are_sent_in_the_order_of_their_tags_whatever_the_order_of_keys() -> None:
    data = encode_identifier(make_query({"PatientID": "1", "StudyDate": ""}), EXPLICIT)
    assert (
        data.index(b"\x08\x00\x20\x00DA")
        < data.index(b"\x08\x00\x52\x00CS")
        < data.index(b"\x10\x00\x20\x00LO")
    )


def test_ascii_text_needs_no_character_set() -> None:
    assert "SpecificCharacterSet" not in identifier({"PatientName": "DOE*", "SpecificCharacterSet": ""})


@pytest.mark.parametrize("implicit", [False, True])
def test_private_elements_come_with_their_creator_in_blocks_of_their_own(implicit: bool) -> None:
    asked = identifier(
        {
            "0029,ACME CT: 2,10:LO": "x",
            "(0029,OTHER, INC,10):US": 3,
            "0029,ACME CT: 2,11": None,
            "RequestAttributesSequence": {"0029,OTHER, INC,10:LO": "inside"},
        }
    )
    acme = asked.private_block(0x0029, "ACME CT: 2")
    assert acme[0x10].value == "x"
    assert 0x11 in acme
    assert asked.private_block(0x0029, "OTHER, INC")[0x10].value == 3
    (item,) = asked.RequestAttributesSequence
    assert item.private_block(0x0029, "OTHER, INC")[0x10].value == "inside"


def test_a_private_block_keeps_clear_of_tags_that_were_given_whole() -> None:
    asked = identifier({"0029,0010": "FIRST", "0029,1001:LO": "whole", "0029,SECOND,01:LO": "mine"})
    assert asked[0x0029, 0x1001].value == "whole"
    assert asked.private_block(0x0029, "FIRST")[0x01].value == "whole"
    assert asked.private_block(0x0029, "SECOND")[0x01].value == "mine"


def test_a_private_block_keeps_clear_of_elements_whose_creator_was_not_given() -> None:
    asked = identifier({"0029,1001:LO": "whole", "0029,SECOND,01:LO": "mine"})
    assert asked[0x0029, 0x1001].value == "whole"
    assert asked[0x0029, 0x1101].value == "mine"


def test_dicom_json_is_a_query_too() -> None:
    asked = identifier(
        {
            "00291001": {"vr": "LO", "Value": ["x", "y"]},
            "00100010": {"vr": "PN", "Value": [{"Alphabetic": "DOE*"}]},
            "00081030": {"vr": "LO"},
            "00400275": {"vr": "SQ", "Value": [{"00400009": {"vr": "SH", "Value": ["S1"]}}]},
            "00291002": {"vr": "OB", "InlineBinary": "AAEC"},
        }
    )
    assert asked[0x0029, 0x1001].value == ["x", "y"]
    assert asked.PatientName == "DOE*"
    assert asked.StudyDescription == ""
    assert asked.RequestAttributesSequence[0].ScheduledProcedureStepID == "S1"
    assert asked[0x0029, 0x1002].value == b"\0\1\2\0"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"0029,1001": "x"}, "no dictionary has its VR; say it, as in '0029,1001:LO'"),
        ({"PatientID": "1", "00100020": "2"}, "'00100020' is asked for twice"),
        ({"PatientID": True}, "PatientID: True is no value of VR LO"),
        ({"PatientID": {"x": 1}}, "is no value of VR LO"),
        ({"PatientID": "\ud800"}, "surrogate"),
        ({"Rows": "many"}, "Rows: 'many' is no number that VR US can have"),
        ({"Rows": 70_000}, "no number that VR US can have"),
        ({"Rows": 1.5}, "no number that VR US can have"),
        ({"RequestAttributesSequence": "x"}, "RequestAttributesSequence is a sequence"),
        ({"RequestAttributesSequence": {"PatientNam": ""}}, "PatientNam"),
        ({"SpecificCharacterSet": "ISO_IR 100"}, "follows from the values"),
        ({"PixelData": "x"}, "has to be InlineBinary"),
        ({"00291002": {"vr": "OB", "InlineBinary": "?"}}, "not Base64"),
        ({"00291002": {"vr": "OB", "BulkDataURI": "http://x"}}, "has vr and Value or InlineBinary"),
        ({"InstitutionAddress": ["a", "b"]}, "VR ST has a single value"),
        ({"FrameIncrementPointer": 5}, "5 is no tag"),
    ],
)
def test_what_no_identifier_can_say_is_refused_by_its_key(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(QueryError) as refused:
        make_query(keys)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "keys", [{"Modality": "Röntgen"}, {"StudyInstanceUID": "1.२"}, {"PatientID": "x" * 65_536}]
)
def test_values_that_cannot_be_encoded_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(QueryError, match=next(iter(keys))):
        encode_identifier(make_query(keys), EXPLICIT)


def test_sequences_of_any_depth_end_in_a_refusal_and_not_in_a_recursion() -> None:
    keys: dict[str, Any] = {"PatientID": ""}
    for _ in range(500):
        keys = {"ReferencedStudySequence": keys}
    with pytest.raises(QueryError, match="deeper than 64"):
        make_query(keys)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["PatientID", "vr", "Value", "00080018"]), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.sampled_from(
        ["PatientName", "Rows", "ReferencedStudySequence", "FrameIncrementPointer", "0029,1001", "a,b,c"]
    ),
)
def test_whatever_json_holds_is_a_query_or_is_refused(value: object, key: str) -> None:
    try:
        data = encode_identifier(make_query(json.loads(json.dumps({key: value}))), EXPLICIT)
    except QueryError:
        return
    assert b"\x08\x00\x52\x00CS" in data


def test_query_options_are_bytes_in_their_order_and_never_more_than_was_offered() -> None:
    everything = QueryOptions(True, True, True, True, True)
    assert everything.encode() == b"\1\1\1\0\0\1\1"
    assert QueryOptions(relational=True).encode() == b"\1\0\0"
    assert QueryOptions.decode(b"\1\0\1") == QueryOptions(relational=True, fuzzy_person_names=True)
    assert QueryOptions.decode(b"") == QueryOptions()
    assert QueryOptions(relational=True) & everything == QueryOptions(relational=True)
