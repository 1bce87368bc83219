"""All elements of an object, at all levels, each by itself."""

from __future__ import annotations

from collections.abc import Iterator

from scp_server.objects.raw_header import AttributeSource, RawElement
from scp_server.objects.validation.expected import expected
from scp_server.objects.validation.finding import Code, Findings, Path, keyword_of
from scp_server.objects.validation.steps import Budget, Steps, ValidationLimits
from scp_server.objects.validation.subject import Subject
from scp_server.objects.validation.tables import enumerations
from scp_server.objects.validation.values import value_problems
from scp_server.objects.vr import tag_text

_Around = tuple[tuple[int, int], ...]
_Level = Iterator[tuple[AttributeSource, RawElement, _Around] | None]
"""The elements of one sequence's items (or of the data set), with where they lie; None between two items."""


def check_elements(subject: Subject, findings: Findings, budget: Budget, limits: ValidationLimits) -> Steps:
    """Look at every element; private ones are counted only. Without recursion, whatever the depth."""
    private = too_deep = 0
    levels: list[_Level] = [_level(iter([subject.header]), ())]
    while levels:
        try:
            found = next(levels[-1])
        except StopIteration:
            levels.pop()
            continue
        if budget.spend():
            yield
        if found is None:
            continue
        source, element, around = found
        if element.tag >> 16 & 1:
            private += 1
        elif element.tag & 0xFFFF == 0:
            # A group length: retired, and nobody's concern (PS3.5 7.2).
            continue
        elif element.vr != "SQ":
            _check(subject.is_dicos, source, element, around, findings, limits.max_values)
        elif len(levels) > limits.max_depth:
            too_deep += 1
        else:
            budget.spend_bytes(len(element.value or b""))
            yield
            levels.append(_level(source.items(element.tag), (*around, (element.tag, 0))))
    if private:
        findings.add(Code.PRIVATE_ELEMENTS, f"{private} private elements were not looked at.")
    if too_deep:
        findings.add(
            Code.NOT_EXAMINED,
            f"{too_deep} sequences more than {limits.max_depth} deep were not looked at.",
        )


def _level(items: Iterator[AttributeSource], around: _Around) -> _Level:
    """`around` ends with the sequence; its item number is filled in."""
    for number, item in enumerate(items, 1):
        yield None
        here = (*around[:-1], (around[-1][0], number)) if around else ()
        for element in item:
            yield item, element, here


def _check(
    is_dicos: bool,
    source: AttributeSource,
    element: RawElement,
    around: _Around,
    findings: Findings,
    max_values: int,
) -> None:
    tag = element.tag
    rule = expected(tag, is_dicos)
    path = Path(tag, around)
    if rule is None:
        findings.add(Code.UNKNOWN_ELEMENT, f"{tag_text(tag)} is in no dictionary.", path, element.vr)
    for code, sentence in value_problems(source, element, rule, max_values):
        findings.add(code, f"{keyword_of(tag)} {tag_text(tag)} {sentence}".strip(), path, element.vr)
    if not is_dicos or tag not in (allowed := enumerations()) or not element.value:
        return
    for value in element.value.decode("latin-1").split("\\", max_values)[:max_values]:
        code_string = value.strip(" \0")
        if code_string and code_string not in allowed[tag]:
            findings.add(
                Code.ENUMERATION,
                f"{keyword_of(tag)} {tag_text(tag)} is {code_string[:16]!a}, which is none of its values.",
                path,
                element.vr,
            )
            return
