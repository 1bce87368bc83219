"""What all rules have in common."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from scp_server.pipeline.filters import ObjectFilter
from scp_server.settings.rules import RuleSettings, check_names


def test_a_rule_has_the_filter_that_its_keys_describe() -> None:
    rule = RuleSettings(name="to-archive", sop_classes=("dicos",), calling_ae_titles=("CT*",))
    assert rule.object_filter == ObjectFilter(sop_classes=("dicos",), calling_ae_titles=("CT*",))


def test_a_problem_of_a_filter_is_told_at_its_key() -> None:
    with pytest.raises(ValidationError) as caught:
        RuleSettings.model_validate({"name": "a", "sop_classes": ["CTImage"], "modalities": [""]})
    assert [error["loc"] for error in caught.value.errors()] == [("sop_classes",), ("modalities",)]
    assert "'CTImage' is no UID" in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize("name", ["", "a b", "a:b", "-a", "a" * 65])
def test_a_name_is_fit_for_logs_labels_and_commands(name: str) -> None:
    with pytest.raises(ValidationError, match="must be 1 to 64 letters"):
        RuleSettings(name=name)


def test_two_rules_of_one_name_are_refused() -> None:
    rules = [RuleSettings(name="a"), RuleSettings(name="b"), RuleSettings(name="a")]
    with pytest.raises(ValueError, match=r"forward\.2\.name is that of forward\.0"):
        check_names("forward", rules)
