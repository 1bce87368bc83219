"""Person names match without regard to case, width and empty components at their end (PS3.4 C.2.2.2.1.1)."""

from __future__ import annotations

import pytest

from scp_server.objects.matching import Matcher, MatchingOptions, make_matcher
from scp_server.objects.matching_hints import Contains

YAMADA = "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce=\u3084\u307e\u3060^\u305f\u308d\u3046"


def matcher(key: str | bytes, charset: bytes = b"ISO_IR 192", fuzzy: bool = False) -> Matcher | None:
    return make_matcher(
        0x00100010,
        "PN",
        key if isinstance(key, bytes) else key.encode(),
        charset=charset,
        little_endian=True,
        options=MatchingOptions(fuzzy_person_names=fuzzy),
    )


def matches(key: str | bytes, *names: str, charset: bytes = b"ISO_IR 192", fuzzy: bool = False) -> bool:
    made = matcher(key, charset, fuzzy)
    return made is None or made.matches(names)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("doe^jane", "DOE^Jane"),
        ("Doe", "Doe^^"),
        ("Doe^^^^", "Doe"),
        ("Doe^*", "Doe"),
        ("Doe^*", "Doe^Jane"),
        ("Doe^*^*", "Doe"),
        ("Doe^*^*", "Doe^Jane"),
        ("Doe^*^*", "Doe^Jane^M"),
        ("Doe*", "Doe^Jane^^Dr"),
        ("D?e^J*", "doe^jane"),
        ("*^Jane", "Doe^Jane"),
        ("\uff24\uff4f\uff45", "Doe"),
        ("STRASSE", "Stra\u00dfe"),
        ("Mu\u0308ller", "M\u00dcLLER"),
    ],
)
def test_names_match(key: str, name: str) -> None:
    """PS3.4 C.2.2.2.1."""
    assert matches(key, name)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("Doe", "Doe^Jane"),
        ("Doe^", "Doe^Jane"),
        ("Doe^*", "Doerr"),
        ("Doe?", "Doe"),
        ("Doe?^*", "Doe"),
        ("Doe^?*", "Doe"),
        ("Muller", "M\u00fcller"),
        ("Jane^Doe", "Doe^Jane"),
    ],
)
def test_names_do_not_match(key: str, name: str) -> None:
    assert not matches(key, name)


@pytest.mark.parametrize(
    "key", ["YAMADA*", "\u5c71\u7530*", "\u3084\u307e\u3060^*", "\u5c71\u7530^\u592a\u90ce", "Yamada*="]
)
def test_a_key_of_one_group_matches_any_group(key: str) -> None:
    assert matches(key, YAMADA)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("Yamada*=\u5c71*", True),
        ("=\u5c71\u7530*", True),
        ("==\u3084*", True),
        ("\u5c71\u7530*=", True),
        ("=Yamada*", False),
        ("Yamada*=\u3084*", False),
        ("Smith=\u5c71*", False),
        ("*=\u5c71*=*", True),
    ],
)
def test_a_key_of_several_groups_matches_each_at_its_place(key: str, expected: bool) -> None:
    assert matches(key, YAMADA) is expected


@pytest.mark.parametrize("key", ["^^^^", "=", "==", "*=*", "*^*", "*^*^*=*", "Doe\\*^*"])
def test_a_name_without_anything_is_universal(key: str) -> None:
    assert matcher(key) is None


def test_each_of_several_names_has_its_groups() -> None:
    assert matches("Roe\\=\u5c71*", YAMADA)
    assert matches("doe", "Roe=\u5c71", "Doe=\u5ddd")
    assert not matches("Roe=\u5ddd", "Roe=\u5c71", "Doe=\u5ddd")


@pytest.mark.parametrize(
    ("charset", "key"),
    [
        (b"\\ISO 2022 IR 87", b"\x1b$B;3ED\x1b(B^*"),
        (b"ISO 2022 IR 13\\ISO 2022 IR 87", b"=\x1b$B;3ED\x1b(J*"),
        (b"GB18030", "=\u5c71\u7530^*".encode("gb18030")),
    ],
)
def test_keys_are_read_in_the_requests_character_set(charset: bytes, key: bytes) -> None:
    """PS3.4 C.2.2.2: characters count, not their bytes."""
    assert matches(key, YAMADA, charset=charset)


def test_a_name_in_a_single_byte_character_set_matches() -> None:
    assert matches(b"M\xdcLLER", "M\u00fcller", charset=b"ISO_IR 100")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("jane doe", True),
        ("doe j", True),
        ("JA-DO", True),
        ("muller", False),
        ("doe^jane^x", False),
        ("J?ne", True),
        ("*oe", True),
        ("-", False),
    ],
)
def test_fuzzy_matching_is_by_beginnings_of_words(key: str, expected: bool) -> None:
    assert matches(key, "Doe^Jane", fuzzy=True) is expected


def test_fuzzy_matching_disregards_accents_but_not_voicing_marks() -> None:
    assert matches("muller", "M\u00fcller^R\u00e9n\u00e9", fuzzy=True)
    assert matches("M\u00fcller Rene", "Muller^R\u00e9n\u00e9", fuzzy=True)
    assert not matches("\u304b", "\u304c", fuzzy=True)
    assert matches("\uae40", "Kim=\uae40^\uc218", fuzzy=True)


@pytest.mark.parametrize("key", ["Doe^Jane", "Do*ne", "D*", "*^j*"])
def test_fuzzy_matching_finds_what_exact_matching_does(key: str) -> None:
    assert matches(key, "Doe^Jane", fuzzy=False)
    assert matches(key, "Doe^Jane", fuzzy=True)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("Doe^Jane", Contains("=doe^jane=")),
        ("Doe^Ja*", Contains("=doe^ja")),
        ("Doe^*", Contains("=doe")),
        ("*Jane", Contains("jane=")),
        ("Al=\u5c71\u7530*", Contains("=al=")),
        ("???", None),
        ("Doe\\Roe", None),
    ],
)
def test_hints_are_about_the_folded_column(key: str, hint: object) -> None:
    made = matcher(key)
    assert made is not None
    assert made.hint == hint


def test_fuzzy_names_have_no_hint() -> None:
    made = matcher("Doe", fuzzy=True)
    assert made is not None
    assert made.hint is None
