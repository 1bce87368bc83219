from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_server.storage.base import ObjectKey
from scp_server.storage.layout import (
    FIELDS,
    MAX_DEPTH,
    MAX_DIRECTORY_CHARACTERS,
    Layout,
    directory_of,
    is_directory,
    is_file_name,
    is_location,
    ledger_generation,
    location_of,
)

_ANY_TEXT = st.text(alphabet=st.characters(codec=None), max_size=80)


@settings(max_examples=100)
@given(_ANY_TEXT, _ANY_TEXT, _ANY_TEXT, st.from_regex(r"[0-9a-f]{1,64}", fullmatch=True))
def test_any_uids_give_a_location_of_ours(study: str, series: str, instance: str, arrival: str) -> None:
    location = location_of(ObjectKey(study, series, instance, arrival))
    assert is_location(location)
    assert location.endswith(f"-{arrival}.dcm")
    directory = directory_of(location)
    assert is_directory(directory)
    assert len(directory) < MAX_DIRECTORY_CHARACTERS


def test_locations_never_change_between_releases() -> None:
    key = ObjectKey("1.2.3", "1.2.3.4", "1.2.3.4.5", "0f")
    assert location_of(key) == (
        "objects/df/dfc30f22e3b0014935bb/9db081a4ff58f76d458b/ef661994ceb53deef9f9-0f.dcm"
    )


def test_each_uid_has_its_own_part_of_the_path() -> None:
    base = ObjectKey("1", "2", "3", "aa")
    parts = location_of(base).split("/")
    for number, key in enumerate(
        [ObjectKey("9", "2", "3", "aa"), ObjectKey("1", "9", "3", "aa"), ObjectKey("1", "2", "9", "aa")]
    ):
        other = location_of(key).split("/")
        changed = [index for index in (2, 3, 4) if other[index] != parts[index]]
        assert changed == [number + 2]


_GOOD = location_of(ObjectKey("1", "2", "3", "aa"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/" + _GOOD,
        _GOOD + "/",
        _GOOD + "\n",
        _GOOD.upper(),
        _GOOD.replace("/", "//"),
        _GOOD.replace("objects", "incoming"),
        _GOOD.replace("objects/", "objects/../objects/"),
        _GOOD.replace(".dcm", ".part"),
        _GOOD.replace(".dcm", "\0.dcm"),
        _GOOD.replace("-aa", "-"),
        _GOOD.replace("-aa", "-" + "a" * 65),
        "objects/" + _GOOD.rpartition("/")[2],
        _GOOD.replace("objects/", "objects/.hidden/"),
        _GOOD.replace("objects/", "objects/-rf/"),
        _GOOD.replace("objects/", "objects/a b/"),
        _GOOD.replace("objects/", "objects/é/"),
        _GOOD.replace("objects/", "objects/" + "a/" * (MAX_DEPTH - 2)),
        "../" + _GOOD,
    ],
)
def test_anything_else_is_no_location(text: str) -> None:
    assert is_location(_GOOD)
    assert not is_location(text)


def test_names_with_a_line_end_are_not_ours() -> None:
    assert not is_file_name(_GOOD.rpartition("/")[2] + "\n")
    assert not is_directory(directory_of(_GOOD) + "\n")


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("directories.1", 1),
        ("directories.0042", 42),
        ("directories.", None),
        ("directories.x", None),
        ("directories.-1", None),
        ("directories.\u0661", None),
        ("x.part", None),
        ("1", None),
    ],
)
def test_a_ledgers_name_carries_its_generation(name: str, generation: int | None) -> None:
    assert ledger_generation(name) == generation


NAMES = [name for name in FIELDS if name not in {"study", "series"}]


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=MAX_DEPTH - 1),
    st.builds(
        ObjectKey,
        _ANY_TEXT,
        _ANY_TEXT,
        _ANY_TEXT,
        st.from_regex(r"[0-9a-f]{1,64}", fullmatch=True),
        patient_id=_ANY_TEXT,
        modality=_ANY_TEXT,
        study_date=_ANY_TEXT,
        calling_ae_title=_ANY_TEXT,
    ),
)
def test_whatever_a_peer_says_every_layout_stays_below_objects(fields: list[str], key: ObjectKey) -> None:
    location = Layout("/".join(f"{{{name}}}" for name in [*fields, "series"])).location(key)
    assert is_location(location)
    names = location.split("/")
    assert names[0] == "objects"
    assert len(names) == len(fields) + 3
    assert all(0 < len(name) <= 255 and not name.startswith((".", "-")) for name in names)


def test_the_longest_names_are_still_locations() -> None:
    longest = "/".join([f"{'a' * 32}{{study_uid}}{'b' * 32}{{series_uid}}{'c' * 32}"] * MAX_DEPTH)
    key = ObjectKey("1" * 64, "2" * 64, "3", "f" * 64)
    assert is_location(Layout(longest).location(key))


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("{patient}", "PAT_1"),
        ("{modality}", "CT"),
        ("{calling_ae_title}", "ROOM_2"),
        ("{study_date}", "20240229"),
        ("{year}-{month}", "2024-02"),
        ("{day}", "29"),
        ("{study_uid}", "1.2.3"),
        ("{series_uid}", "1.2.3.4"),
        ("study_{study}", "study_dfc30f22e3b0014935bb"),
    ],
)
def test_what_a_field_becomes(field: str, expected: str) -> None:
    key = ObjectKey(
        "1.2.3",
        "1.2.3.4",
        "1",
        "aa",
        patient_id="PAT/1",
        modality="CT",
        study_date="20240229",
        calling_ae_title="ROOM 2",
    )
    assert Layout(f"{field}/{{study}}").location(key).split("/")[1] == expected


@pytest.mark.parametrize("field", ["patient", "modality", "study_date", "year", "calling_ae_title"])
def test_what_is_missing_has_a_name_of_its_own(field: str) -> None:
    layout = Layout(f"{{{field}}}/{{study}}")
    assert layout.location(ObjectKey("1", "2", "3", "aa")).split("/")[1] == "none"


def test_a_uid_that_is_none_is_never_written_as_it_is() -> None:
    directory = Layout("{study_uid}").location(ObjectKey("../..", "2", "3", "aa")).split("/")[1]
    assert len(directory) == 20
    assert directory.isalnum()


@pytest.mark.parametrize("text", ["..", ".", "/etc/passwd", "-rf", "a\0b", "CON", "é" * 300, " ", "x.dcm"])
def test_text_of_a_peer_is_reduced(text: str) -> None:
    name = Layout("{patient}/{study}").location(ObjectKey("1", "2", "3", "aa", patient_id=text)).split("/")[1]
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name, re.ASCII)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("", "empty"),
        ("/{study}", "empty"),
        ("{study}/", "empty"),
        ("{study}//{series}", "empty"),
        ("{patient}/{modality}", "must name one of"),
        ("../{study}", "letters"),
        ("{study}.x", "letters"),
        ("a b/{study}", "letters"),
        ("{{study}}/{study}", "letters"),
        ("a" * 33 + "/{study}", "letters"),
        ("-x/{study}", "begins with -"),
        ("{study", "expected"),
        ("{name}/{study}", r"\{name\} is none of study_shard"),
        ("{study!r}", "none of"),
        ("{study:>99}", "none of"),
        ("{}/{study}", "none of"),
        ("{study.__class__}", "none of"),
        ("{year}{month}{day}/{study}", "more than 2 fields"),
        ("/".join(["{study}"] * (MAX_DEPTH + 1)), "are the most"),
    ],
)
def test_a_template_that_cannot_be_one_is_refused_with_the_reason(template: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Layout(template)
