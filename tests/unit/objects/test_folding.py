"""Text in the forms that the index keeps."""

from __future__ import annotations

from unicodedata import normalize

import pytest

from scp_server.objects.folding import canonical_date, folded_group, folded_name, normal_text


def test_normal_text_is_in_form_c() -> None:
    assert normal_text(normalize("NFD", "Größe ガ 각")) == "Größe ガ 각"
    assert normal_text("plain") == "plain"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024.01.31", "20240131"),
        ("20240131", "20240131"),
        ("2024.1.31", "2024.1.31"),
        ("\u0662\u0660\u0662\u0664.01.31", "\u0662\u0660\u0662\u0664.01.31"),
        ("", ""),
    ],
)
def test_only_dates_of_the_old_form_are_written_anew(text: str, expected: str) -> None:
    assert canonical_date(text) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Doe^Jane^^", "=doe^jane="),
        ("Yamada^Tarou=山田^太郎^=やまだ^たろう ", "=yamada^tarou=山田^太郎=やまだ^たろう="),
        ("ﾔﾏﾀﾞ^ﾀﾛｳ", "=ヤマダ^タロウ="),
        ("\uff24\uff4f\uff45^Jane", "=doe^jane="),
        ("STRASSE^ẞ", "=strasse^ss="),
        ("=山田^太郎", "==山田^太郎="),
        ("^", "=="),
        ("", "=="),
    ],
)
def test_a_name_is_folded_group_by_group(name: str, expected: str) -> None:
    assert folded_name(name) == expected


@pytest.mark.parametrize("group", ["Doe^Jane", "ẞ^Ǆ^ﬃ", "İ^ͅ", "ﾊﾟ^", "㎏^½", "Å^Å"])
def test_folding_twice_is_folding_once(group: str) -> None:
    once = folded_group(group)
    assert folded_group(once) == once
    assert folded_group(normalize("NFD", group)) == once
