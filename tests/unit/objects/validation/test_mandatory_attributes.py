"""Each line of the table of mandatory attributes: the attribute deleted, then emptied, in a valid object."""

from __future__ import annotations

from functools import cache

import pytest

from scp_server.objects.header_tap import HeaderTap
from scp_server.objects.part10 import read_file_meta
from scp_server.objects.validation.conditions import CONDITIONS
from scp_server.objects.validation.finding import Code, Path, Severity
from scp_server.objects.validation.subject import Kind, Subject
from scp_server.objects.validation.tables import AttributeRule, attribute_rules, rules_of
from tests.unit.objects.validation.broken_objects import (
    delete,
    edited,
    empty,
    errors,
    has,
    judge,
    valid_files,
)

FOLLOWS = {0x40101011: {Code.ALARM_OBJECTS}, 0x52009230: {Code.FRAMES}}
"""What else is wrong where a sequence is empty: fewer threat objects than alarms, no frame described."""
INSTEAD = {
    (0x52009229, 0x00209113): {
        (Code.MISSING_TYPE_1, f"(5200,9230)[{frame}] > (0020,9113)") for frame in (1, 2, 3, 4)
    },
}
"""A position that no frame shares any more is missing in each frame."""


@cache
def _subject(name: str) -> Subject:
    file = valid_files()[name]
    meta = read_file_meta(file)
    tap = HeaderTap(meta.transfer_syntax_uid)
    tap.feed(file[meta.dataset_offset_bytes :])
    tap.finish()
    return Subject.of(tap.header)


def _in_force(rule: AttributeRule, subject: Subject) -> bool:
    node = rules_of(subject.kind)
    if subject.kind not in rule.kinds:
        return False
    for tag in rule.tags:
        node = node.inner[tag]
    holding = [one for one in node.rules if not one.when or CONDITIONS[one.when].holds(subject)]
    return holding[:1] == [rule]


@cache
def _example(rule: AttributeRule) -> str:
    """A valid file in which the rule is in force and the attribute is there."""
    for name, file in valid_files().items():
        if _in_force(rule, _subject(name)) and has(file, rule.tags):
            return name
    pytest.fail(f"no valid file shows {rule}")


def _cases() -> list[object]:
    return [
        pytest.param(rule, id=f"{rule.kinds[0]}-{'/'.join(f'{tag:08X}' for tag in rule.tags)}-{rule.when}")
        for rule in attribute_rules()
    ]


def _path(rule: AttributeRule) -> str:
    return str(Path(rule.tags[-1], tuple((tag, 1) for tag in rule.tags[:-1])))


@pytest.mark.parametrize("name", list(valid_files()))
def test_a_valid_object_has_no_errors_and_no_warnings(name: str) -> None:
    report = judge(valid_files()[name])
    assert [one for one in report.findings if one.severity is not Severity.INFO] == []


@pytest.mark.parametrize("rule", _cases())
def test_a_mandatory_attribute_that_is_absent_is_found_with_its_code(rule: AttributeRule) -> None:
    found = errors(judge(edited(valid_files()[_example(rule)], delete(rule.tags))))
    if rule.type == "1C" and not rule.when and rule.tags not in INSTEAD:
        assert found == []
        return
    code = Code.MISSING_TYPE_1 if rule.type.startswith("1") else Code.MISSING_TYPE_2
    if rule.tags in INSTEAD:
        assert {(one.code, one.path) for one in found} == INSTEAD[rule.tags]
        return
    assert [(one.code, one.path) for one in found] == [(code, _path(rule))]
    assert (found[0].keyword, found[0].vr) == (rule.keyword, rule.vr)
    because = f" {CONDITIONS[rule.when].because}." if rule.when else ""
    assert found[0].sentence.endswith(because or ("a value.", "even if empty."))


@pytest.mark.parametrize("rule", _cases())
def test_a_mandatory_attribute_that_is_empty_is_found_unless_it_may_be(rule: AttributeRule) -> None:
    found = errors(judge(edited(valid_files()[_example(rule)], empty(rule.tags))))
    if rule.type.startswith("2"):
        assert found == []
        return
    code = Code.EMPTY_TYPE_1
    follows = FOLLOWS.get(rule.tags[-1], set())
    assert [(one.code, one.path) for one in found if one.code not in follows] == [(code, _path(rule))]
    assert {one.code for one in found} == {code, *follows}


def test_the_tables_know_every_kind_and_condition() -> None:
    rules = attribute_rules()
    assert {kind for rule in rules for kind in rule.kinds} == set(Kind) - {Kind.DIRECTORY}
    assert {rule.when for rule in rules} == {"", *CONDITIONS}
    assert {rule.type for rule in rules} <= {"1", "1C", "2", "2C"}
    assert len({rule[1:] + tuple(rule.kinds) for rule in rules}) == len(rules)
