"""From the settings of rules to the rules."""

from __future__ import annotations

from scp_server.pipeline.rules import CoerceRule, ObjectRules, RequireRule
from scp_server.settings import Settings
from scp_server.settings.object_rules import CoerceSettings, RequireAttributesSettings


def build_object_rules(settings: Settings) -> ObjectRules:
    """What objects must have, and what is changed of them."""
    return ObjectRules(
        require=tuple(map(_require_rule, settings.require_attributes)),
        coerce=tuple(map(_coerce_rule, settings.coerce)),
    )


def _require_rule(rule: RequireAttributesSettings) -> RequireRule:
    return RequireRule(
        name=rule.name,
        filter=rule.object_filter,
        attributes=rule.keys,
        values=rule.values_by_name,
        status=rule.status,
        quarantine=rule.quarantine,
    )


def _coerce_rule(rule: CoerceSettings) -> CoerceRule:
    return CoerceRule(
        name=rule.name,
        filter=rule.object_filter,
        changes=rule.changes,
        source_of_previous_values=rule.source_of_previous_values,
        dicos=rule.dicos,
        warning=rule.warning,
    )
