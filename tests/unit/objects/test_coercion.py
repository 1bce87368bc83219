"""Changing attributes of a data set: what is changed and noted, and that nothing else is."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from scp_server.errors import OperationRefused
from scp_server.objects.changes import Changes
from scp_server.objects.coercion import CoercionPlan, Modification, planning
from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.inflate import BoundedInflate
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.splicing import Splice, Splicer
from scp_server.objects.uids import transfer_syntax
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.dicos_objects import dicos_ct, dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import JAPANESE, LATIN, UTF_8, ct_image, encapsulated_pdf

ELE, ILE = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN
EBE, LONG = TransferSyntax.EXPLICIT_VR_BIG_ENDIAN, TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64
DEFLATED, RLE = TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax.RLE_LOSSLESS
SYNTAXES = [ELE, ILE, EBE, DEFLATED, RLE]
WHO = Modification("20261125120000.000000+0000", "ARCHIVE", "SCANNER")
ORIGINAL_ATTRIBUTES = 0x04000561
LIMITS = TapLimits()


def header(dataset: bytes, syntax: str, limits: TapLimits = LIMITS) -> RawHeader:
    tap = HeaderTap(syntax, limits)
    tap.feed(dataset)
    tap.finish()
    return tap.header


def plan(found: RawHeader, changes: Changes) -> CoercionPlan | None:
    steps = planning(found, changes, WHO)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: CoercionPlan | None = end.value
            return result


def spliced(dataset: bytes, syntax: str, splices: Iterable[Splice], step: int = 0) -> bytes:
    splicer = Splicer(transfer_syntax(syntax), tuple(splices))
    step = step or len(dataset) or 1
    pieces: list[Any] = []
    starts = range(0, len(dataset), step)
    for steps in (*(splicer.feeding(dataset[start : start + step]) for start in starts), splicer.finishing()):
        while True:
            try:
                next(steps)
            except StopIteration as end:
                pieces += end.value
                break
    return b"".join(pieces)


def coerced(stored: EncodedObject, changes: Changes, step: int = 0) -> bytes:
    found = plan(header(stored.dataset, stored.transfer_syntax_uid), changes)
    assert found is not None
    return spliced(stored.dataset, stored.transfer_syntax_uid, found.splices, step)


def read(dataset: bytes, syntax: str) -> Dataset:
    if transfer_syntax(syntax).deflated:
        dataset = b"".join(BoundedInflate(2_000, 0, 0).feed(dataset))
    known = transfer_syntax(syntax)
    return read_dataset(BytesIO(dataset), known.implicit_vr, known.little_endian)


def changed_back(dataset: Dataset) -> Dataset:
    """What the last item of the Original Attributes Sequence says there was."""
    items = dataset[ORIGINAL_ATTRIBUTES].value
    (modified,) = items[-1].ModifiedAttributesSequence
    return Dataset(modified)


def elements(dataset: Dataset) -> dict[int, Any]:
    return {int(element.tag): element for element in dataset}


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("step", [1_000, 0])
def test_exactly_the_change_is_read_by_pydicom(syntax: TransferSyntax, step: int) -> None:
    stored = ct_image(transfer_syntax=syntax, private=True, sequences=True)
    changes = Changes.of(
        set={"PatientID": "NEW-ID", "InstitutionName": "Clinic", "SeriesNumber": 7, "TagAngleFirstAxis": 3},
        remove=["PatientSex", "AccessionNumber", "ModifyingDeviceID"],
        copy={"OtherPatientNames": "PatientName"},
    )
    before, after = (read(data, syntax) for data in (stored.dataset, coerced(stored, changes, step)))
    original = changed_back(after)
    assert (after.PatientID, after.InstitutionName, after.SeriesNumber) == ("NEW-ID", "Clinic", 7)
    assert after.OtherPatientNames == before.PatientName
    assert "PatientSex" not in after
    assert original.PatientID == before.PatientID
    assert original["InstitutionName"].is_empty
    touched = {int(element.tag) for element in original} | {ORIGINAL_ATTRIBUTES}
    kept = [
        {tag: found for tag, found in elements(each).items() if tag not in touched}
        for each in (before, after)
    ]
    assert kept[0] == kept[1]
    assert list(elements(after)) == sorted(elements(after))
    (item,) = after[ORIGINAL_ATTRIBUTES].value
    assert item.ReasonForTheAttributeModification == "COERCE"
    assert item.AttributeModificationDateTime == WHO.date_time
    assert (item.ModifyingSystem, item.SourceOfPreviousValues) == ("ARCHIVE", "SCANNER")


@pytest.mark.parametrize(
    "stored",
    [
        ct_image(private=True, sequences=True, undefined_length=True),
        ct_image(transfer_syntax=ILE, sequences=True, undefined_length=True),
        ct_image(transfer_syntax=EBE, sequences=True),
        ct_image(transfer_syntax=RLE, fragments=3),
        dicos_ct(transfer_syntax=LONG),
        dicos_tdr(),
        encapsulated_pdf(document_bytes=100_000),
    ],
    ids=lambda stored: f"{stored.sop_class_uid[-8:]} {stored.transfer_syntax_uid}",
)
def test_untouched_elements_keep_their_very_bytes(stored: EncodedObject) -> None:
    changes = Changes.of(set={"PatientID": "N"}, remove=["StudyID"])
    before = header(stored.dataset, stored.transfer_syntax_uid)
    found = plan(before, changes)
    assert found is not None
    data = spliced(stored.dataset, stored.transfer_syntax_uid, found.splices)
    after = header(data, stored.transfer_syntax_uid)
    touched = {*found.tags, ORIGINAL_ATTRIBUTES}
    for old in before.found_elements():
        if old.tag in touched:
            continue
        (new,) = (one for one in after.found_elements() if one.tag == old.tag)
        assert (new.vr, new.length) == (old.vr, old.length)
        assert data[new.start : new.next] == stored.dataset[old.start : old.next]
    assert data[after.length_bytes :] == stored.dataset[before.length_bytes :]


def test_what_is_as_it_should_be_is_not_changed() -> None:
    stored = ct_image()
    found = header(stored.dataset, stored.transfer_syntax_uid)
    same = Changes.of(
        set={"PatientID": "PAT-0001", "Modality": "{Modality}"},
        remove=["PatientComments", "0029,NOBODY,10"],
        copy={"PatientName": "PatientName", "ImageComments": "AdditionalPatientHistory"},
        templates=True,
    )
    assert plan(found, same) is None
    assert plan(found, Changes()) is None


def test_a_template_takes_values_of_the_object_as_it_came() -> None:
    stored = ct_image()
    changes = Changes.of(
        set={
            "StudyDescription": "{Modality} {{{PatientID}}} of {StudyDate}{PatientComments}",
            "PatientID": "{PatientName}",
            "ImageComments": "{Rows}x{Columns}",
            "SeriesNumber": "{Rows}",
        },
        templates=True,
    )
    before, after = read(stored.dataset, ELE), read(coerced(stored, changes), ELE)
    assert after.StudyDescription == f"CT {{PAT-0001}} of {before.StudyDate}"
    assert (after.PatientID, after.ImageComments, after.SeriesNumber) == ("Doe^Jane", "64x64", 64)


@pytest.mark.parametrize("syntax", [ELE, ILE, EBE])
def test_private_elements_are_found_and_added_by_their_creator(syntax: TransferSyntax) -> None:
    stored = ct_image(transfer_syntax=syntax, private=True)
    before = read(stored.dataset, syntax)
    (creator,) = {str(e.value) for e in before if e.tag.is_private_creator}
    private = next(e for e in before if e.tag.is_private and not e.tag.is_private_creator)
    group, element = private.tag.group, private.tag.element & 0xFF
    changes = Changes.of(
        set={f"{group:04X},ACME CT,42:LO": "ours"}, remove=[f"{group:04X},{creator},{element:02X}"]
    )
    after = read(coerced(stored, changes), syntax)
    assert private.tag not in after
    ours = after.private_block(group, "ACME CT")[0x42]
    assert ours.value in ("ours", b"ours")
    original = changed_back(after)
    assert original.private_block(group, creator)[element].value == private.value
    assert not original.private_block(group, "ACME CT")[0x42].value


@pytest.mark.parametrize(
    ("patient", "name"),
    [(JAPANESE, "Suzuki^Ichiro=鈴木^一郎"), (LATIN, "Müller^René"), (UTF_8, "Ω^Ж")],
    ids=["IR 87", "IR 100", "UTF-8"],
)
def test_values_are_encoded_in_the_object_s_character_set(patient: Any, name: str) -> None:
    stored = ct_image(patient=patient)
    after = read(coerced(stored, Changes.of(set={"PatientName": name})), ELE)
    after.decode()
    assert str(after.PatientName) == name
    assert str(changed_back(after).PatientName) == patient.name


@pytest.mark.parametrize(("patient", "name"), [(LATIN, "山田"), (JAPANESE, "Müller"), (None, "Müller")])
def test_what_the_character_set_cannot_say_is_refused(patient: Any, name: str) -> None:
    stored = ct_image() if patient is None else ct_image(patient=patient)
    found = header(stored.dataset, ELE)
    with pytest.raises(OperationRefused, match="character set") as refused:
        plan(found, Changes.of(set={"PatientName": name}))
    assert (refused.value.status, refused.value.offending_elements) == (0xC000, (0x00100010,))
    assert name not in refused.value.comment


OLDER = [
    Element(0x04000550, "SQ", [[Element(0x00100020, "LO", "OLDEST")]]),
    Element(0x04000563, "LO", "ANOTHER"),
]


@pytest.mark.parametrize("syntax", [ELE, ILE, EBE])
@pytest.mark.parametrize("undefined", [True, False])
def test_an_item_is_added_to_the_original_attributes_that_are_there(
    syntax: TransferSyntax, undefined: bool
) -> None:
    there = Element(ORIGINAL_ATTRIBUTES, "SQ", [OLDER], undefined)
    behind = [Element(0x04000600, "LO", "behind"), Element(0x40101234, "LO", "far behind")]
    stored = ct_image(transfer_syntax=syntax, extra=[there, *behind])
    after = read(coerced(stored, Changes.of(set={"PatientID": "NEW", "4010,1234:LO": "X"})), syntax)
    older, newer = after[ORIGINAL_ATTRIBUTES].value
    assert older.ModifiedAttributesSequence[0].PatientID == "OLDEST"
    assert newer.ModifiedAttributesSequence[0].PatientID == "PAT-0001"
    twice = ct_image(transfer_syntax=syntax, extra=[Element(ORIGINAL_ATTRIBUTES, "SQ")])
    assert (
        len(read(coerced(twice, Changes.of(set={"PatientID": "N"})), syntax)[ORIGINAL_ATTRIBUTES].value) == 1
    )


def test_an_item_is_added_in_the_encoding_of_a_sequence_that_became_unknown() -> None:
    item = DatasetEncoder(ILE).encode(OLDER)
    value = struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
    stored = ct_image(extra=[Element(ORIGINAL_ATTRIBUTES, "UN", value)])
    data = coerced(stored, Changes.of(set={"PatientID": "NEW"}, remove=["PatientSex"]))
    older, newer = header(data, ELE).items(ORIGINAL_ATTRIBUTES)
    assert older.text(0x04000563) == "ANOTHER"
    (modified,) = newer.items(0x04000550)
    assert (modified.text(0x00100020), modified.text(0x00100040)) == ("PAT-0001", "F")


def test_lengths_of_groups_that_change_go_and_others_stay() -> None:
    lengths = [Element(group << 16, "UL", 1234) for group in (0x0008, 0x0010, 0x0020, 0x0400)]
    stored = ct_image(extra=[*lengths, Element(0x00080001, "UL", 99)])
    after = read(coerced(stored, Changes.of(set={"PatientID": "NEW"})), ELE)
    assert [int(e.tag) for e in after if not e.tag.element or e.tag == 0x00080001] == [0x00080000, 0x00200000]


def test_of_an_element_that_is_there_twice_one_is_left() -> None:
    stored = ct_image()
    at = stored.dataset.index(b"\x10\x00\x20\x00LO")
    twice = stored.dataset[:at] + b"\x10\x00\x20\x00LO\x02\x00ZZ" + stored.dataset[at:]
    found = plan(header(twice, ELE), Changes.of(set={"PatientID": "NEW"}))
    assert found is not None
    data = spliced(twice, ELE, found.splices)
    assert data.count(b"\x10\x00\x20\x00LO") == 2  # the element, and its original
    assert changed_back(read(data, ELE)).PatientID == "ZZ"


def test_what_was_not_kept_of_the_header_is_not_changed_but_lets_others_change() -> None:
    large = Element(0x00204000, "LT", "x" * 2_000)
    stored = ct_image(extra=[large])
    found = header(stored.dataset, ELE, TapLimits(max_value_bytes=1_000))
    for changes in (
        Changes.of(remove=["ImageComments"]),
        Changes.of(set={"StudyDescription": "{ImageComments}"}, templates=True),
    ):
        with pytest.raises(OperationRefused, match=r"too (large|long)"):
            plan(found, changes)
    other = plan(found, Changes.of(set={"PatientID": "NEW"}))
    assert other is not None
    after = read(spliced(stored.dataset, ELE, other.splices), ELE)
    assert (after.PatientID, after.ImageComments) == ("NEW", "x" * 2_000)


@pytest.mark.parametrize(
    "limits", [TapLimits(max_header_bytes=300, max_value_bytes=64), TapLimits(max_indexed_elements=5)]
)
def test_a_header_that_was_not_kept_whole_is_not_changed(limits: TapLimits) -> None:
    stored = ct_image(extra=[Element(0x00204000, "LT", "x" * 60)] * 20)
    with pytest.raises(OperationRefused, match="too large to be changed"):
        plan(header(stored.dataset, ELE, limits), Changes.of(set={"PatientID": "NEW"}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (Changes.of(copy={"StudyInstanceUID": "PatientID"}), "no UID"),
        (Changes.of(copy={"StudyInstanceUID": "FrameOfReferenceUID"}), ""),
        (Changes.of(set={"SeriesInstanceUID": "{PatientComments}"}, templates=True), "no UID"),
        (Changes.of(set={"RecommendedDisplayFrameRate": "{PatientID}"}, templates=True), ""),
        (Changes.of(set={"SimpleFrameList": "{PatientID}"}, templates=True), "no value of VR UL"),
        (Changes.of(set={"StudyDescription": "{ImageComments}" * 40}, templates=True), "cannot have"),
    ],
)
def test_a_value_that_cannot_be_is_refused_when_the_object_comes(changes: Changes, problem: str) -> None:
    stored = ct_image(extra=[Element(0x00204000, "LT", "x" * 2_000)])
    found = header(stored.dataset, ELE)
    if not problem:
        plan(found, changes)
        return
    with pytest.raises(OperationRefused, match=problem) as refused:
        plan(found, changes)
    assert refused.value.status == 0xC000


VALUES = {
    "PatientID": st.text("ABC123-", min_size=0, max_size=12),
    "InstitutionName": st.text("abc ", max_size=10).map(str.strip),
    "StudyDescription": st.text("xyz", max_size=9),
    "SeriesNumber": st.integers(0, 999).map(str),
    "ImageComments": st.text("lorem ipsum", max_size=90).map(str.strip),
    "IssuerOfPatientID": st.text("I", max_size=3),
    "PresentationLUTShape": st.sampled_from(["IDENTITY", "INVERSE"]),
}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_changes_become_what_pydicom_makes_of_them(data: st.DataObject) -> None:
    syntax = data.draw(st.sampled_from(SYNTAXES))
    stored = ct_image(
        transfer_syntax=syntax,
        rows=8,
        columns=8,
        private=data.draw(st.booleans()),
        sequences=data.draw(st.booleans()),
        undefined_length=data.draw(st.booleans()),
    )
    names = data.draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=5))
    values = {name: data.draw(VALUES[name]) for name in names}
    removable = [
        "PatientSex",
        "AccessionNumber",
        "StudyID",
        "ReferencedImageSequence",
        "Manufacturer",
        "PatientAge",
    ]
    removed = data.draw(st.lists(st.sampled_from(removable), unique=True))
    found = plan(header(stored.dataset, syntax), Changes.of(set=values, remove=removed))
    expected = read(stored.dataset, syntax)
    if found is None:
        assert all(str(expected.get(name, "") or "") == value for name, value in values.items())
        return
    after = read(spliced(stored.dataset, syntax, found.splices, data.draw(st.integers(1, 5_000))), syntax)
    original = changed_back(after)
    for element in original:
        assert int(element.tag) in found.tags
        if element.tag in expected:
            assert expected[element.tag].value == element.value
        else:
            assert element.is_empty
    for name, value in values.items():
        setattr(expected, name, value)
    for name in removed:
        expected.pop(name, None)
    del after[ORIGINAL_ATTRIBUTES]
    for dataset in (expected, after):
        assert dataset.pop("PatientComments", None) is None
    assert {tag: e.value for tag, e in elements(after).items()} == {
        tag: e.value for tag, e in elements(expected).items()
    }


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_damage_is_refused_or_survived_and_never_hangs(data: st.DataObject) -> None:
    stored = ct_image(rows=4, columns=4, sequences=True, transfer_syntax=data.draw(st.sampled_from(SYNTAXES)))
    damaged = bytearray(stored.dataset)
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    syntax = stored.transfer_syntax_uid
    try:
        found = plan(
            header(cut, syntax), Changes.of(set={"PatientID": "N"}, remove=["ReferencedImageSequence"])
        )
        changed = cut if found is None else spliced(cut, syntax, found.splices)
    except OperationRefused:
        return
    assert header(changed, syntax).text(0x00100020) == "N"
