"""What becomes of each key: matched by a column or a header, returned only, or left out (PS3.4 C.4.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scp_server.index.store import SqlIndex
from scp_server.services.query_retrieve.models import PATIENT_ROOT, STUDY_ROOT, InformationModel
from scp_server.testing.archive import Archive
from scp_server.testing.dataset_encoder import Element, TransferSyntax
from scp_server.testing.dicos_objects import dicos_ct, dicos_tdr
from tests.unit.services.query_retrieve.asking import EXPLICIT, REPORT, SECTIONS, ask, key, text_of

PATIENT = key("PatientID", "PAT-1")
STUDY = key("StudyInstanceUID", "2.25.1")
SERIES = key("SeriesInstanceUID", "2.25.11")
BAG = key("PatientID", "BAG0001")
RELATIONAL = {"agreed": (1,)}


def tags_of(match: Any) -> set[int]:
    return {int(element.tag) for element in match}


# --- what is returned (C.4.1.3.1.1)


async def test_an_answer_has_the_keys_the_level_the_unique_keys_and_retrieve_ae_title_c_4_1_3_1_1(
    archive: SqlIndex,
) -> None:
    asked = await ask(archive, "IMAGE", STUDY, SERIES, key("Rows"), query={})
    assert {frozenset(tags_of(match)) for match in asked.matches} == {
        frozenset({0x00080018, 0x00080052, 0x00080054, 0x0020000D, 0x0020000E, 0x00280010})
    }
    assert asked.values("RetrieveAETitle") == ["SCP_SERVER"] * 2
    assert asked.values("Rows") == ["64", "64"]


async def test_keys_of_an_answer_ascend_whatever_their_order_was_ps3_5_7_1(archive: SqlIndex) -> None:
    asked = await ask(archive, "STUDY", key("StudyID"), key("PatientName"), key("StudyDate"))
    for match in asked.matches:
        tags = [int(element.tag) for element in match]
        assert tags == sorted(tags)


@pytest.mark.parametrize(
    "syntax", [EXPLICIT, TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN, "1.2.840.10008.1.2.2"]
)
async def test_an_answer_is_in_the_contexts_transfer_syntax(archive: SqlIndex, syntax: str) -> None:
    asked = await ask(archive, "STUDY", STUDY, key("PatientName"), key("Rows"), syntax=TransferSyntax(syntax))
    (match,) = asked.matches
    assert (str(match.PatientName), match.Rows, match.StudyInstanceUID) == ("Doe^Jane", 64, "2.25.1")


async def test_a_supported_key_without_a_value_is_returned_empty_c_4_1_1_3_2(archive: SqlIndex) -> None:
    absent = [
        key("PatientBirthDate"),
        key("BodyPartExamined"),
        key("PatientWeight"),
        key("ProcedureCodeSequence", []),
    ]
    asked = await ask(archive, "STUDY", key("StudyInstanceUID", "2.25.5"), *absent)
    (match,) = asked.matches
    assert asked.statuses == [0xFF00]
    assert [match[each.tag].is_empty for each in absent] == [True] * len(absent)


async def test_a_universal_key_of_instance_availability_is_online_c_4_1_1_3_2(archive: SqlIndex) -> None:
    asked = await ask(archive, "STUDY", STUDY, key("InstanceAvailability"), key("RetrieveAETitle"))
    (match,) = asked.matches
    assert (match.InstanceAvailability, match.RetrieveAETitle) == ("ONLINE", "SCP_SERVER")
    assert asked.statuses == [0xFF00]


@pytest.mark.parametrize("keyword", ["RetrieveAETitle", "InstanceAvailability"])
async def test_what_an_scu_shall_not_ask_for_is_tolerated_and_not_matched_c_4_1_1_3_2(
    archive: SqlIndex, keyword: str
) -> None:
    asked = await ask(archive, "STUDY", STUDY, key(keyword, "OTHER"))
    assert len(asked.matches) == 1


# --- keys of higher levels (C.4.1.2.1)


async def test_a_key_of_a_higher_level_is_returned_and_not_matched_with_ff01_c_4_1_2_1(
    archive: SqlIndex,
) -> None:
    asked = await ask(archive, "SERIES", STUDY, key("StudyDate", "19990101"), key("SeriesNumber"))
    assert asked.statuses == [0xFF01] * 2
    assert asked.values("StudyDate") == ["20261120"] * 2
    asked = await ask(archive, "SERIES", STUDY, key("StudyDate"), key("PatientName"))
    assert asked.statuses == [0xFF00] * 2
    assert asked.values("PatientName") == ["Doe^Jane"] * 2


async def test_a_relational_query_matches_keys_of_every_level_c_4_1_2_2(archive: SqlIndex) -> None:
    asked = await ask(archive, "SERIES", key("StudyDate", "19990101"), **RELATIONAL)
    assert asked.matches == []
    asked = await ask(archive, "SERIES", key("PatientName", "DOE*"), key("Modality", "CT"), **RELATIONAL)
    assert asked.values("SeriesInstanceUID") == ["2.25.11", "2.25.21"]
    assert set(asked.statuses) == {0xFF00}


async def test_the_issuer_is_matched_with_its_patient_id(archive: SqlIndex) -> None:
    for issuer, found in (("ACME AIRPORT BHS", 1), ("OTHER", 0)):
        keys = [BAG, key("IssuerOfPatientID", issuer)]
        asked = await ask(archive, "STUDY", *keys, model=PATIENT_ROOT)
        assert asked.statuses == [0xFF00] * found


async def test_in_the_study_root_a_patients_attributes_are_the_studys_c_6_2_1(archive: SqlIndex) -> None:
    asked = await ask(archive, "STUDY", key("PatientID", "PAT-1"), key("PatientSex", "F"))
    assert (asked.values("StudyInstanceUID"), set(asked.statuses)) == (["2.25.1", "2.25.2"], {0xFF00})


# --- keys of lower levels, and what is computed (C.3.4)


@pytest.mark.parametrize(
    ("keyword", "value", "studies"),
    [
        ("Modality", "SR", ["2.25.1"]),
        ("ModalitiesInStudy", "SR", ["2.25.1"]),
        ("ModalitiesInStudy", "TDR", [REPORT.study_instance_uid]),
        (
            "ModalitiesInStudy",
            "C?\\SR",
            ["2.25.1", "2.25.2", "2.25.3", "2.25.4", "2.25.5", REPORT.study_instance_uid],
        ),
        ("ModalitiesInStudy", "MR", []),
        ("SOPClassesInStudy", "1.2.840.10008.5.1.4.1.1.88.11", ["2.25.1"]),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.11", ["2.25.1"]),
        ("InstanceNumber", "2", ["2.25.1"]),
        ("StationName", "EDS-07", [REPORT.study_instance_uid]),
    ],
)
async def test_an_attribute_of_a_lower_level_matches_when_one_value_below_does_c_2_2_3(
    archive: SqlIndex, keyword: str, value: str, studies: list[str]
) -> None:
    asked = await ask(archive, "STUDY", key(keyword, value))
    assert asked.values("StudyInstanceUID") == sorted(studies)
    assert set(asked.statuses) <= {0xFF00}


async def test_all_values_below_are_returned_c_3_4(archive: SqlIndex) -> None:
    keys = [
        key("ModalitiesInStudy", "SR"),
        key("SOPClassesInStudy"),
        key("InstanceNumber"),
        key("SeriesDate"),
    ]
    asked = await ask(archive, "STUDY", *keys)
    (match,) = asked.matches
    assert [
        text_of(match, each) for each in ("ModalitiesInStudy", "SOPClassesInStudy", "InstanceNumber")
    ] == [
        "CT\\SR",
        "1.2.840.10008.5.1.4.1.1.2\\1.2.840.10008.5.1.4.1.1.88.11",
        "1\\2",
    ]


async def test_the_unique_key_of_a_lower_level_is_left_out_with_ff01_c_4_1_1_3_2(archive: SqlIndex) -> None:
    asked = await ask(archive, "STUDY", STUDY, key("SeriesInstanceUID", "2.25.11"), key("SOPInstanceUID"))
    assert asked.statuses == [0xFF01]
    assert not tags_of(asked.matches[0]) & {0x0020000E, 0x00080018}


COUNTS = {
    "NumberOfPatientRelatedStudies": "2",
    "NumberOfPatientRelatedSeries": "3",
    "NumberOfPatientRelatedInstances": "4",
    "NumberOfStudyRelatedSeries": "2",
    "NumberOfStudyRelatedInstances": "3",
    "NumberOfSeriesRelatedInstances": "2",
}


@pytest.mark.parametrize(
    ("level", "unique_keys", "known"),
    [
        ("PATIENT", [PATIENT], 3),
        ("STUDY", [PATIENT, STUDY], 5),
        ("SERIES", [PATIENT, STUDY, SERIES], 6),
        ("IMAGE", [PATIENT, STUDY, SERIES], 6),
    ],
)
async def test_related_entities_are_counted_by_uid_at_their_level_and_below_c_3_4(
    archive: SqlIndex, level: str, unique_keys: list[Element], known: int
) -> None:
    counts = [key(each) for each in COUNTS]
    asked = await ask(archive, level, *unique_keys, *counts, model=PATIENT_ROOT)
    assert asked.matches
    for match in asked.matches:
        found = {each: text_of(match, each) for each in COUNTS if each in match}
        assert found == dict(list(COUNTS.items())[:known])
    assert set(asked.statuses) == {0xFF00 if known == len(COUNTS) else 0xFF01}


async def test_a_count_is_never_matched_and_says_so_with_ff01_c_3_4(archive: SqlIndex) -> None:
    asked = await ask(archive, "STUDY", STUDY, key("NumberOfStudyRelatedSeries", "99"))
    assert (asked.statuses, asked.values("NumberOfStudyRelatedSeries")) == ([0xFF01], ["2"])


async def test_an_instance_of_two_parts_is_one_match_and_counts_once(archive: SqlIndex) -> None:
    keys = [key("PatientID", "BAG0001"), key("NumberOfStudyRelatedInstances")]
    asked = await ask(archive, "STUDY", *keys)
    assert asked.values("NumberOfStudyRelatedInstances") == ["2"]
    asked = await ask(archive, "IMAGE", BAG, key("SOPClassUID", SECTIONS[0].sop_class_uid), **RELATIONAL)
    assert asked.values("SOPInstanceUID") == [SECTIONS[0].sop_instance_uid]


# --- attributes without a column: from the header (C.4.1.1.3.2)


@pytest.mark.parametrize(
    ("element", "found"),
    [
        (key("KVP", "120"), 5),
        (key("KVP", "120.0"), 5),
        (key("KVP", "121"), 0),
        (key("SliceThickness", "1.25\\2.5"), 5),
        (key("PhotometricInterpretation", "MONO*"), 6),
        (key("RescaleIntercept"), 6),
        (Element(0x00189073, "FD", (5.2,)), 1),
    ],
)
async def test_any_other_attribute_is_matched_against_the_header(
    archive: SqlIndex, element: Element, found: int
) -> None:
    asked = await ask(archive, "STUDY", element)
    assert asked.statuses == [0xFF00] * found


async def test_a_private_key_is_of_the_block_of_its_creator_ps3_5_7_8(archive: SqlIndex) -> None:
    for creator, value, found in (
        ("SCP TEST KIT", "private*", 1),
        ("SCP TEST KIT", "no", 0),
        ("X", "private*", 0),
    ):
        keys = [Element(0x00090042, "LO", creator), Element(0x00094201, "LO", value)]
        asked = await ask(archive, "STUDY", *keys)
        assert asked.statuses == [0xFF00] * found, creator
        for match in asked.matches:
            assert (match[0x00090042].value, match[0x00094201].value) == (creator, "private text")


async def test_a_private_key_without_creator_is_returned_empty_and_not_matched(archive: SqlIndex) -> None:
    asked = await ask(archive, "STUDY", STUDY, Element(0x00091001, "LO", "private text"))
    assert asked.statuses == [0xFF00]
    assert asked.matches[0][0x00091001].is_empty


async def test_a_sequence_key_matches_by_one_item_and_returns_all_with_its_keys_c_2_2_2_6(
    archive: SqlIndex,
) -> None:
    purpose = Element(0x0040A170, "SQ", [[key("CodeValue", "121311"), key("CodeMeaning")]])
    wanted = Element(0x00081140, "SQ", [[key("ReferencedSOPClassUID"), purpose]])
    asked = await ask(archive, "STUDY", wanted)
    (match,) = asked.matches
    first, second = match.ReferencedImageSequence
    assert tags_of(first) == tags_of(second) == {0x00081150, 0x0040A170}
    assert first.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Localizer"
    assert second.PurposeOfReferenceCodeSequence[0:] == []
    asked = await ask(
        archive, "STUDY", Element(0x00081140, "SQ", [[Element(0x0040A170, "SQ", [[key("CodeValue", "X")]])]])
    )
    assert asked.matches == []


@pytest.mark.parametrize("items", [[], [[]]])
async def test_an_empty_sequence_key_is_universal_and_wants_whole_items_c_2_2_2_6(
    archive: SqlIndex, items: list[Any]
) -> None:
    asked = await ask(
        archive, "STUDY", key("StudyInstanceUID", "2.25.1\\2.25.2"), Element(0x00081140, "SQ", items)
    )
    assert asked.statuses == [0xFF00] * 2
    assert sorted(len(match.ReferencedImageSequence) for match in asked.matches) == [0, 2]


async def test_pixel_data_is_not_supported_and_left_out_with_ff01(archive: SqlIndex) -> None:
    asked = await ask(archive, "STUDY", STUDY, Element(0x7FE00010, "OW", b""))
    assert asked.statuses == [0xFF01]
    assert 0x7FE00010 not in tags_of(asked.matches[0])


async def test_group_lengths_are_ignored_ps3_5_7_2(archive: SqlIndex) -> None:
    asked = await ask(archive, "STUDY", STUDY, Element(0x00080000, "UL", 12), Element(0x00100000, "UL", 99))
    assert asked.statuses == [0xFF00]
    assert not tags_of(asked.matches[0]) & {0x00080000, 0x00100000}


# --- DICOS


def threat(category: str, flag: str = "") -> Element:
    keys = [Element(0x40101012, "CS", category), Element(0x40101015, "CS", flag)]
    return Element(0x40101011, "SQ", [[Element(0x40101038, "SQ", [keys])]])


@pytest.mark.parametrize(
    ("element", "found"),
    [
        (threat("EXPLOSIVE"), True),
        (threat("EXPLOSIVE", "HIGH_THREAT"), True),
        (threat("PI", "THREAT"), True),
        (threat("PI", "HIGH_THREAT"), False),
        (threat("OTHER"), False),
        (threat("EXPL*"), True),
        (Element(0x00081155, "UI", SECTIONS[0].sop_instance_uid), True),
        (Element(0x00081155, "UI", "2.25.111"), False),
        (Element(0x40101031, "CS", "ALARM"), True),
        (Element(0x40101031, "CS", "CLEAR"), False),
        (Element(0x40101034, "US", 2), True),
    ],
)
async def test_a_report_is_found_by_its_threats_its_image_and_its_decision(
    archive: SqlIndex, element: Element, found: bool
) -> None:
    asked = await ask(archive, "IMAGE", element, key("Modality", "TDR"), is_dicos=True, **RELATIONAL)
    assert asked.values("SOPInstanceUID") == [REPORT.sop_instance_uid] * found
    assert set(asked.statuses) <= {0xFF00}


@pytest.mark.parametrize("syntax", [EXPLICIT, TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN])
async def test_a_scan_is_found_by_decision_object_and_scan_type_at_study_level(
    archive: SqlIndex, syntax: TransferSyntax
) -> None:
    keys = [
        Element(0x40101031, "CS", "ALARM"),
        Element(0x40101042, "CS", "BAGGAGE"),
        Element(0x40101048, "CS", "OPERATIONAL"),
    ]
    asked = await ask(archive, "STUDY", *keys, is_dicos=True, syntax=syntax)
    assert asked.values("StudyInstanceUID") == [REPORT.study_instance_uid]
    assert asked.statuses == [0xFF00]


# --- decisions (docs/decisions.md)


@pytest.mark.parametrize("model", [PATIENT_ROOT, STUDY_ROOT])
@pytest.mark.parametrize(("decision", "found"), [("ALARM", 1), ("A*", 1), ("CLEAR", 0)])
async def test_a_studys_decision_is_that_of_the_report_that_decides(
    archive: SqlIndex, model: InformationModel, decision: str, found: int
) -> None:
    keys = (BAG, key("AlarmDecision", decision), key("AlarmDecisionTime"), key("TDRType"))
    asked = await ask(archive, "STUDY", *keys, model=model)
    assert [text_of(match, "AlarmDecision") for match in asked.matches] == ["ALARM"] * found
    for match in asked.matches:
        assert text_of(match, "TDRType") == "MACHINE"
        assert text_of(match, "AlarmDecisionTime").startswith("20261120101114")


async def test_a_study_without_a_decision_has_an_empty_one_and_matches_none(archive: SqlIndex) -> None:
    asked = await ask(archive, "STUDY", STUDY, key("AlarmDecision"))
    assert asked.values("AlarmDecision") == [""]
    assert (await ask(archive, "STUDY", STUDY, key("AlarmDecision", "*"))).final == 0
    assert (await ask(archive, "STUDY", STUDY, key("AlarmDecision", "CLEAR"))).matches == []


async def test_a_patients_decisions_are_those_of_its_studies(archive: SqlIndex) -> None:
    asked = await ask(archive, "PATIENT", BAG, key("AlarmDecision", "ALARM"), model=PATIENT_ROOT)
    assert asked.values("AlarmDecision") == ["ALARM"]


async def test_what_a_report_is_not_asked_of_the_scan_keeps_its_own_decision(tmp_path: Path) -> None:
    """An operator's CLEAR decides on the scan; at IMAGE level each report says what it said."""
    scanned = dicos_ct()
    reports = [
        dicos_tdr(scanned),
        dicos_tdr(scanned, tdr_type="OPERATOR", decision="CLEAR"),
    ]
    archive = Archive.at(tmp_path)
    assert await archive.store([reports[1], scanned, reports[0]]) == [0] * 3
    async with archive.opened() as (_, index):
        scans = await ask(index, "STUDY", BAG, key("AlarmDecision"), key("TDRType"))
        assert (scans.values("AlarmDecision"), scans.values("TDRType")) == (["CLEAR"], ["OPERATOR"])
        series = await ask(index, "SERIES", key("AlarmDecision", "ALARM"), agreed=(1,))
        assert series.values("AlarmDecision") == ["ALARM"]
        images = await ask(index, "IMAGE", key("AlarmDecision", "ALARM"), key("TDRType"), agreed=(1,))
        assert images.values("TDRType") == ["MACHINE"]
