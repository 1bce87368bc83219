"""Queries in any character set, answered in the request's or in UTF-8 (PS3.4 C.2.2.2, C.4.1.1.3.2)."""

from __future__ import annotations

import pytest

from scp_server.index.store import SqlIndex
from scp_server.testing.dataset_encoder import Element
from tests.unit.services.query_retrieve.asking import ask, key

JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"
CHARACTER_SET = 0x00080005


def charset(value: str) -> Element:
    return Element(CHARACTER_SET, "CS", value)


@pytest.mark.parametrize(
    ("declared", "codec", "name", "study"),
    [
        ("\\ISO 2022 IR 87", "iso2022_jp", "*=山田*", "2.25.3"),
        ("\\ISO 2022 IR 87", "iso2022_jp", JAPANESE, "2.25.3"),
        ("ISO_IR 192", "utf_8", "山田^太郎", "2.25.3"),
        ("GB18030", "gb18030", "山田^太郎", "2.25.3"),
        ("", "ascii", "yamada*", "2.25.3"),
        ("ISO_IR 100", "latin_1", "buc^jérôme", "2.25.4"),
        ("ISO_IR 192", "utf_8", "Buc^Je\u0301ro\u0302me", "2.25.4"),
        ("ISO_IR 192", "utf_8", "\uff22UC^JÉRÔME", "2.25.4"),
    ],
)
async def test_a_name_is_found_in_every_character_set_that_can_say_it_c_2_2_2(
    archive: SqlIndex, declared: str, codec: str, name: str, study: str
) -> None:
    asked = await ask(archive, "STUDY", charset(declared), key("PatientName", name), codec=codec)
    assert asked.values("StudyInstanceUID") == [study]
    assert asked.statuses == [0xFF00]


@pytest.mark.parametrize(
    ("declared", "codec", "study", "answered"),
    [
        ("\\ISO 2022 IR 87", "iso2022_jp", "2.25.3", ["", "ISO 2022 IR 87"]),
        ("ISO_IR 192", "utf_8", "2.25.3", "ISO_IR 192"),
        ("ISO_IR 100", "latin_1", "2.25.3", "ISO_IR 192"),
        ("", "ascii", "2.25.3", "ISO_IR 192"),
        ("ISO_IR 100", "latin_1", "2.25.4", "ISO_IR 100"),
        ("NONSENSE", "ascii", "2.25.4", "ISO_IR 192"),
        ("ISO_IR 192", "utf_8", "2.25.1", None),
    ],
)
async def test_an_answer_is_in_the_requests_character_set_or_utf_8_and_names_it_if_needed_c_4_1_1_3_2(
    archive: SqlIndex, declared: str, codec: str, study: str, answered: object
) -> None:
    keys = [charset(declared), key("StudyInstanceUID", study), key("PatientName")]
    (match,) = (await ask(archive, "STUDY", *keys, codec=codec)).matches
    assert match.get("SpecificCharacterSet") == answered
    names = {"2.25.1": "Doe^Jane", "2.25.3": JAPANESE, "2.25.4": "Buc^Jérôme"}
    assert str(match.PatientName) == names[study]


async def test_specific_character_set_is_never_matched_c_2_2_2(archive: SqlIndex) -> None:
    asked = await ask(archive, "STUDY", charset("ISO_IR 144"), key("PatientID", "PAT-1"))
    assert len(asked.matches) == 2
    assert all("SpecificCharacterSet" not in match for match in asked.matches)


@pytest.mark.parametrize("declared", ["NONSENSE", "ISO_IR 192", "\\ISO 2022 IR 87", "ISO 2022 IR 149\\x"])
async def test_bytes_that_are_none_of_the_character_set_find_nothing_and_are_no_failure(
    archive: SqlIndex, declared: str
) -> None:
    keys = [charset(declared), Element(0x00100010, "PN", b"\xff\xfe\x1b$B\x80\xc3("), key("StudyDescription")]
    asked = await ask(archive, "STUDY", *keys)
    assert (asked.final, asked.matches) == (0x0000, [])
