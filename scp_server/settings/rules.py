"""What all rules of the settings have in common: a name, and which objects they are about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from scp_server.errors import ConfigurationError
from scp_server.pipeline.filters import ObjectFilter
from scp_server.settings.section import Section, Texts

_RULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def _rule_name(text: str) -> str:
    if _RULE_NAME.fullmatch(text) is None:
        raise ValueError("must be 1 to 64 letters, digits, _ . or -, the first a letter or a digit")
    return text


RuleName = Annotated[str, AfterValidator(_rule_name)]


class FilterSettings(Section):
    """Which objects a rule is about. An object is meant when all that is given holds."""

    sop_classes: Texts = Field(
        default=(),
        description="SOP classes, as UIDs or keywords, or the words dicos (all of DICOS) and medical (all "
        "others); when empty, any.",
    )
    modalities: Texts = Field(
        default=(), description="Modalities, with * and ? as wild cards; when empty, any, also none."
    )
    calling_ae_titles: Texts = Field(
        default=(),
        description="AE titles of those who send, with * and ? as wild cards; when empty, any.",
    )
    called_ae_titles: Texts = Field(
        default=(), description="AE titles that they call, with * and ? as wild cards; when empty, any."
    )

    @field_validator("sop_classes", "modalities", "calling_ae_titles", "called_ae_titles")
    @classmethod
    def _can_be_compared(cls, texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        try:
            ObjectFilter(**{str(info.field_name): texts})
        except ConfigurationError as error:
            raise ValueError(str(error).removeprefix(f"{info.field_name}: ")) from error
        return texts

    @property
    def object_filter(self) -> ObjectFilter:
        """The filter that these keys describe."""
        return ObjectFilter(
            sop_classes=self.sop_classes,
            modalities=self.modalities,
            calling_ae_titles=self.calling_ae_titles,
            called_ae_titles=self.called_ae_titles,
        )


class RuleSettings(FilterSettings):
    """A rule with a name of its own."""

    name: RuleName = Field(
        description="What logs, metrics and commands call the rule. Must be given; once only."
    )


def check_names(table: str, rules: Sequence[RuleSettings]) -> None:
    """Raises ValueError for a rule of the array `table` that has the name of one before it."""
    seen: dict[str, int] = {}
    for position, rule in enumerate(rules):
        first = seen.setdefault(rule.name, position)
        if first != position:
            raise ValueError(f"{table}.{position}.name is that of {table}.{first}")
