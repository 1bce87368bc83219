from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scp_server.storage.base import ObjectKey
from scp_server.storage.layout import (
    MAX_FOLDERS,
    MAX_LOCATION_CHARACTERS,
    MAX_NAME_CHARACTERS,
    directory_of,
    is_directory,
    is_location,
    location_for_log,
)
from scp_server.storage.template import FIELDS, MISSING, LayoutTemplate

_PAGE = Path(__file__).parents[3] / "docs" / "layouts.md"
_ANY_TEXT = st.text(alphabet=st.characters(codec=None), max_size=80) | st.text(
    alphabet="./\\-_+~:aAbBeEfF019 \n\0", max_size=80
)
_KEYS = st.builds(
    ObjectKey,
    _ANY_TEXT,
    _ANY_TEXT,
    _ANY_TEXT,
    st.from_regex(r"[0-9a-f]{1,64}", fullmatch=True),
    _ANY_TEXT,
    st.none() | _ANY_TEXT,
    st.none() | _ANY_TEXT,
    st.none() | _ANY_TEXT,
    _ANY_TEXT,
)
_TEXT_FIELDS = [name for name, piece in FIELDS.items() if not piece.is_hash]
_EVERYTHING = "/".join(f"{{{name}}}" for name in FIELDS)
_KEY = ObjectKey(
    "1.2.3",
    "1.2.3.4",
    "1.2.3.4.5",
    "0f",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    patient_id="PAT-1",
    modality="CT",
    study_date="20240229",
    calling_ae_title="CT1",
)
_UIDS = ("1.2.3", "1.2.3.4", "1.2.3.4.5")
_HOSTILE = [
    ".",
    "..",
    "../../x",
    "/etc/passwd",
    "a\0b",
    "a\nb",
    "\udcff",
    "\u00e4" * 300,
    "C:\\x",
    "-rf",
    ".hidden",
    "A.",
    "A ",
    "~",
    "9" * 5000,
    "A" * 65,
    "1." * 32,
    "\u00df" * 60,
    "_NONE",
    "+",
]


def location(template: str, **values: str | None) -> str:
    """Where an object with these values is put."""
    uids = {"study_instance_uid": "1.2.3", "series_instance_uid": "1.2.3.4", "sop_instance_uid": "1.2.3.4.5"}
    return LayoutTemplate(template).location_of(ObjectKey(**(uids | {"arrival_id": "0f"} | values)))  # type: ignore[arg-type]


def folder(field: str, **values: str | None) -> str:
    """What a field makes of a value, as a folder's whole name."""
    return location(f"{{{field}}}/{{series}}/{{instance}}", **values).split("/")[1]


# --- the paths


def test_locations_never_change_between_releases() -> None:
    assert LayoutTemplate().location_of(_KEY) == (
        "objects/df/dfc30f22e3b0014935bb/9db081a4ff58f76d458b/ef661994ceb53deef9f9-0f.dcm"
    )


@pytest.mark.parametrize(
    ("template", "made"),
    [
        ("{study}/{series}/{instance}", "df/dfc30f22e3b0014935bb/9db081a4ff58f76d458b/ef661994ceb53deef9f9"),
        ("{series}/{instance}", "9d/9db081a4ff58f76d458b/ef661994ceb53deef9f9"),
        ("A/{series}/{instance}", "A/9db081a4ff58f76d458b/ef661994ceb53deef9f9"),
        ("{study_uid}/{series_uid}/{instance_uid}", "1.2.3/1.2.3.4/1.2.3.4.5"),
        (
            "{patient}/{modality}/{study_date}/{study}/{series}/{instance}",
            "PAT-1/CT/20240229/dfc30f22e3b0014935bb/9db081a4ff58f76d458b/ef661994ceb53deef9f9",
        ),
        (
            "{calling_ae_title}/{study_year}/{study_month}-{study_day}/{series_uid}/{sop_class_uid}",
            "CT1/2024/02-29/1.2.3.4/1.2.840.10008.5.1.4.1.1.2",
        ),
        ("SITE_1-{modality}/{series_uid}_{study_uid}/X", "SITE_1-CT/1.2.3.4_1.2.3/X"),
    ],
)
def test_a_template_says_where_an_object_is_put(template: str, made: str) -> None:
    assert LayoutTemplate(template).location_of(_KEY) == f"objects/{made}-0f.dcm"


@settings(max_examples=300)
@given(_KEYS)
@example(ObjectKey("", "", "", "a" * 64))
@example(ObjectKey("9" * 64, "9" * 64, "9" * 64, "a" * 64, "9" * 64, "A" * 64, "A" * 64, "A" * 64, "A" * 64))
def test_any_values_give_a_location_of_ours(key: ObjectKey) -> None:
    for template in ("{study}/{series}/{instance}", _EVERYTHING, "{series_uid}/{patient}_{modality}"):
        made = LayoutTemplate(template).location_of(key)
        assert is_location(made)
        assert is_directory(directory_of(made))
        assert made.endswith(f"-{key.arrival_id}.dcm")
        folders = made.split("/")[1:-1]
        assert len(folders) == len(template.split("/")) - 1 + template.startswith("{study}/")


def test_each_uid_has_its_own_part_of_the_path() -> None:
    parts = location("{study}/{series}/{instance}").split("/")
    for position, name in ((2, "study_instance_uid"), (3, "series_instance_uid"), (4, "sop_instance_uid")):
        other = location("{study}/{series}/{instance}", **{name: "9"}).split("/")
        assert [place for place in (2, 3, 4) if other[place] != parts[place]] == [position]


# --- peers' text


@pytest.mark.parametrize("text", ["A", "PAT-1", "PAT_1", "0815", "1.2.3", "A" * 64, "01.02", "X--Y"])
def test_plain_text_is_taken_as_it_is(text: str) -> None:
    assert folder("patient", patient_id=text) == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("pat-1", "PAT_1"),
        ("Müller^Max", "M_LLER_MAX"),
        ("A B", "A_B"),
        (" ..\\..//x ", "X"),
        ("\u5c71", "_"),
        ("A.B", "A_B"),
        ("1.2.", "1_2"),
        ("A" * 65, "A" * 48),
        ("_NONE", "NONE"),
    ],
)
def test_other_text_is_reduced_and_a_hash_follows(text: str, kept: str) -> None:
    made, _, digest = folder("patient", patient_id=text).partition("+")
    assert made == kept
    assert len(digest) == 12


@pytest.mark.parametrize("field", _TEXT_FIELDS)
@pytest.mark.parametrize("text", _HOSTILE)
def test_hostile_text_is_only_a_name(field: str, text: str) -> None:
    values = {
        "study_instance_uid": text,
        "series_instance_uid": text,
        "sop_instance_uid": text,
        "sop_class_uid": text,
        "patient_id": text,
        "modality": text,
        "study_date": text,
        "calling_ae_title": text,
    }
    made = location(f"{{{field}}}/{{series}}/{{{field}}}", **values)
    assert is_location(made)
    assert len(made.split("/")) == 4


@settings(max_examples=300)
@given(_ANY_TEXT, _ANY_TEXT)
@example("abc", "ABC")
@example("A B", "A_B")
@example("a b", "A_B")
@example("_NONE", "")
@example("CON", "con")
@example("1.2", "1_2")
@example("ec", "EC")
@example("\u00e4", unicodedata.normalize("NFD", "\u00e4"))
@example("A" * 70, "A" * 71)
def test_two_texts_give_two_names_also_where_a_filesystem_folds(first: str, second: str) -> None:
    names = [folder("patient", patient_id=text) for text in (first, second)]
    assert (names[0].casefold() == names[1].casefold()) == (first == second)


@pytest.mark.parametrize(
    "name", ["CON", "PRN", "AUX", "NUL", "COM0", "COM9", "LPT1", "con", "EC", "AF", "0A"]
)
def test_names_with_another_meaning_are_taken_by_nobody(name: str) -> None:
    made = folder("modality", modality=name)
    assert made.casefold() != name.casefold()
    assert is_location(location("{modality}/{series}/X", modality=name))


def test_a_device_is_not_made_of_pieces_or_before_a_dot_either() -> None:
    made = location("CO{modality}/COM{study_uid}/{series}/X", modality="N", study_instance_uid="1.2")
    assert made.split("/")[1:3] == ["_CON", "_COM1.2"]


def test_no_text_can_be_taken_for_a_hash_in_whichever_letters() -> None:
    digest = location("{study}/{series}/{instance}").split("/")[2]
    for text in (digest, digest.upper(), digest[:2], digest[:2].upper(), "1" * 20):
        assert folder("patient", patient_id=text).casefold() not in (digest, digest[:2], "1" * 20)
        logged = location_for_log(location("{study}/{series}/{patient}", patient_id=text))
        assert logged == "objects/**/*-0f.dcm"


@pytest.mark.parametrize(
    ("field", "values"),
    [
        *[("patient", {"patient_id": missing}) for missing in (None, "")],
        *[("modality", {"modality": missing}) for missing in (None, "")],
        *[(f"study_{part}", {"study_date": None}) for part in ("date", "year", "month", "day")],
        ("study_date", {"study_date": ""}),
        ("calling_ae_title", {"calling_ae_title": ""}),
        ("sop_class_uid", {"sop_class_uid": ""}),
    ],
)
def test_a_missing_value_has_a_fixed_word(field: str, values: dict[str, str | None]) -> None:
    assert folder(field, **values) == MISSING == "_NONE"


@pytest.mark.parametrize(
    ("date", "made"),
    [
        ("20240229", "20240229"),
        ("2024.02.29", "20240229"),
        ("20241301", MISSING),
        ("20240100", MISSING),
        ("20240132", MISSING),
        ("2024", MISSING),
        ("20240229-20240301", MISSING),
        ("2024022\u0669", MISSING),
        ("../../..", MISSING),
    ],
)
def test_a_date_is_eight_digits_or_missing(date: str, made: str) -> None:
    assert folder("study_date", study_date=date) == made
    parts = [folder(f"study_{part}", study_date=date) for part in ("year", "month", "day")]
    assert parts == ([made] * 3 if made == MISSING else ["2024", "02", "29"])


# --- bad templates


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "a name without a character"),
        ("/{series}/{instance}", "a name without a character"),
        ("{series}//{instance}", "a name without a character"),
        ("{series}/{instance}/", "a name without a character"),
        ("{studdy}/{series}/{instance}", "'studdy' is no field; there are study, series, instance"),
        ("{}/{series}/{instance}", "'' is no field"),
        ("{study!r}/{series}/{instance}", "'study!r' is no field"),
        ("{study.__class__}/{series}/{instance}", "'study.__class__' is no field"),
        ("../{series}/{instance}", "'..' is not safe"),
        ("./{series}/{instance}", r"'\.' is not safe"),
        ("..{patient}/{series}/{instance}", "'..' is not safe"),
        ("by-date/{series}/{instance}", "'by-date' is not safe"),
        ("A B/{series}/{instance}", "'A B' is not safe"),
        ("A\0/{series}/{instance}", r"'A\\x00' is not safe"),
        ("A\n/{series}/{instance}", r"'A\\n' is not safe"),
        ("\u00c4/{series}/{instance}", "'\u00c4' is not safe"),
        ("~/{series}/{instance}", "'~' is not safe"),
        ("C:\\{series}/{instance}", r"'C:\\\\' is not safe"),
        ("{patient}+X/{series}/{instance}", r"'\+X' is not safe"),
        ("{series}/{instance}.dcm", r"'\.dcm' is not safe"),
        ("-{patient}/{series}/{instance}", "begins with a -"),
        ("{series/{instance}", "'{series' has a brace without its other half"),
        ("{series}}/{instance}", "a brace without its other half"),
        ("{series}/}{instance}", "a brace without its other half"),
        ("{{series}}/{instance}", "a brace without its other half"),
        ("{instance}", "must contain {series} or {series_uid}"),
        ("{study}/{series}", "must contain {series} or {series_uid}"),
        ("{patient}/{study_date}/{instance}", "must contain {series} or {series_uid}"),
        ("{study}-{modality}/{series}/{instance}", "{study} is alone in its folder's name; {study_uid} may"),
        ("{modality}{series}/{instance}", "{series} is alone in its folder's name"),
        ("A/" * MAX_FOLDERS + "{series}/{instance}", "more than 16 folders"),
        ("{study}/" + "A/" * (MAX_FOLDERS - 2) + "{series}/X", "more than 16 folders"),
        ("{series}/{patient}{patient}{instance}", "a name longer than 200"),
        ("A" * 200 + "/{series}/{instance}", "a name longer than 200"),
        (f"{'A' * 199}/" * 5 + "{series}/{instance}", "a path longer than 1000"),
    ],
)
def test_a_bad_template_is_refused_by_what_is_wrong_with_it(template: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LayoutTemplate(template)


def test_the_longest_names_and_paths_are_taken_as_the_limits_say() -> None:
    longest = f"{'A' * (MAX_NAME_CHARACTERS - 1)}/" * 3 + "{patient}{patient}{patient}/{series}/"
    rest = MAX_LOCATION_CHARACTERS - len("objects/") - 3 * 201 - 194 - 22 - len("_-.dcm") - 64
    key = ObjectKey("1", "2", "3", "f" * 64, patient_id="A" * 64)
    made = LayoutTemplate(longest + "B" * rest).location_of(key)
    assert is_location(made)
    with pytest.raises(ValueError, match="a path longer"):
        LayoutTemplate(longest + "B" * (rest + 1))
    deepest = "A/" * (MAX_FOLDERS - 1) + "{series}/{instance}"
    assert is_location(LayoutTemplate(deepest).location_of(key))


# --- documentation


def test_every_field_is_on_the_page_and_no_other() -> None:
    rows = [line.split("|")[1].strip() for line in _PAGE.read_text().splitlines() if line.startswith("| `{")]
    named = [name for row in rows for name in row.replace("`", "").replace(",", "").split()]
    assert sorted(named) == sorted(f"{{{name}}}" for name in FIELDS)


def test_every_example_of_the_page_is_a_template() -> None:
    examples = [
        line.partition('"')[2].rpartition('"')[0]
        for line in _PAGE.read_text().splitlines()
        if line.startswith("layout = ")
    ]
    assert len(examples) >= 4
    for template in examples:
        assert is_location(LayoutTemplate(template).location_of(_KEY))
