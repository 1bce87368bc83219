"""The forms in which the index keeps text, and in which keys are compared with it."""

from __future__ import annotations

import re
from typing import Final
from unicodedata import combining, normalize

_OLD_DATE: Final = re.compile(r"(\d{4})\.(\d\d)\.(\d\d)", re.ASCII).fullmatch
_SHORT_CHARACTERS: Final = 1_024
_LONGEST_RUN: Final = 64
"""More combining characters in a row than this are nobody's text, and ordering them takes quadratic time."""


def is_orderly(text: str) -> bool:
    """Whether `text` can be normalised in linear time."""
    if len(text) <= _SHORT_CHARACTERS:
        return True
    run = 0
    for character in text:
        run = run + 1 if combining(character) else 0
        if run > _LONGEST_RUN:
            return False
    return True


def normal_text(text: str) -> str:
    """`text` in Unicode's normal form C, so that one way to write a character is the only one.

    What is not `is_orderly` stays as it is.
    """
    return text if text.isascii() or not is_orderly(text) else normalize("NFC", text)


def canonical_date(text: str) -> str:
    """A DA value as YYYYMMDD; what is not of the old form YYYY.MM.DD (PS3.5 6.2) stays as it is."""
    old = _OLD_DATE(text) if "." in text else None
    return text if old is None else "".join(old.groups())


def folded_name(name: str) -> str:
    """A person's name without regard to case, width and compatibility forms: `=doe^jane=` for `Doe^Jane^^`.

    Every component group is folded by itself, and has a `=` before and after it.
    """
    return f"={'='.join([folded_group(group) for group in name.split('=')])}="


def folded_group(group: str) -> str:
    """One component group of a name, folded: NFKC and case folding, without empty components at its end."""
    if not group.isascii() and is_orderly(group):
        group = normalize("NFKC", normalize("NFKC", group).casefold())
    return group.casefold().rstrip("^ ")
