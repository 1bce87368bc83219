"""Matching text: single values and wild cards (PS3.4 C.2.2.2.1, C.2.2.2.4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from scp_server.objects.folding import normal_text
from scp_server.objects.matching_hints import AnyOf, Contains, Hint, StartsWith
from scp_server.objects.raw_header import Scalar
from scp_server.objects.summary import MAX_TEXT_CHARACTERS

MAX_PATTERN_CHARACTERS: Final = MAX_TEXT_CHARACTERS
"""Longest key with wild cards: no more of a text is compared, but of those with `LONG_TEXT_VRS`."""
LONG_TEXT_VRS: Final = frozenset(["LT", "ST", "UC", "UR", "UT"])
"""Text compared as a whole; of other text only the first `MAX_TEXT_CHARACTERS`, which columns have, are."""


class Pattern:
    """A text with wild cards. Comparing takes one step for each character of the other text.

    A bit for each of the pattern's characters, and one behind its last, says whether what was read so far can
    end there; `*` keeps its bit.
    """

    __slots__ = ("_end", "_length", "_stays", "_steps", "_wild")

    def __init__(self, pattern: str) -> None:
        bit, self._stays, self._wild = 1, 0, 0
        steps: dict[str, int] = {}
        for character in pattern:
            if character == "*":
                self._stays |= bit
                continue
            if character == "?":
                self._wild |= bit
            else:
                steps[character] = steps.get(character, 0) | bit
            bit <<= 1
        self._steps = {character: bits | self._wild for character, bits in steps.items()}
        self._end = bit
        self._length = bit.bit_length() - 1

    def matches(self, text: str) -> bool:
        """Whether it stands for all of `text`."""
        if len(text) < self._length:
            return False
        steps, wild, stays = self._steps, self._wild, self._stays
        reached = 1
        for character in text:
            reached = (reached & steps.get(character, wild)) << 1 | reached & stays
            if not reached:
                return False
        return bool(reached & self._end)


def is_pattern(text: str) -> bool:
    """Whether a key has wild cards."""
    return "*" in text or "?" in text


def literals(pattern: str) -> list[str]:
    """What lies between the wild cards; the first and the last are empty where one is at an end."""
    return pattern.replace("?", "*").split("*")


def compared_text(text: str, whole: bool = False) -> str:
    """Text as columns have it (`summary`): normal form C, no NUL, no outer spaces, not too long."""
    if "\0" in text:
        text = text.replace("\0", "")
    text = normal_text(text).strip()
    return text if whole or len(text) <= MAX_TEXT_CHARACTERS else text[:MAX_TEXT_CHARACTERS].rstrip()


@dataclass(frozen=True, slots=True)
class TextMatcher:
    """One of some texts, or what one of some patterns stands for."""

    texts: frozenset[str]
    patterns: tuple[Pattern, ...]
    whole: bool
    hint: Hint | None

    @classmethod
    def of(cls, vr: str, keys: Iterable[str]) -> TextMatcher:
        """From keys that are as `compared_text` makes them, but for their length."""
        whole = vr in LONG_TEXT_VRS
        texts: dict[str, None] = {}
        patterns: dict[str, None] = {}
        for key in keys:
            if is_pattern(key):
                patterns[key] = None
            else:
                texts[compared_text(key, whole)] = None
        hint: Hint | None = None
        if not whole and not patterns:
            hint = AnyOf(tuple(texts))
        elif not whole and not texts and len(patterns) == 1:
            hint = _pattern_hint(next(iter(patterns)))
        return cls(frozenset(texts), tuple(Pattern(pattern) for pattern in patterns), whole, hint)

    def matches(self, values: Sequence[Scalar | bytes]) -> bool:
        """Whether one of the values is meant."""
        for value in values:
            text = compared_text(value if isinstance(value, str) else str(value), self.whole)
            if text in self.texts or any(pattern.matches(text) for pattern in self.patterns):
                return True
        return False


def _pattern_hint(pattern: str) -> Hint | None:
    between = literals(pattern)
    if between[0]:
        return StartsWith(between[0])
    longest = max(between, key=len)
    return Contains(longest) if longest else None
