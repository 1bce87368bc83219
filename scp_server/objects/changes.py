"""What is to be changed of an object: attributes set, filled in from others, copied, removed.

Attributes are named as keys of queries are (see `query_keys`): `PatientID`, `0010,0020`, `0029,ACME,10:LO`.
Only those of the data set itself can be changed, not those of sequence items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Final

from scp_server.errors import ConfigurationError
from scp_server.objects.element_headers import DICOS_VERSION, PIXEL_GROUP
from scp_server.objects.query import read_item
from scp_server.objects.query_keys import KeyName, parse_key
from scp_server.objects.uids import is_valid_uid
from scp_server.objects.vr import NUMBER_CODES, SINGLE_VALUED_TEXT_VRS, TEXT_VRS, tag_text

ORIGINAL_ATTRIBUTES_SEQUENCE: Final = 0x04000561
STUDY_INSTANCE_UID: Final = 0x0020000D
SERIES_INSTANCE_UID: Final = 0x0020000E

_FIXED: Final[Mapping[int, str]] = {
    0x00080001: "is a length",
    0x00080005: "says how all texts are encoded",
    0x00080016: "says what the object is",
    0x00080018: "says which object it is",
    ORIGINAL_ATTRIBUTES_SEQUENCE: "tells what was changed",
    DICOS_VERSION: "says how the object is to be read",
    **dict.fromkeys(
        (
            *range(0x00280002, 0x0028000A),
            *range(0x00280010, 0x00280015),
            *range(0x00280100, 0x00280104),
            *range(0x00281101, 0x00281104),
        ),
        "describes the pixels",
    ),
}
"""What must stay as it came, and why."""
NEEDED_UIDS: Final = frozenset((STUDY_INSTANCE_UID, SERIES_INSTANCE_UID))
_SETTABLE_VRS: Final = TEXT_VRS | NUMBER_CODES.keys() | {"AT"}
_READABLE_VRS: Final = TEXT_VRS | NUMBER_CODES.keys()


@dataclass(frozen=True, slots=True)
class SetTo:
    """An attribute gets a value: text, several values joined by backslashes, or bytes in little endian."""

    key: KeyName
    value: str | bytes


@dataclass(frozen=True, slots=True)
class FilledIn:
    """An attribute gets a text in which keys stand for the object's own values; absent ones are empty."""

    key: KeyName
    parts: tuple[str | KeyName, ...]


@dataclass(frozen=True, slots=True)
class CopiedFrom:
    """An attribute gets the value of another; it stays as it is where that is absent."""

    key: KeyName
    source: KeyName


@dataclass(frozen=True, slots=True)
class Removed:
    """An attribute goes."""

    key: KeyName


Change = SetTo | FilledIn | CopiedFrom | Removed


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of one object, by tag and private creator of what is changed."""

    by_attribute: Mapping[tuple[int, str | None], Change] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        set: Mapping[str, object] | None = None,
        remove: Iterable[str] = (),
        copy: Mapping[str, str] | None = None,
        *,
        templates: bool = False,
    ) -> Changes:
        """Read changes as users write them: values by attribute, attributes, sources by attribute.

        With `templates`, `{Keyword}` in a text is filled in (`{{` is a brace). Raises ConfigurationError,
        whose text begins with the attribute, for one that is unknown, named twice or must not be changed, and
        for a value that it cannot have.
        """
        found: dict[tuple[int, str | None], Change] = {}
        for name, value in (set or {}).items():
            _add(found, name, _setting(name, value, templates))
        for name in remove:
            key = _attribute(name)
            if key.tag in NEEDED_UIDS and key.creator is None:
                raise ConfigurationError(
                    f"{name} must not be removed: without it there is no place for the object"
                )
            _add(found, name, Removed(key))
        for name, source in (copy or {}).items():
            _add(found, name, CopiedFrom(_settable(name), _readable(name, source)))
        return cls(found)

    def merged(self, later: Changes) -> Changes:
        """These and `later` ones, which win where both are about an attribute."""
        return Changes({**self.by_attribute, **later.by_attribute})

    def __bool__(self) -> bool:
        return bool(self.by_attribute)

    @property
    def names(self) -> tuple[str, ...]:
        """What the attributes are called, as they were written."""
        return tuple(change.key.name for change in self.by_attribute.values())


def _add(found: dict[tuple[int, str | None], Change], name: str, change: Change) -> None:
    identity = (change.key.tag, change.key.creator)
    if identity in found:
        raise ConfigurationError(f"{name} is changed twice")
    found[identity] = change


def _attribute(name: str) -> KeyName:
    """An attribute that may be changed."""
    try:
        key = parse_key(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name} is no attribute that can be changed: {error}") from None
    tag, group = key.tag, key.tag >> 16
    reason = _FIXED.get(tag) if key.creator is None else None
    if group >= PIXEL_GROUP:
        reason = "belongs to the pixels or lies behind them"
    elif group & 1 and key.creator is None:
        reason = f"is private: say whose, as in '{group:04X},CREATOR,{tag & 0xFF:02X}:LO'"
    if reason is not None:
        raise ConfigurationError(f"{name} must not be changed: {tag_text(tag)} {reason}")
    return key


def _settable(name: str) -> KeyName:
    """An attribute that can be given a value."""
    key = _attribute(name)
    if key.vr == "UN":
        raise ConfigurationError(f"{name} has a VR that no dictionary knows: say it, as in '{key.name}:LO'")
    if key.vr not in _SETTABLE_VRS:
        raise ConfigurationError(f"{name} cannot be given a value: its VR is {key.vr}")
    return key


def _readable(name: str, source: str) -> KeyName:
    """An attribute whose value can be taken for that of `name`."""
    try:
        key = parse_key(source)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name} names an attribute that is unknown: {error}") from None
    if key.vr not in _READABLE_VRS:
        raise ConfigurationError(f"{name} names {source}, whose VR {key.vr} has no text")
    return key


def _setting(name: str, value: object, templates: bool) -> Change:
    key = _settable(name)
    parts: list[str | KeyName] = []
    values = value if isinstance(value, list | tuple) else [value]
    if templates and all(isinstance(one, str) for one in values):
        parts = _template(name, "\\".join(map(str, values)))
        if any(isinstance(part, KeyName) for part in parts):
            return FilledIn(key, tuple(parts))
        value = "".join(map(str, parts))
    read = encodable(key, value)
    if isinstance(read, str) and not _is_text_of(key.vr, read):
        raise _no_value(key)
    if key.tag in NEEDED_UIDS and not read:
        raise ConfigurationError(f"{name} must not be empty: without it there is no place for the object")
    return SetTo(key, read)


def _template(name: str, text: str) -> list[str | KeyName]:
    """The literal texts of a template, and the attributes between them."""
    parts: list[str | KeyName] = []
    try:
        pieces = list(Formatter().parse(text))
    except ValueError as error:
        raise ConfigurationError(f"{name} has a template that cannot be read: {error}") from None
    for literal, attribute, specification, conversion in pieces:
        if literal:
            parts.append(literal)
        if attribute is None:
            continue
        if conversion:
            raise ConfigurationError(f"{name} has a template with !{conversion}: only names stand in braces")
        written = f"{attribute}:{specification}" if specification else attribute
        if not written:
            raise ConfigurationError(f"{name} has a template that names nothing between {{ and }}")
        parts.append(_readable(name, written))
    return parts


def encodable(key: KeyName, value: object) -> str | bytes:
    """A value as text, or as the little endian bytes of numbers and tags.

    Raises ConfigurationError; like all of these it does not repeat the value, which may tell of a patient.
    """
    try:
        (read,) = read_item({f"{key.name}:{key.vr}": value}, 0)
    except ConfigurationError:
        raise _no_value(key) from None
    if isinstance(read.value, tuple):
        raise _no_value(key)
    return read.value


def _no_value(key: KeyName) -> ConfigurationError:
    return ConfigurationError(f"{key.name} is given what is no value of VR {key.vr} (PS3.5 6.2)")


def _is_text_of(vr: str, text: str) -> bool:
    """Whether a text keeps to the rules of its VR (PS3.5 6.2), UIDs to ours."""
    from pydicom.config import RAISE
    from pydicom.valuerep import validate_value

    for value in [text] if vr in SINGLE_VALUED_TEXT_VRS else text.split("\\"):
        if vr == "UI":
            if value and not is_valid_uid(value):
                return False
            continue
        try:
            validate_value(vr, value, RAISE)
        except ValueError:
            return False
    return True
