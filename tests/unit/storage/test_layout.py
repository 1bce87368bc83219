from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scp_server.storage.layout import (
    MAX_FOLDERS,
    MAX_LOCATION_CHARACTERS,
    MAX_NAME_CHARACTERS,
    directory_of,
    is_directory,
    is_file_name,
    is_location,
    ledger_generation,
    location_for_log,
)

_GOOD = "objects/df/dfc30f22e3b0014935bb/9db081a4ff58f76d458b/ef661994ceb53deef9f9-0f.dcm"
_DEEPEST = "/".join(["objects", *["A"] * MAX_FOLDERS, "B-0f.dcm"])
_LONGEST_NAME = f"objects/{'A' * MAX_NAME_CHARACTERS}/{'B' * (MAX_NAME_CHARACTERS - 7)}-0f.dcm"


@pytest.mark.parametrize(
    "text",
    [
        _GOOD,
        "objects/PAT1/CT/1.2.3/1.2.4-0f.dcm",
        "objects/_NONE/A+0f/_+0f-1-0f.dcm",
        _DEEPEST,
        _LONGEST_NAME,
    ],
)
def test_what_any_template_may_have_made_is_a_location(text: str) -> None:
    assert is_location(text)
    assert is_directory(directory_of(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "objects",
        "objects/",
        "objects/x-0f.dcm",
        "x-0f.dcm",
        "/" + _GOOD,
        "./" + _GOOD,
        "../" + _GOOD,
        _GOOD + "/",
        _GOOD + "\n",
        "\n" + _GOOD,
        _GOOD.upper(),
        _GOOD.replace("/", "//"),
        _GOOD.replace("/", "\\"),
        _GOOD.replace("objects", "incoming"),
        _GOOD.replace("objects", "objects2"),
        _GOOD.replace("objects/", "objects/../objects/"),
        _GOOD.replace("objects/", "objects/./"),
        _GOOD.replace("objects/", "objects/.hidden/"),
        _GOOD.replace("objects/", "objects/-rf/"),
        _GOOD.replace("objects/", "objects/a b/"),
        _GOOD.replace("objects/", "objects/~/"),
        _GOOD.replace("objects/", "objects/\u00e4/"),
        _GOOD.replace("objects/", "objects/\u0661/"),
        _GOOD.replace("objects/", "objects/a:b/"),
        _GOOD.replace("/ef66", "/.ef66"),
        _GOOD.replace(".dcm", ".part"),
        _GOOD.replace(".dcm", ".dcm.tmp"),
        _GOOD.replace(".dcm", "\0.dcm"),
        _GOOD.replace("-0f", "-"),
        _GOOD.replace("-0f", "-0F"),
        _GOOD.replace("-0f", "-" + "a" * 65),
        _DEEPEST.replace("objects/", "objects/A/"),
        _LONGEST_NAME.replace("B-", "BB-"),
        _LONGEST_NAME.replace("A/", "AA/"),
        "/".join(["objects", *["A" * MAX_NAME_CHARACTERS] * 5, "B-0f.dcm"]),
    ],
)
def test_anything_else_is_no_location(text: str) -> None:
    assert not is_location(text)


@given(st.text(alphabet="./\\-_+aA0\n\0 ob", max_size=30).map("objects/{}/1-0f.dcm".format))
@example("objects/../1-0f.dcm")
@settings(max_examples=300)
def test_no_location_leads_anywhere_but_below_objects(text: str) -> None:
    if is_location(text):
        names = text.split("/")
        assert names[0] == "objects"
        assert not any(name == "" or name.startswith((".", "-")) for name in names)
        assert text.isascii()
        assert text.isprintable()
        assert len(text) <= MAX_LOCATION_CHARACTERS


def test_names_with_a_line_end_are_not_ours() -> None:
    assert not is_file_name(_GOOD.rpartition("/")[2] + "\n")
    assert not is_directory(directory_of(_GOOD) + "\n")


@pytest.mark.parametrize(
    ("location", "logged"),
    [
        (_GOOD, _GOOD),
        ("objects/PAT1/CT/0123456789abcdef0123/PAT1-0f.dcm", "objects/**/*-0f.dcm"),
        (_GOOD.replace("9db081a4ff58f76d458b", "12345"), "objects/**/*-0f.dcm"),
        (_GOOD.replace("/df/", "/99/"), "objects/**/*-0f.dcm"),
        (_GOOD.replace("ef661994ceb53deef9f9", "4711"), "objects/**/*-0f.dcm"),
    ],
)
def test_the_log_is_told_of_hashes_and_arrival_ids_only(location: str, logged: str) -> None:
    assert is_location(location)
    assert location_for_log(location) == logged


@pytest.mark.parametrize(
    ("directory", "logged"),
    [
        (directory_of(_GOOD), directory_of(_GOOD)),
        ("objects/PAT-1/9db081a4ff58f76d458b", "objects/**"),
        ("objects/9db081a4ff58f76d458b/PAT-0F", "objects/**"),
    ],
)
def test_the_log_is_told_of_directories_of_hashes_only(directory: str, logged: str) -> None:
    assert is_directory(directory)
    assert location_for_log(directory) == logged


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
