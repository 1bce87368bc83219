"""Mandatory attributes: what is absent or empty and must not be (PS3.5 7.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scp_server.objects.raw_header import AttributeSource
from scp_server.objects.validation.conditions import CONDITIONS
from scp_server.objects.validation.finding import Code, Findings, Path
from scp_server.objects.validation.steps import Budget, Steps
from scp_server.objects.validation.subject import Subject, is_empty
from scp_server.objects.validation.tables import AttributeRule, RuleNode, rules_of
from scp_server.objects.vr import tag_text


def check_attributes(subject: Subject, findings: Findings, budget: Budget) -> Steps:
    """Compare an object with the rules for its kind."""
    holding = {name: condition.holds(subject) for name, condition in CONDITIONS.items()}
    check = _Check(subject, findings, budget, holding)
    yield from check.items_of(subject.header, rules_of(subject.kind), ())


class _Check:
    """The walk through the tree of rules, and through the items that it is about."""

    __slots__ = ("_budget", "_findings", "_holding", "_subject")

    def __init__(
        self, subject: Subject, findings: Findings, budget: Budget, holding: Mapping[str, bool]
    ) -> None:
        self._subject = subject
        self._findings = findings
        self._budget = budget
        self._holding = holding

    def items_of(
        self, source: AttributeSource, rules: RuleNode, around: tuple[tuple[int, int], ...]
    ) -> Steps:
        """One item, or the data set; the tree of rules is five deep, so the recursion is."""
        for node in rules.inner.values():
            if self._budget.spend():
                yield
            path = Path(node.tag, around)
            if node.tag not in source:
                if around or self._subject.is_known_absent(node.tag):
                    self._absent(node.rules, path)
                continue
            if is_empty(source, node.tag):
                self._empty(node.rules, path, source.vr(node.tag) or "")
            elif node.inner:
                for number, item in enumerate(source.items(node.tag), 1):
                    # To find an item, and what is in it, may take a while.
                    yield
                    yield from self.items_of(item, node, path.inside(number))

    def _absent(self, rules: Sequence[AttributeRule], path: Path) -> None:
        for rule in rules:
            if not self._is_demanded(rule):
                continue
            because = f" {CONDITIONS[rule.when].because}" if rule.when else ""
            code = Code.MISSING_TYPE_1 if rule.type.startswith("1") else Code.MISSING_TYPE_2
            what = "have a value" if code is Code.MISSING_TYPE_1 else "be there, even if empty,"
            sentence = f"{rule.keyword} {tag_text(path.tag)} is absent; it must {what}{because}"
            self._findings.add(code, sentence.rstrip(",") + ".", path, rule.vr)
            return

    def _empty(self, rules: Sequence[AttributeRule], path: Path, vr: str) -> None:
        for rule in rules:
            if rule.when and not self._holding[rule.when]:
                continue
            if rule.type.startswith("1"):
                or_absent = "" if self._is_demanded(rule) else " or not be there"
                sentence = f"{rule.keyword} {tag_text(path.tag)} is empty; it must have a value{or_absent}."
                self._findings.add(Code.EMPTY_TYPE_1, sentence, path, vr)
            return

    def _is_demanded(self, rule: AttributeRule) -> bool:
        return self._holding[rule.when] if rule.when else not rule.type.endswith("C")
