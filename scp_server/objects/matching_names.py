"""Matching person names, without regard to case and width (PS3.4 C.2.2.2.1.1, PS3.5 6.2.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from unicodedata import category, normalize

from scp_server.objects.folding import folded_group, is_orderly
from scp_server.objects.matching_hints import Contains
from scp_server.objects.matching_text import Pattern, compared_text, is_pattern, literals
from scp_server.objects.raw_header import Scalar

_FIRST_ACCENT, _LAST_ACCENT = "\u0300", "\u036f"
_MOST_EMPTY_COMPONENTS = 4
"""A name has five components."""
_Places = tuple[int, ...]
_ANYWHERE: _Places = (-1,)


@dataclass(frozen=True, slots=True)
class _Group:
    """What one component group of a key asks for."""

    place: int
    """Which group of the name it is about, from 0; -1 is any."""
    text: str
    patterns: tuple[Pattern, ...]
    """One of them has to match; none: the group equals `text`."""
    literal: str
    """What the folded name has in it."""

    def accepts(self, groups: Sequence[str]) -> bool:
        """Whether the folded groups of a name have it."""
        if self.place >= 0:
            groups = groups[self.place : self.place + 1]
        if not self.patterns:
            return self.text in groups
        return any(group and any(pattern.matches(group) for pattern in self.patterns) for group in groups)


@dataclass(frozen=True, slots=True)
class _Name:
    """One value of a key: all its groups have to match."""

    groups: tuple[_Group, ...]
    words: tuple[Pattern, ...]
    """For fuzzy matching, if that was agreed: each word's beginning."""

    @property
    def is_plain(self) -> bool:
        """Groups without wild cards are all there is to it."""
        return not self.words and not any(group.patterns for group in self.groups)

    def accepts(self, folded: Sequence[str]) -> bool:
        """Whether the folded groups of a name are meant."""
        if all(group.accepts(folded) for group in self.groups):
            return True
        if not self.words:
            return False
        words = _words(" ".join(folded))
        return all(any(pattern.matches(word) for word in words) for pattern in self.words)


@dataclass(frozen=True, slots=True)
class NameMatcher:
    """One of some names."""

    plain: tuple[tuple[_Places, frozenset[tuple[str, ...]]], ...]
    """Keys without wild cards, so that a long list costs no more than a look-up: places of groups, and for
    each key of such groups their texts."""
    names: tuple[_Name, ...]
    """The other keys."""
    hint: Contains | None
    """About the folded column."""

    @classmethod
    def of(cls, keys: Iterable[str], fuzzy: bool) -> NameMatcher | None:
        """From keys as `compared_text` makes them, but for their length; None when one is universal."""
        plain: dict[_Places, set[tuple[str, ...]]] = {}
        names, literal = [], ""
        for key in keys:
            name = _name(key if is_pattern(key) else compared_text(key), fuzzy)
            if not name.groups:
                return None
            if name.is_plain:
                places = tuple(group.place for group in name.groups)
                plain.setdefault(places, set()).add(tuple(group.text for group in name.groups))
            else:
                names.append(name)
            literal = max((group.literal for group in name.groups), key=len)
        only = len(names) + sum(map(len, plain.values())) == 1
        sets = tuple((places, frozenset(texts)) for places, texts in plain.items())
        return cls(sets, tuple(names), Contains(literal) if only and literal and not fuzzy else None)

    def matches(self, values: Sequence[Scalar | bytes]) -> bool:
        """Whether one of the values is meant."""
        for value in values:
            text = compared_text(value if isinstance(value, str) else str(value))
            if not text:
                continue
            folded = [folded_group(group) for group in text.split("=")]
            if self._is_plain_match(folded) or any(name.accepts(folded) for name in self.names):
                return True
        return False

    def _is_plain_match(self, folded: Sequence[str]) -> bool:
        for places, wanted in self.plain:
            if places == _ANYWHERE:
                if any((group,) in wanted for group in folded):
                    return True
            elif places[-1] < len(folded) and tuple(folded[place] for place in places) in wanted:
                return True
        return False


def _name(key: str, fuzzy: bool) -> _Name:
    folded = [folded_group(group) for group in key.split("=")]
    while folded and not folded[-1]:
        folded.pop()
    anywhere = len(folded) == 1
    groups = [_group(_ANYWHERE[0] if anywhere else place, text) for place, text in enumerate(folded) if text]
    words: tuple[Pattern, ...] = ()
    if fuzzy:
        words = tuple(
            Pattern(f"{word}*") for word in dict.fromkeys(_words(" ".join(folded), "*?")) if word.strip("*")
        )
    return _Name(tuple(group for group in groups if group is not None), words)


def _group(place: int, text: str) -> _Group | None:
    """A group of a key; None when it stands for everything.

    Empty components at the end do not count, so that `doe^*` stands for `doe` too: each `^` that only `^` and
    `*` follow may be missing with all of that.
    """
    if not is_pattern(text):
        return _Group(place, text, (), f"={text}=")
    tail = len(text.rstrip("^*"))
    ends = [end for end in range(tail, len(text)) if text[end] == "^"][:_MOST_EMPTY_COMPONENTS]
    alternatives = [text[:end] for end in ends] + [text]
    if any(alternative and not alternative.strip("*") for alternative in alternatives):
        return None
    between = literals(alternatives[0])
    between[0] = between[0] and f"={between[0]}"
    if not ends:
        between[-1] = between[-1] and f"{between[-1]}="
    return _Group(place, text, tuple(map(Pattern, alternatives)), max(between, key=len))


def _words(folded: str, also: str = "") -> list[str]:
    """The words of a folded name, without accents. `also` are characters that belong to words."""
    if not folded.isascii() and is_orderly(folded):
        apart = normalize("NFKD", folded)
        folded = normalize("NFC", "".join(c for c in apart if not _FIRST_ACCENT <= c <= _LAST_ACCENT))
    return "".join(c if c.isalnum() or c in also or category(c)[0] == "M" else " " for c in folded).split()
