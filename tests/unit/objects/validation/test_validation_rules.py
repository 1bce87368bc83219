"""What must agree across elements, and the form of single ones: one broken object for each rule."""

from __future__ import annotations

import dataclasses

import pytest
from pydicom import Dataset

from scp_server.objects.header_tap import HeaderTap
from scp_server.objects.validation.finding import SEVERITIES, Code, Findings, Path, Severity
from scp_server.objects.validation.steps import ValidationLimits
from scp_server.objects.validation.threats import Volume
from scp_server.objects.validation.validator import validate
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.dicos_objects import (
    Threat,
    dicos_ct,
    dicos_dx,
    dicos_tdr,
    make_dicos_uid,
    two_section_ct,
)
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import (
    JAPANESE,
    LATIN,
    UTF_8,
    ct_image,
    encapsulated_pdf,
    large_ct,
    structured_report,
)
from tests.unit.objects.validation.broken_objects import (
    PREFIX,
    Edit,
    edited,
    errors,
    in_threat,
    item,
    judge,
    put,
    sop_class,
    valid_files,
)

ELE = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
MEDICAL_CT = "1.2.840.10008.5.1.4.1.1.2"


def findings_of(name: str, edit: Edit) -> list[tuple[Severity, Code, str]]:
    """Severity, code and path of what is found in a valid file after an edit."""
    report = judge(edited(valid_files()[name], edit))
    return [(one.severity, one.code, one.path) for one in report.findings]


def labelled_v02(dataset: Dataset) -> None:
    dataset[0x4010103A].value = "V02"


def without_pixels(dataset: Dataset) -> None:
    del dataset[0x7FE00010]


def _operator_as_machine(dataset: Dataset) -> None:
    dataset[0x40101027].value = "OPERATOR"


def _alarm_without_threats(dataset: Dataset) -> None:
    dataset[0x40101011].value = []
    dataset[0x40101033].value = dataset[0x40101034].value = 0


def _person(dataset: Dataset) -> None:
    dataset[0x40101042].value = "PERSON"


PTO = "(4010,1011)[1] > "
SECOND = "(4010,1011)[2] > "
ASSESSMENT = f"{PTO}(4010,1038)[1] > "
PRESENTATION = f"{PTO}(4010,1037)[1] > "
REGION = f"{PRESENTATION}(4010,1001)[1] > "


@pytest.mark.parametrize(
    ("name", "edit", "code", "path"),
    [
        pytest.param("tdr", put(0x00080018, "UI", "abc"), Code.UID, "(0008,0018)", id="uid-letters"),
        pytest.param("tdr", put(0x00080018, "UI", "1." * 35 + "1"), Code.UID, "(0008,0018)", id="uid-long"),
        pytest.param("tdr", sop_class(MEDICAL_CT), Code.CLASS_CONTENT, "(0008,0016)", id="class-medical"),
        pytest.param("tdr", sop_class(f"{PREFIX}.1"), Code.CLASS_CONTENT, "(0008,0016)", id="class-ct"),
        pytest.param("qr", sop_class(f"{PREFIX}.2.1"), Code.CLASS_CONTENT, "(0008,0016)", id="class-dx"),
        pytest.param("tdr", put(0x00080060, "CS", "CT"), Code.MODALITY, "(0008,0060)", id="modality"),
        pytest.param("dx", put(0x00080060, "CS", "CT"), Code.MODALITY, "(0008,0060)", id="modality-dx"),
        pytest.param("tdr", put(0x40101075, "FD", 0.0), Code.SCALE, "(4010,1075)", id="scale"),
        pytest.param("tdr", put(0x40101027, "CS", "BANANA"), Code.TDR_TYPE, "(4010,1027)", id="tdr-type"),
        pytest.param("tdr", put(0x40101031, "CS", "MAYBE"), Code.ENUMERATION, "(4010,1031)", id="decision"),
        pytest.param("tdr", put(0x40101042, "CS", "CAR"), Code.ENUMERATION, "(4010,1042)", id="ooi"),
        pytest.param(
            "tdr",
            in_threat(0, 0x40101038, 0x40101012, value="FROG"),
            Code.ENUMERATION,
            f"{ASSESSMENT}(4010,1012)",
            id="category",
        ),
        pytest.param(
            "tdr",
            in_threat(0, 0x40101038, 0x40101014, value="FROG"),
            Code.ENUMERATION,
            f"{ASSESSMENT}(4010,1014)",
            id="ability",
        ),
        pytest.param("tdr", put(0x40101024, "CS", "ABORT"), Code.MISSING_TYPE_1, "(4010,1021)", id="abort"),
        pytest.param("tdr", _operator_as_machine, Code.MISSING_TYPE_1, "(0008,1072)", id="operator"),
        pytest.param("tdr", _alarm_without_threats, Code.EMPTY_TYPE_1, "(4010,1011)", id="alarm-empty"),
        pytest.param("tdr", _person, Code.MISSING_TYPE_1, f"{PRESENTATION}(4010,1079)", id="person"),
        pytest.param("tdr", put(0x40101034, "US", 3), Code.ALARM_OBJECTS, "(4010,1034)", id="alarm-objects"),
        pytest.param("tdr", put(0x40101033, "US", 5), Code.TOTAL_OBJECTS, "(4010,1033)", id="total-objects"),
        pytest.param(
            "tdr",
            in_threat(0, 0x40101037, 0x4010101D, value=[1.0] * 7),
            Code.POLYGON,
            f"{PRESENTATION}(4010,101D)",
            id="polygon-7",
        ),
        pytest.param(
            "tdr",
            in_threat(0, 0x40101037, 0x4010101D, value=[1.0] * 3),
            Code.POLYGON,
            f"{PRESENTATION}(4010,101D)",
            id="polygon-3",
        ),
        pytest.param(
            "tdr",
            in_threat(0, 0x40101037, 0x40101001, 0x40101006, value=b"\xff" * 14),
            Code.BITMAP,
            f"{REGION}(4010,1006)",
            id="bitmap",
        ),
        pytest.param(
            "tdr",
            in_threat(0, 0x40101037, 0x40101001, 0x40101005, value=[8.0, float("nan"), 2.0]),
            Code.REGION,
            f"{REGION}(4010,1005)",
            id="extents-nan",
        ),
        pytest.param("tdr", put(0x4010102B, "DT", "garbage"), Code.DATE_TIME, "(4010,102B)", id="dt"),
        pytest.param("tdr", put(0x00080020, "DA", "20261399"), Code.DATE_TIME, "(0008,0020)", id="da"),
        pytest.param("tdr", put(0x00080030, "TM", "256000"), Code.DATE_TIME, "(0008,0030)", id="tm"),
        pytest.param(
            "tdr",
            in_threat(0, 0x40101038, 0x40101016, value=3.5),
            Code.PROBABILITY,
            f"{ASSESSMENT}(4010,1016)",
            id="probability",
        ),
        pytest.param(
            "tdr",
            in_threat(0, 0x40101038, 0x40101016, value=float("nan")),
            Code.PROBABILITY,
            f"{ASSESSMENT}(4010,1016)",
            id="probability-nan",
        ),
        pytest.param(
            "tdr", in_threat(1, 0x40101010, value=100), Code.PTO_ID, f"{SECOND}(4010,1010)", id="pto-id"
        ),
        pytest.param("ct", put(0x4010103A, "CS", "V04"), Code.DICOS_VERSION, "(4010,103A)", id="v04"),
        pytest.param("ct", put(0x00280008, "US", 5), Code.FRAMES, "(0028,0008)", id="frames"),
        pytest.param("ct", without_pixels, Code.NO_PIXEL_DATA, "(7FE0,0010)", id="no-pixels"),
        pytest.param("ct", put(0x00280100, "US", 8), Code.PIXEL_LENGTH, "(7FE0,0010)", id="bits-8"),
        pytest.param("ct", put(0x00280010, "US", 32), Code.PIXEL_LENGTH, "(7FE0,0010)", id="rows-doubled"),
        pytest.param(
            "medical ct", put(0x00280010, "US", 32), Code.PIXEL_LENGTH, "(7FE0,0010)", id="rows-medical"
        ),
        pytest.param("ct", put(0x00280101, "US", 17), Code.BITS, "(0028,0101)", id="bits-stored"),
        pytest.param("ct", put(0x00280102, "US", 7), Code.BITS, "(0028,0102)", id="high-bit"),
        pytest.param("ct", put(0x00091010, "LO", "x"), Code.PRIVATE_ELEMENTS, "", id="private"),
        pytest.param("ct", put(0x40109990, "LO", "x"), Code.UNKNOWN_ELEMENT, "(4010,9990)", id="unknown"),
        pytest.param("medical ct", put(0x00180060, "IS", "120"), Code.VR, "(0018,0060)", id="vr"),
        pytest.param("medical ct", put(0x00280030, "DS", "1"), Code.VM, "(0028,0030)", id="vm-text"),
        pytest.param("medical ct", put(0x00280010, "US", [64, 64]), Code.VM, "(0028,0010)", id="vm-binary"),
        pytest.param("medical ct", put(0x00080050, "SH", "A" * 17), Code.TOO_LONG, "(0008,0050)", id="sh"),
        pytest.param("medical ct", put(0x00100010, "PN", "A" * 65), Code.TOO_LONG, "(0010,0010)", id="pn"),
        pytest.param("medical ct", put(0x00100040, "CS", "f"), Code.CHARACTERS, "(0010,0040)", id="cs"),
        pytest.param("medical ct", put(0x00101010, "AS", "18"), Code.CHARACTERS, "(0010,1010)", id="as"),
    ],
)
def test_what_is_wrong_is_found_with_its_code_and_path(name: str, edit: Edit, code: Code, path: str) -> None:
    assert (SEVERITIES[code], code, path) in findings_of(name, edit)


def test_v03_data_that_says_v02_lacks_the_mass_where_v02_has_it() -> None:
    found = findings_of("tdr", labelled_v02)
    assert (Severity.ERROR, Code.MISSING_TYPE_1, f"{PTO}(4010,1017)") in found
    assert (Severity.ERROR, Code.MISSING_TYPE_1, f"{PTO}(4010,1018)") in found


@pytest.mark.parametrize(
    ("vr", "value"), [("DS", "much"), ("DS", "1e"), ("DS", "nan"), ("IS", "1.5"), ("IS", "0x1")]
)
def test_text_that_is_no_number_is_found(vr: str, value: str) -> None:
    tag = {"DS": 0x00180060, "IS": 0x00200013}[vr]
    broken = dataclasses.replace(ct_image(), dataset=DatasetEncoder().encode([Element(tag, vr, value)]))
    assert [one.code for one in errors(judge(broken)) if one.vr == vr] == [Code.NUMBER]


def test_a_length_that_is_no_multiple_of_the_numbers_is_found() -> None:
    odd = DatasetEncoder().encode([Element(0x00189073, "FD", b"\1\2\3\4")])
    assert Code.LENGTH in {one.code for one in judge(dataclasses.replace(ct_image(), dataset=odd)).findings}


def test_a_medical_object_without_its_uids_is_found() -> None:
    broken = dataclasses.replace(
        ct_image(), dataset=DatasetEncoder().encode([Element(0x00080060, "CS", "CT")])
    )
    assert [(one.code, one.path) for one in errors(judge(broken))] == [
        (Code.MISSING_TYPE_1, f"({tag[:4]},{tag[4:]})")
        for tag in ("00080016", "00080018", "0020000D", "0020000E")
    ]


def test_file_meta_is_compared_with_the_data_set() -> None:
    def another(dataset: Dataset) -> None:
        dataset.file_meta[0x00020003].value = "1.2.3"
        del dataset.file_meta[0x00020012]
        del dataset.file_meta[0x00020004]

    found = findings_of("ct", another)
    assert (Severity.ERROR, Code.META_MISMATCH, "(0002,0003)") in found
    assert (Severity.ERROR, Code.META_MISSING, "(0002,0012)") in found
    assert (Severity.WARNING, Code.META_VERSION, "(0002,0004)") in found


def test_a_region_is_compared_with_the_image_it_refers_to_where_that_is_given() -> None:
    image = dicos_ct(frames=4, rows=16, columns=16)
    inside, outside = Threat(base=(8.0, 8.0, 2.0)), Threat(base=(9.0, 8.0, 2.0))
    volumes = {image.sop_instance_uid: Volume(16, 16, 4)}
    assert errors(judge(dicos_tdr(image, threats=[inside]), volumes)) == []
    report = judge(dicos_tdr(image, threats=[inside, outside]), volumes)
    assert [(one.code, one.path) for one in errors(report)] == [
        (Code.REGION, "(4010,1011)[2] > (4010,1037)[1] > (4010,1001)[1] > (4010,1004)")
    ]
    assert (
        errors(judge(dicos_tdr(image, threats=[outside]), {make_dicos_uid("another"): Volume(1, 1, 1)})) == []
    )


def _factory_objects() -> list[object]:
    made: list[object] = []
    for syntax in TransferSyntax:
        objects = {
            "ct": dicos_ct(transfer_syntax=syntax),
            "section": two_section_ct(transfer_syntax=syntax)[1],
            "dx": dicos_dx(transfer_syntax=syntax),
            "tdr": dicos_tdr(transfer_syntax=syntax),
            "operator": dicos_tdr(tdr_type="OPERATOR", decision="CLEAR", transfer_syntax=syntax),
            "ground truth": dicos_tdr(tdr_type="GROUND TRUTH", transfer_syntax=syntax),
            "medical": ct_image(transfer_syntax=syntax, sequences=True, undefined_length=True, private=True),
            "report": structured_report(transfer_syntax=syntax, depth=20),
            "document": encapsulated_pdf(transfer_syntax=syntax, document_bytes=70_000),
        }
        made += [pytest.param(one, id=f"{name}-{syntax.name}") for name, one in objects.items()]
    made += [pytest.param(ct_image(patient=one), id=one.name) for one in (JAPANESE, UTF_8, LATIN)]
    return made


@pytest.mark.parametrize("made", _factory_objects())
def test_a_valid_object_in_any_transfer_syntax_has_no_errors_and_no_warnings(made: EncodedObject) -> None:
    report = judge(made)
    assert [one for one in report.findings if one.severity is not Severity.INFO] == []


def test_uids_of_any_root_with_leading_zeros_are_fine() -> None:
    uid = make_dicos_uid("any root")
    assert uid.startswith("0")
    assert errors(judge(dicos_ct(sop_instance_uid=uid))) == []


def test_pixels_of_an_encapsulated_object_have_a_fragment_for_each_frame() -> None:
    ct = dicos_ct(transfer_syntax=TransferSyntax.JPEG_LOSSLESS)
    fewer = ct.dataset[: ct.dataset.rindex(b"\xfe\xff\x00\xe0")] + b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert errors(judge(ct)) == []
    assert [one.code for one in errors(judge(dataclasses.replace(ct, dataset=fewer)))] == [Code.PIXEL_LENGTH]


def test_a_large_object_is_measured_without_being_held() -> None:
    large = large_ct(8 << 20, encapsulated=True)
    tap = HeaderTap(large.transfer_syntax_uid)
    for chunk in large.chunks():
        tap.feed(chunk)
    tap.finish()
    assert errors(validate(tap.header)) == []


def test_further_findings_are_counted_and_not_listed() -> None:
    tap = HeaderTap(ELE.value)
    unknown = [Element(0x40109000 + number, "LO", "x") for number in range(0x200)]
    broken = [Element(0x00180060 + (number << 16), "DA", "never") for number in range(0, 0x40, 2)]
    tap.feed(DatasetEncoder().encode([*broken, *unknown]))
    tap.finish()
    report = validate(tap.header, limits=ValidationLimits(max_findings=10))
    assert len(report.findings) == 11
    assert report.findings[-1].code is Code.MORE_FINDINGS
    assert report.errors >= len(broken)
    assert report.infos >= len(unknown)


@pytest.mark.parametrize(
    "limits",
    [
        ValidationLimits(max_elements=20),
        ValidationLimits(max_sequence_bytes=100),
        ValidationLimits(max_depth=2),
    ],
    ids=["elements", "bytes", "depth"],
)
def test_what_lies_beyond_a_bound_is_told_to_be_not_examined(limits: ValidationLimits) -> None:
    tap = HeaderTap(ELE.value)
    tap.feed(structured_report(depth=10).dataset)
    tap.finish()
    assert Code.NOT_EXAMINED not in {one.code for one in validate(tap.header).findings}
    report = validate(tap.header, limits=limits)
    assert Code.NOT_EXAMINED in {one.code for one in report.findings}


def test_only_the_first_values_of_an_element_are_looked_at() -> None:
    tap = HeaderTap(ELE.value)
    tap.feed(DatasetEncoder().encode([Element(0x00189345, "DS", "1\\1\\x")]))
    tap.finish()
    codes = [
        {one.code for one in validate(tap.header, limits=ValidationLimits(max_values=count)).findings}
        for count in (2, 3)
    ]
    assert [Code.NUMBER in found for found in codes] == [False, True]


def test_a_rule_that_fails_is_a_finding_and_loses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault in a rule")

    monkeypatch.setattr("scp_server.objects.validation.elements.value_problems", fail)
    report = judge(edited(valid_files()["tdr"], put(0x00080060, "CS", "CT")))
    assert [one.code for one in report.findings] == [Code.MODALITY, Code.VALIDATOR_FAILED]
    assert report.has_failed


def test_no_sentence_quotes_text_that_may_name_a_person() -> None:
    secret = "SECRET^" + "x" * 70

    def edit(dataset: Dataset) -> None:
        dataset.add_new(0x00100010, "PN", secret)
        dataset.add_new(0x00100020, "LO", secret)
        dataset.add_new(0x00100030, "DA", "SECRET")
        dataset.add_new(0x00081140, "SQ", [item((0x00081155, "UI", "SECRET"))])

    report = judge(edited(valid_files()["medical ct"], edit))
    assert {Code.TOO_LONG, Code.DATE_TIME, Code.UID} <= {one.code for one in report.findings}
    assert not any("SECRET" in str(one.as_json()) for one in report.findings)


def test_the_report_names_the_offending_elements_once_each() -> None:
    findings = Findings(10)
    for _ in range(2):
        findings.add(Code.POLYGON, "wrong", Path(0x4010101D, ((0x40101011, 1),)))
    findings.add(Code.TOTAL_OBJECTS, "only a warning", Path(0x40101033))
    assert findings.report().offending_tags == (0x4010101D,)
