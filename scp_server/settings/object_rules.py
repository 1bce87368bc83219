"""The settings of rules for objects that are received: `[[coerce]]` and `[[require_attributes]]`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from scp_server.errors import ConfigurationError
from scp_server.objects.changes import Changes
from scp_server.objects.query_keys import KeyName, parse_key
from scp_server.objects.vr import TEXT_VRS
from scp_server.pipeline.verdicts import Reject
from scp_server.settings.rules import RuleSettings
from scp_server.settings.section import Texts

_MAX_SOURCE_CHARACTERS = 64


def _source(text: str) -> str:
    if not 1 <= len(text) <= _MAX_SOURCE_CHARACTERS or not (text.isascii() and text.isprintable()):
        raise ValueError(f"must be 1 to {_MAX_SOURCE_CHARACTERS} printable ASCII characters")
    return text


class CoerceSettings(RuleSettings):
    """A rule that changes attributes of objects before they are stored."""

    set: dict[str, object] = Field(
        default={},
        description="Values by attribute. In a text {Keyword} is filled in with the object's own value, as "
        "it came; {{ is a brace.",
    )
    remove: Texts = Field(default=(), description="Attributes that go.")
    copy_from: dict[str, str] = Field(
        default={},
        alias="copy",  # The name itself is a method's of every model.
        description="Sources by attribute: it takes the source's value, and stays where there is none.",
    )
    source_of_previous_values: Annotated[str, AfterValidator(_source)] | None = Field(
        default=None,
        description="What Source of Previous Values (0400,0564) says; when not set, the calling AE title.",
    )
    dicos: bool = Field(
        default=False,
        description="Whether DICOS objects, and what comes on DICOS associations, are changed too.",
    )
    warning: bool = Field(
        default=False,
        description="Answer 0xB000 and name what was changed, where something was. Many senders take that "
        "for a failure. DICOS associations never hear it.",
    )

    @field_validator("set", "remove", "copy_from")
    @classmethod
    def _can_be_done(cls, value: object, info: ValidationInfo) -> object:
        _changes(**{str(info.field_name).removesuffix("_from"): value})
        return value

    @model_validator(mode="after")
    def _changes_something_once(self) -> Self:
        if not self.changes:
            raise ValueError("changes nothing: set, remove or copy must be given")
        return self

    @property
    def changes(self) -> Changes:
        """The changes that these keys describe."""
        return _changes(set=self.set, remove=self.remove, copy=self.copy_from)


def _changes(**asked: object) -> Changes:
    try:
        return Changes.of(**asked, templates=True)  # type: ignore[arg-type]
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


class RequireAttributesSettings(RuleSettings):
    """A rule that refuses objects without certain attributes."""

    attributes: Texts = Field(
        default=(), description="Attributes that must be there and not be empty, else the object is refused."
    )
    values: dict[str, Texts] = Field(
        default={},
        description="Allowed values by attribute, compared as they are: each of the object's must be among "
        "them, and there must be one.",
    )
    status: int = Field(
        default=0xC000,
        description="What the sender hears: 0xA7xx, 0xA9xx or 0xCxxx (PS3.4 B.2.3); 49152 is 0xC000.",
    )
    quarantine: bool | None = Field(
        default=None,
        description="Whether refused objects are kept in quarantine; when not set, with 0xA9xx and 0xCxxx.",
    )

    @field_validator("attributes")
    @classmethod
    def _are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            _key(name)
        return names

    @field_validator("values")
    @classmethod
    def _are_comparable(cls, values: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, allowed in values.items():
            if _key(name).vr not in TEXT_VRS:
                raise ValueError(f"{name} has a VR whose values cannot be compared: {_key(name).vr}")
            if not allowed:
                raise ValueError(f"{name} allows no value")
        return values

    @field_validator("status")
    @classmethod
    def _refuses(cls, status: int) -> int:
        Reject(status)
        return status

    @model_validator(mode="after")
    def _requires_something(self) -> Self:
        if not self.attributes and not self.values:
            raise ValueError("requires nothing: attributes or values must be given")
        return self

    @property
    def keys(self) -> tuple[KeyName, ...]:
        """The attributes that must be there."""
        return tuple(map(_key, dict.fromkeys((*self.attributes, *self.values))))

    @property
    def values_by_name(self) -> dict[str, frozenset[str]]:
        """The allowed values, by the names that `keys` have."""
        return {_key(name).name: frozenset(allowed) for name, allowed in self.values.items()}


def _key(name: str) -> KeyName:
    try:
        return parse_key(name)
    except ConfigurationError as error:
        raise ValueError(f"{name} is no attribute: {error}") from error
