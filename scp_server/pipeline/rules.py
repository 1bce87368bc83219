"""The built-in rules for objects that are received: what they must have, and what is changed of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scp_server.objects.changes import Changes
from scp_server.objects.identifier import Key, located
from scp_server.objects.query_keys import KeyName
from scp_server.objects.raw_header import RawElement, RawHeader
from scp_server.objects.uids import is_dicos_sop_class
from scp_server.objects.vr import TEXT_VRS
from scp_server.observability.logs import get_logger
from scp_server.pipeline.filters import ObjectFilter
from scp_server.pipeline.instances import ReceivedInstance
from scp_server.pipeline.verdicts import Reject

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RequireRule:
    """What objects must have, else they are refused with `status`.

    `attributes` must be there and not empty. Where `values` has texts for one, each of its values must be
    among them. `quarantine` is as in `Reject`.
    """

    name: str
    filter: ObjectFilter
    attributes: tuple[KeyName, ...]
    values: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By the name of the attribute."""
    status: int = 0xC000
    quarantine: bool | None = None

    def problem(self, header: RawHeader) -> str:
        """What an object lacks; empty where that is nothing. Never repeats a value."""
        for key in self.attributes:
            tag = located(header, Key(key.tag, key.vr, private_creator=key.creator))
            element = None if tag is None else header.get(tag)
            if element is None or _is_empty(element):
                return f"{key.name} is missing"
            allowed = self.values.get(key.name)
            if allowed is not None and not {str(value) for value in header.value(element.tag)} <= allowed:
                return f"{key.name} has another value"
        return ""


def _is_empty(element: RawElement) -> bool:
    """Whether an element has no value, or a text of nothing but padding."""
    if not element.length_bytes:
        return True
    value = element.value
    return element.vr in TEXT_VRS and value is not None and not value.strip(b" \0")


@dataclass(frozen=True, slots=True)
class CoerceRule:
    """What is changed of objects. Without `dicos` never of DICOS's, nor of what comes on its associations."""

    name: str
    filter: ObjectFilter
    changes: Changes
    source_of_previous_values: str | None = None
    dicos: bool = False
    warning: bool = False
    """The sender is told, by a warning."""


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """What the rules say of an object that they do not refuse."""

    changes: Changes | None = None
    coerced_by: tuple[str, ...] = ()
    """The rules behind the changes."""
    source_of_previous_values: str | None = None
    warning: bool = False


@dataclass(frozen=True, slots=True)
class ObjectRules:
    """All of them. Those that require come first; of those that change an attribute the last one holds."""

    require: Sequence[RequireRule] = ()
    coerce: Sequence[CoerceRule] = ()

    def __bool__(self) -> bool:
        return bool(self.require or self.coerce)

    def judge(self, instance: ReceivedInstance) -> RuleVerdict:
        """What becomes of an object. Raises Reject."""
        for required in self.require:
            if _is_about(required.filter, instance) and (problem := required.problem(instance.header)):
                log.warning(
                    "rule.rejected",
                    rule=required.name,
                    status=f"0x{required.status:04X}",
                    error=problem,
                    **instance.log_fields,
                )
                raise Reject(required.status, problem, quarantine=required.quarantine)
        is_dicos = instance.association.is_dicos or is_dicos_sop_class(instance.sop_class_uid)
        changing = [
            rule for rule in self.coerce if (rule.dicos or not is_dicos) and _is_about(rule.filter, instance)
        ]
        if not changing:
            return RuleVerdict()
        changes = Changes()
        for rule in changing:
            changes = changes.merged(rule.changes)
        sources = [rule.source_of_previous_values for rule in changing if rule.source_of_previous_values]
        return RuleVerdict(
            changes=changes,
            coerced_by=tuple(rule.name for rule in changing),
            source_of_previous_values=sources[0] if sources else None,
            warning=any(rule.warning for rule in changing),
        )


def _is_about(chosen: ObjectFilter, instance: ReceivedInstance) -> bool:
    association = instance.association
    return chosen.matches(
        instance.sop_class_uid,
        instance.modality,
        association.calling_ae_title,
        association.called_ae_title,
    )
