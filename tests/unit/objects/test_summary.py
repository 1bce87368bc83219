"""The index's columns: four UIDs are required, and nothing else about an object can make indexing fail."""

from __future__ import annotations

import dataclasses
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_server.errors import OperationRefused
from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.summary import MAX_TEXT_CHARACTERS, InstanceSummary, summarize
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax

EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
IMPLICIT = TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN
BIG = TransferSyntax.EXPLICIT_VR_BIG_ENDIAN
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
DICOS_TDR_CLASS = "1.2.840.10008.5.1.4.1.1.501.3"
REQUIRED = {
    0x00080016: "sop_class_uid",
    0x00080018: "sop_instance_uid",
    0x0020000D: "study_instance_uid",
    0x0020000E: "series_instance_uid",
}


def identity(**changes: str) -> list[Element]:
    values = {"sop_class_uid": CT_CLASS, "sop_instance_uid": "1.2.3", "study_instance_uid": "1.2"}
    values |= {"series_instance_uid": "0728.01"} | changes
    return [Element(tag, "UI", values[name]) for tag, name in REQUIRED.items() if name in values]


def summary_of(
    elements: list[Element],
    syntax: TransferSyntax = EXPLICIT,
    limits: TapLimits | None = None,
    sop_class: str = CT_CLASS,
    codec: str = "ascii",
) -> InstanceSummary:
    tap = HeaderTap(syntax, limits or TapLimits())
    tap.feed(DatasetEncoder(syntax, codec).encode([*identity(sop_class_uid=sop_class), *elements]))
    tap.finish()
    return summarize(tap.header, limits or TapLimits())


def uid_item(uid: str) -> list[Element]:
    return [Element(0x00081150, "UI", CT_CLASS), Element(0x00081155, "UI", uid)]


FROM_SEQUENCES = {"referenced_sop_instance_uids", "threat_categories", "assessment_flags"}
COLUMNS: list[tuple[str, Element, object]] = [
    ("patient_id", Element(0x00100020, "LO", "PAT-1"), "PAT-1"),
    ("issuer_of_patient_id", Element(0x00100021, "LO", "HOSPITAL"), "HOSPITAL"),
    ("type_of_patient_id", Element(0x00100022, "CS", "BARCODE"), "BARCODE"),
    ("patient_name", Element(0x00100010, "PN", "Doe^Jane"), "Doe^Jane"),
    ("patient_birth_date", Element(0x00100030, "DA", "19700101"), "19700101"),
    ("patient_sex", Element(0x00100040, "CS", "F"), "F"),
    ("study_date", Element(0x00080020, "DA", "20260101"), "20260101"),
    ("study_time", Element(0x00080030, "TM", "101112.5"), "101112.5"),
    ("accession_number", Element(0x00080050, "SH", "ACC"), "ACC"),
    ("study_id", Element(0x00200010, "SH", "S1"), "S1"),
    ("study_description", Element(0x00081030, "LO", "Thorax"), "Thorax"),
    ("referring_physician_name", Element(0x00080090, "PN", "House^G"), "House^G"),
    ("modality", Element(0x00080060, "CS", "CT"), "CT"),
    ("series_number", Element(0x00200011, "IS", "3"), 3),
    ("series_description", Element(0x0008103E, "LO", "Axial"), "Axial"),
    ("series_date", Element(0x00080021, "DA", "20260102"), "20260102"),
    ("series_time", Element(0x00080031, "TM", "11"), "11"),
    ("body_part_examined", Element(0x00180015, "CS", "CHEST"), "CHEST"),
    ("station_name", Element(0x00081010, "SH", "CT1"), "CT1"),
    ("institution_name", Element(0x00080080, "LO", "Hospital"), "Hospital"),
    ("manufacturer", Element(0x00080070, "LO", "Maker"), "Maker"),
    ("manufacturer_model_name", Element(0x00081090, "LO", "Model"), "Model"),
    ("device_serial_number", Element(0x00181000, "LO", "SN"), "SN"),
    ("protocol_name", Element(0x00181030, "LO", "Protocol"), "Protocol"),
    ("instance_number", Element(0x00200013, "IS", "-17"), -17),
    ("content_date", Element(0x00080023, "DA", "20260103"), "20260103"),
    ("content_time", Element(0x00080033, "TM", "12"), "12"),
    ("acquisition_date_time", Element(0x0008002A, "DT", "20260104"), "20260104"),
    ("number_of_frames", Element(0x00280008, "IS", "32"), 32),
    ("rows", Element(0x00280010, "US", 512), 512),
    ("columns", Element(0x00280011, "US", 256), 256),
    ("bits_allocated", Element(0x00280100, "US", 16), 16),
    ("frame_of_reference_uid", Element(0x00200052, "UI", "1.2.9"), "1.2.9"),
    ("specific_character_set", Element(0x00080005, "CS", "ISO_IR 100"), "ISO_IR 100"),
    ("dicos_version", Element(0x4010103A, "CS", "V03"), "V03"),
    ("ooi_type", Element(0x40101042, "CS", "BAGGAGE"), "BAGGAGE"),
    ("scan_type", Element(0x40101048, "CS", "OPERATIONAL"), "OPERATIONAL"),
    ("acquisition_status", Element(0x40101044, "CS", "SUCCESSFUL"), "SUCCESSFUL"),
    ("tdr_type", Element(0x40101027, "CS", "MACHINE"), "MACHINE"),
    ("alarm_decision", Element(0x40101031, "CS", "ALARM"), "ALARM"),
    ("alarm_decision_time", Element(0x4010102B, "DT", "20260105"), "20260105"),
    ("abort_flag", Element(0x40101024, "CS", "SUCCESS"), "SUCCESS"),
    ("number_of_total_objects", Element(0x40101033, "US", 2), 2),
    ("number_of_alarm_objects", Element(0x40101034, "US", 1), 1),
]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_every_column_is_read_in_every_encoding(syntax: TransferSyntax) -> None:
    summary = summary_of([element for _, element, _ in COLUMNS], syntax)
    expected = {name: value for name, _, value in COLUMNS}
    found = dataclasses.asdict(summary)
    assert {name: found[name] for name in expected} == expected
    others = set(found) - set(expected) - set(REQUIRED.values()) - FROM_SEQUENCES
    assert others == set()


def test_what_is_absent_is_none() -> None:
    assert summary_of([]) == InstanceSummary(CT_CLASS, "1.2.3", "1.2", "0728.01")


def test_what_is_empty_or_blank_is_none() -> None:
    elements = [
        Element(0x00100020, "LO", "  "),
        Element(0x00280010, "US", b""),
        Element(0x00100010, "PN", b"\0\0"),
    ]
    assert summary_of(elements) == summary_of([])


@pytest.mark.parametrize("tag", list(REQUIRED))
@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (None, "is missing"),
        ("", "is missing"),
        ("1.2.a", "is not a valid UID"),
        ("1" * 65, "is not a valid UID"),
    ],
)
def test_the_four_uids_are_required(tag: int, value: str | None, complaint: str) -> None:
    elements = [element for element in identity() if element.tag != tag]
    if value is not None:
        elements.append(Element(tag, "UI", value))
    tap = HeaderTap(EXPLICIT)
    tap.feed(DatasetEncoder(EXPLICIT).encode(elements))
    tap.finish()
    with pytest.raises(OperationRefused, match=complaint) as caught:
        summarize(tap.header)
    assert caught.value.status == 0xC000
    assert caught.value.offending_elements == (tag,)
    assert len(caught.value.comment) <= 64


def test_uids_are_cleaned_but_not_repaired() -> None:
    tap = HeaderTap(EXPLICIT)
    padded = [Element(element.tag, "UI", str(element.value).encode() + b"\0 ") for element in identity()]
    tap.feed(DatasetEncoder(EXPLICIT).encode(padded))
    tap.finish()
    assert summarize(tap.header).series_instance_uid == "0728.01"


@pytest.mark.parametrize(
    ("charset", "codec", "name"),
    [
        ("ISO_IR 100", "latin-1", "J\u00e9r\u00f4me"),
        ("ISO_IR 192", "utf-8", "\u738b^\u5c0f\u6771"),
        ("GB18030", "gb18030", "\u738b"),
    ],
)
def test_text_is_decoded_by_the_character_set(charset: str, codec: str, name: str) -> None:
    elements = [Element(0x00080005, "CS", charset), Element(0x00100010, "PN", name)]
    assert summary_of(elements, codec=codec).patient_name == name


def test_escape_sequences_are_decoded() -> None:
    elements = [
        Element(0x00080005, "CS", "\\ISO 2022 IR 87"),
        Element(0x00100010, "PN", b"Yamada=\x1b$B;3ED\x1b(B"),
    ]
    assert summary_of(elements).patient_name == "Yamada=\u5c71\u7530"


def test_text_is_cut_and_has_no_nul() -> None:
    long = summary_of(
        [Element(0x00081030, "LO", "\u738b" * 5_000), Element(0x00080005, "CS", "ISO_IR 192")], codec="utf-8"
    )
    assert long.study_description == "\u738b" * MAX_TEXT_CHARACTERS
    assert summary_of([Element(0x00100020, "LO", b"A\0B ")]).patient_id == "AB"
    assert summary_of([Element(0x00100020, "LO", "x" * 5_000)]).patient_id == "x" * MAX_TEXT_CHARACTERS


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("+5", 5),
        (" 12 ", 12),
        ("3.0", 3),
        ("3.5", None),
        ("1A", None),
        ("7\\8", 7),
        ("2147483647", 2_147_483_647),
        ("2147483648", None),
        ("-2147483649", None),
        ("9" * 400, None),
        ("nan", None),
        ("1e400", None),
        ("inf", None),
    ],
)
def test_integers_in_text_are_read_where_they_are_integers(value: str, number: int | None) -> None:
    assert summary_of([Element(0x00200013, "IS", value)]).instance_number == number


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG])
@pytest.mark.parametrize(
    ("vr", "value", "number"),
    [
        ("US", 7, 7),
        ("UL", 70_000, 70_000),
        ("SS", -7, -7),
        ("SL", -70_000, -70_000),
        ("US", [7, 8], 7),
        ("OB", b"ab", None),
    ],
)
def test_the_vr_in_the_stream_decides_how_a_number_is_read(
    syntax: TransferSyntax, vr: str, value: int, number: int | None
) -> None:
    assert summary_of([Element(0x00280008, vr, value)], syntax).number_of_frames == number


def test_implicit_dicos_frames_are_binary() -> None:
    binary = Element(0x00280008, "US", 300)
    assert summary_of([binary], IMPLICIT, sop_class=DICOS_TDR_CLASS).number_of_frames == 300
    assert summary_of([Element(0x00280008, "IS", "300")], IMPLICIT).number_of_frames == 300


def test_a_value_too_short_for_its_vr_is_none() -> None:
    tap = HeaderTap(EXPLICIT)
    tap.feed(DatasetEncoder(EXPLICIT).encode(identity()) + b"\x28\x00\x10\x00US\x01\x00\x05")
    tap.finish()
    assert summarize(tap.header).rows is None


# Forms of text


def test_text_beyond_ascii_is_in_normal_form_c() -> None:
    decomposed = Element(0x00100010, "PN", unicodedata.normalize("NFD", "Größe^Åsa"))
    charset = Element(0x00080005, "CS", "ISO_IR 192")
    summary = summary_of([charset, decomposed], codec="utf-8")
    assert summary.patient_name == "Größe^Åsa"
    assert summary.patient_name_folded == "=grösse^åsa="
    assert summary_of([]).patient_name_folded is None


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        (0x00080020, "study_date"),
        (0x00080021, "series_date"),
        (0x00080023, "content_date"),
        (0x00100030, "patient_birth_date"),
    ],
)
def test_dates_of_the_old_form_become_those_of_today(tag: int, name: str) -> None:
    assert getattr(summary_of([Element(tag, "DA", "1994.12.31")]), name) == "19941231"


# Assessments


def assessed(*found: tuple[str, str]) -> list[Element]:
    assessment = [[Element(0x40101012, "CS", each), Element(0x40101015, "CS", flag)] for each, flag in found]
    return [Element(0x40101010, "US", 1), Element(0x40101038, "SQ", assessment)]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_a_tdr_s_categories_and_flags_are_kept_once_each(syntax: TransferSyntax) -> None:
    threats = [assessed(("EXPLOSIVE", "THREAT"), ("OTHER", "")), [], assessed(("EXPLOSIVE", "NO_THREAT"))]
    summary = summary_of([Element(0x40101011, "SQ", threats)], syntax, sop_class=DICOS_TDR_CLASS)
    assert summary.threat_categories == "\\EXPLOSIVE\\OTHER\\"
    assert summary.assessment_flags == "\\THREAT\\NO_THREAT\\"


def test_a_report_without_assessments_has_none() -> None:
    summary = summary_of([Element(0x40101011, "SQ", [assessed(), assessed(("", ""))])])
    assert (summary.threat_categories, summary.assessment_flags) == (None, None)


def test_assessments_are_bounded_in_items_and_characters() -> None:
    many = [assessed((f"CATEGORY{number}", "THREAT")) for number in range(3_000)]
    summary = summary_of([Element(0x40101011, "SQ", [*many, assessed(("LAST", "LAST"))])])
    assert summary.assessment_flags == "\\THREAT\\"
    assert summary.threat_categories is not None
    assert len(summary.threat_categories) <= MAX_TEXT_CHARACTERS


# References


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_a_tdr_refers_to_its_images(syntax: TransferSyntax) -> None:
    def threat(uid: str) -> list[Element]:
        representation = [Element(0x0008114A, "SQ", [uid_item(uid)], undefined_length=True)]
        return [Element(0x40101010, "US", 1), Element(0x40101037, "SQ", [representation])]

    elements = [Element(0x40101011, "SQ", [threat("1.1"), threat("1.2"), threat("1.1")])]
    assert summary_of(elements, syntax, sop_class=DICOS_TDR_CLASS).referenced_sop_instance_uids == (
        "1.1",
        "1.2",
    )


def test_a_report_also_refers_to_scans_and_to_reports_that_it_is_made_of() -> None:
    """Referenced Study Sequence is another thing in medical objects, and costs them no row."""
    of_threat = [Element(0x40101076, "SQ", [[Element(0x40101077, "SQ", [uid_item("1.4")])]])]
    elements = [
        Element(0x00081110, "SQ", [uid_item("1.1")]),
        Element(0x40101011, "SQ", [of_threat]),
        Element(0x40101076, "SQ", [[Element(0x40101077, "SQ", [uid_item("1.3")])]]),
        Element(0x40101077, "SQ", [uid_item("1.2")]),
    ]
    found = summary_of(elements, sop_class=DICOS_TDR_CLASS).referenced_sop_instance_uids
    assert set(found) == {"1.1", "1.2", "1.3", "1.4"}
    assert summary_of(elements).referenced_sop_instance_uids == ()


def test_the_usual_references_are_found_once_each() -> None:
    series = [Element(0x00081199, "SQ", [uid_item("2.1"), uid_item("2.2")])]
    evidence = [Element(0x00081115, "SQ", [series])]
    elements = [
        Element(0x00081140, "SQ", [uid_item("1.1"), uid_item("2.1")]),
        Element(0x00082112, "SQ", [uid_item("1.2"), uid_item("not valid"), []]),
        Element(0x00081115, "SQ", [[Element(0x0008114A, "SQ", [uid_item("3.1")])]]),
        Element(0x0040A375, "SQ", [evidence]),
    ]
    assert set(summary_of(elements).referenced_sop_instance_uids) == {"1.1", "1.2", "2.1", "2.2", "3.1"}
    assert len(summary_of(elements).referenced_sop_instance_uids) == 5


def test_references_are_bounded() -> None:
    many = [uid_item(f"1.{number}") for number in range(1_500)]
    assert len(summary_of([Element(0x00081140, "SQ", many)]).referenced_sop_instance_uids) == 1_000


def test_items_that_are_looked_at_are_bounded() -> None:
    empty: list[list[Element]] = [[] for _ in range(6_000)]
    assert (
        summary_of([Element(0x00081140, "SQ", [*empty, uid_item("1.1")])]).referenced_sop_instance_uids == ()
    )
    assert summary_of(
        [Element(0x00081140, "SQ", [*empty[:4_000], uid_item("1.1")])]
    ).referenced_sop_instance_uids == ("1.1",)


def test_both_bounds_of_references_are_limits() -> None:
    many = [Element(0x00081140, "SQ", [uid_item(f"1.{number}") for number in range(20)])]
    found = summary_of(many, limits=TapLimits(max_references=7)).referenced_sop_instance_uids
    assert found == tuple(f"1.{number}" for number in range(7))
    assert len(summary_of(many, limits=TapLimits(max_reference_items=9)).referenced_sop_instance_uids) == 9


def test_values_that_were_not_kept_are_none() -> None:
    summary = summary_of([Element(0x00081030, "LO", "x" * 200)], limits=TapLimits(max_value_bytes=100))
    assert summary.study_description is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from([element.tag for _, element, _ in COLUMNS]),
            st.sampled_from(["LO", "IS", "US", "OB", "UN", "FD", "PN", "UI"]),
            st.binary(max_size=40),
        ),
        max_size=12,
    ),
    st.sampled_from([EXPLICIT, IMPLICIT, BIG]),
)
def test_nothing_but_the_uids_makes_indexing_fail(
    elements: list[tuple[int, str, bytes]], syntax: TransferSyntax
) -> None:
    summary = summary_of([Element(*element) for element in elements], syntax)
    for value in dataclasses.asdict(summary).values():
        if isinstance(value, str):
            value.encode("utf-8")
            assert "\0" not in value
        elif isinstance(value, int):
            assert -(2**31) <= value < 2**31
