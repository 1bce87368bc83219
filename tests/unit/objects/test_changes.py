"""Which changes can be asked for, and what is said of the others."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from scp_server.errors import ConfigurationError
from scp_server.objects.changes import Changes, CopiedFrom, FilledIn, Removed, SetTo


def test_attributes_are_named_as_in_queries() -> None:
    changes = Changes.of(
        set={"PatientID": "X", "(0008,1030)": "Y", "0029,ACME CT,10:US": [1, 258], "SeriesNumber": 5},
        remove=["00080050", "0029,ACME CT,11"],
        copy={"OtherPatientNames": "PatientName"},
    )
    found = {change.key.name: change for change in changes.by_attribute.values()}
    assert list(found) == list(changes.names)
    values = [change.value for change in found.values() if isinstance(change, SetTo)]
    assert values == ["X", "Y", b"\x01\x00\x02\x01", "5"]
    assert [type(change) for change in found.values()] == [SetTo] * 4 + [Removed] * 2 + [CopiedFrom]
    assert found["0029,ACME CT,11"].key.creator == "ACME CT"
    assert changes
    assert not Changes.of()


def test_a_text_is_a_template_only_where_that_is_asked_for() -> None:
    written = {"StudyDescription": "{Modality} {{of}} {0029,ACME,10:LO}", "PatientID": "{{x}}"}
    filled, literal = Changes.of(set=written, templates=True).by_attribute.values()
    assert isinstance(filled, FilledIn)
    assert isinstance(literal, SetTo)
    assert literal.value == "{x}"
    names = [part if isinstance(part, str) else (part.tag, part.creator) for part in filled.parts]
    assert names == [(0x00080060, None), " {", "of}", " ", (0x00290010, "ACME")]
    plain, _ = Changes.of(set=written).by_attribute.values()
    assert isinstance(plain, SetTo)
    assert plain.value == written["StudyDescription"]


def test_of_two_changes_of_an_attribute_the_later_holds() -> None:
    first = Changes.of(set={"PatientID": "X", "PatientName": "A"}, remove=["StudyID"])
    second = Changes.of(set={"0010,0020": "Y", "StudyID": "1"})
    merged = first.merged(second).by_attribute.values()
    assert [change.value for change in merged if isinstance(change, SetTo)] == ["Y", "A", "1"]
    assert len(merged) == 3


def test_changes_can_be_sent_to_another_process() -> None:
    changes = Changes.of(
        set={"PatientID": "{StudyID}"}, remove=["StudyDate"], copy={"StudyID": "PatientID"}, templates=True
    )
    assert pickle.loads(pickle.dumps(changes)) == changes


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"set": {"PatientIDD": "X"}}, "PatientIDD is no attribute .* did you mean PatientID"),
        ({"set": {"SOPClassUID": "1.2"}}, "SOPClassUID must not be changed"),
        ({"set": {"SOPInstanceUID": "1.2"}}, "SOPInstanceUID must not be changed"),
        ({"remove": ["SpecificCharacterSet"]}, "SpecificCharacterSet must not be changed"),
        ({"remove": ["OriginalAttributesSequence"]}, "OriginalAttributesSequence must not be changed"),
        ({"remove": ["DICOSVersion"]}, "DICOSVersion must not be changed"),
        ({"set": {"Rows": 1}}, r"Rows must not be changed: \(0028,0010\) describes the pixels"),
        ({"remove": ["PixelData"]}, "PixelData must not be changed"),
        ({"remove": ["FFFA,FFFA"]}, "must not be changed"),
        ({"set": {"0002,0010": "1.2"}}, "0002,0010 is no attribute that can be changed"),
        ({"set": {"0010,0000": "1"}}, "0010,0000 is no attribute that can be changed"),
        ({"set": {"0029,1010:LO": "x"}}, "0029,1010:LO must not be changed: .* say whose"),
        ({"set": {"0029,0010:LO": "x"}}, "must not be changed"),
        ({"set": {"0029,ACME,10": "x"}}, "VR that no dictionary knows: say it"),
        ({"remove": ["StudyInstanceUID"]}, "StudyInstanceUID must not be removed"),
        ({"set": {"SeriesInstanceUID": ""}}, "SeriesInstanceUID must not be empty"),
        ({"set": {"StudyInstanceUID": "1.2.x"}}, "no value of VR UI"),
        ({"set": {"RequestAttributesSequence": "x"}}, "cannot be given a value: its VR is SQ"),
        ({"set": {"StudyDate": "yesterday"}}, "no value of VR DA"),
        ({"set": {"PatientID": "x" * 65}}, "no value of VR LO"),
        ({"set": {"PatientID": {"a": "b"}}}, "no value of VR LO"),
        ({"set": {"SeriesNumber": "one"}}, "no value of VR IS"),
        ({"set": {"0029,ACME,10:US": 70_000}}, "no value of VR US"),
        ({"set": {"PatientID": "1", "0010,0020": "2"}}, "0010,0020 is changed twice"),
        ({"set": {"PatientID": "1"}, "remove": ["PatientID"]}, "PatientID is changed twice"),
        ({"copy": {"PatientID": "PatientIDD"}}, "PatientID names an attribute that is unknown: 'PatientIDD'"),
        ({"copy": {"PatientID": "RequestAttributesSequence"}}, "PatientID names .* has no text"),
        ({"set": {"PatientID": "{}"}, "templates": True}, "PatientID .* names nothing"),
        ({"set": {"PatientID": "{Foo}"}, "templates": True}, "PatientID names an attribute that is unknown"),
        (
            {"set": {"PatientID": "{StudyID"}, "templates": True},
            "PatientID has a template that cannot be read",
        ),
        ({"set": {"PatientID": "{StudyID!r}"}, "templates": True}, "PatientID has a template with !r"),
    ],
)
def test_what_cannot_be_changed_is_said_with_its_name(asked: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as refused:
        Changes.of(**asked)
    name = str(refused.value).partition(" ")[0]
    assert name in {*asked.get("set", {}), *asked.get("remove", ()), *asked.get("copy", {})} | {
        "0029,ACME,10"
    }


@pytest.mark.parametrize("value", ["Doe^Jane" * 20, {"x": "Doe^Jane"}, "Doe^Jane\\" + "y" * 400])
def test_what_is_said_of_a_value_does_not_repeat_it(value: object) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Changes.of(set={"PatientName": value})
    assert "Jane" not in str(refused.value)
