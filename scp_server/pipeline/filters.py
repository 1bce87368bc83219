"""Which objects and associations a callback or a rule is about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from scp_server.errors import ConfigurationError
from scp_server.objects.uid_names import sop_class_uid
from scp_server.objects.uids import is_dicos_sop_class

DICOS: Final = "dicos"
"""In a list of SOP classes: every class of DICOS."""
MEDICAL: Final = "medical"
"""In a list of SOP classes: every class that is not DICOS's."""

_AE_TITLE_CHARACTERS: Final = 16


@dataclass(frozen=True, slots=True)
class _Wildcards:
    """Texts as given, and those with `*` (any characters) or `?` (one character) as one expression."""

    plain: frozenset[str]
    pattern: re.Pattern[str] | None

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Wildcards:
        wild = [text for text in texts if "*" in text or "?" in text]
        expressions = [re.escape(text).replace(r"\*", ".*").replace(r"\?", ".") for text in wild]
        pattern = re.compile("|".join(expressions), re.DOTALL) if wild else None
        return cls(frozenset(texts) - frozenset(wild), pattern)

    def match(self, text: str) -> bool:
        return text in self.plain or (self.pattern is not None and self.pattern.fullmatch(text) is not None)


@dataclass(frozen=True, slots=True)
class ObjectFilter:
    """Says of an object whether it is meant: by all of what is given, where an empty tuple is anything.

    `sop_classes` are UIDs, keywords (`CTImageStorage`), or the words `dicos` and `medical`. Modalities and AE
    titles are compared as they are, in upper and lower case, with `*` and `?` as wild cards. Making one
    raises ConfigurationError that names the parameter.
    """

    sop_classes: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    calling_ae_titles: tuple[str, ...] = ()
    called_ae_titles: tuple[str, ...] = ()
    _uids: frozenset[str] = field(init=False, repr=False, compare=False)
    _dicos: bool = field(init=False, repr=False, compare=False)
    _medical: bool = field(init=False, repr=False, compare=False)
    _modality: _Wildcards = field(init=False, repr=False, compare=False)
    _calling: _Wildcards = field(init=False, repr=False, compare=False)
    _called: _Wildcards = field(init=False, repr=False, compare=False)
    _needs_object: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_titles("calling_ae_titles", self.calling_ae_titles)
        _check_titles("called_ae_titles", self.called_ae_titles)
        if not all(self.modalities):
            raise ConfigurationError("modalities: a modality must not be empty")
        named = [name for name in self.sop_classes if name not in (DICOS, MEDICAL)]
        object.__setattr__(self, "_uids", frozenset(map(_sop_class_uid, named)))
        object.__setattr__(self, "_dicos", DICOS in self.sop_classes)
        object.__setattr__(self, "_medical", MEDICAL in self.sop_classes)
        object.__setattr__(self, "_modality", _Wildcards.of(self.modalities))
        object.__setattr__(self, "_calling", _Wildcards.of(self.calling_ae_titles))
        object.__setattr__(self, "_called", _Wildcards.of(self.called_ae_titles))
        object.__setattr__(self, "_needs_object", bool(self.sop_classes or self.modalities))

    @property
    def is_about_objects(self) -> bool:
        """Whether it asks for a SOP class or a modality, which an association has not."""
        return self._needs_object

    def matches(
        self, sop_class_uid: str, modality: str | None, calling_ae_title: str, called_ae_title: str
    ) -> bool:
        """Whether an object of this class and modality, that came on an association of these, is meant."""
        if self._needs_object:
            if self.sop_classes and not self._has_class(sop_class_uid):
                return False
            if self.modalities and not self._modality.match(modality or ""):
                return False
        return self.matches_association(calling_ae_title, called_ae_title)

    def matches_event(self, data: Mapping[str, object]) -> bool:
        """Whether what an event of the log tells of is meant: no association where a class or a modality is
        asked for. What it does not say is empty."""
        sop_class_uid = str(data.get("sop_class_uid") or "")
        if self._needs_object and not sop_class_uid:
            return False
        return self.matches(
            sop_class_uid,
            str(data.get("modality") or ""),
            str(data.get("calling_ae_title") or ""),
            str(data.get("called_ae_title") or ""),
        )

    def matches_association(self, calling_ae_title: str, called_ae_title: str) -> bool:
        """Whether what comes on an association of these AE titles is meant, as far as they say."""
        if self.calling_ae_titles and not self._calling.match(calling_ae_title):
            return False
        return not self.called_ae_titles or self._called.match(called_ae_title)

    def _has_class(self, sop_class_uid: str) -> bool:
        if sop_class_uid in self._uids:
            return True
        if not (self._dicos or self._medical):
            return False
        return self._dicos if is_dicos_sop_class(sop_class_uid) else self._medical


def _sop_class_uid(name: str) -> str:
    try:
        return sop_class_uid(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"sop_classes: {error}, nor {DICOS} nor {MEDICAL}") from None


def _check_titles(parameter: str, titles: Sequence[str]) -> None:
    for title in titles:
        if not 1 <= len(title) <= _AE_TITLE_CHARACTERS or title != title.strip(" "):
            problem = f"must have 1 to {_AE_TITLE_CHARACTERS} characters and no spaces around them"
        elif not (title.isascii() and title.isprintable()) or "\\" in title:
            problem = "must be printable ASCII without a backslash"
        else:
            continue
        raise ConfigurationError(f"{parameter}: {title!r} {problem}")
