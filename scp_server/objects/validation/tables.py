"""The rules as data: which attributes an object must have, and which values an attribute may have.

`attributes.tsv` has a line for each mandatory attribute: the objects it is for (`all` DICOS objects,
`image` for for CT and DX, a kind, or `medical`), the tags from the outermost sequence inwards, keyword, VR,
type (PS3.5 7.4) and when it is demanded (a name of `conditions.py`; always where empty). Type 1C without a
condition is never demanded, but not to be empty. Of several lines for one attribute the first whose
condition holds is in force.
`enumerations.tsv` has the defined values of coded attributes, at whatever depth they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from scp_server.objects.validation.subject import Kind

_IMAGES: Final = (Kind.CT, Kind.DX)
_EVERY_DICOS: Final = tuple(kind for kind in Kind if kind not in (Kind.MEDICAL, Kind.DIRECTORY))


class AttributeRule(NamedTuple):
    """One line of `attributes.tsv`. `when` is a condition's name, or empty."""

    kinds: tuple[Kind, ...]
    tags: tuple[int, ...]
    keyword: str
    vr: str
    type: str
    when: str


@dataclass(slots=True)
class RuleNode:
    """The rules of one attribute, and of those in the items of it, where it is a sequence."""

    tag: int
    rules: list[AttributeRule] = field(default_factory=list)
    inner: dict[int, RuleNode] = field(default_factory=dict)


@cache
def attribute_rules() -> tuple[AttributeRule, ...]:
    """All lines of the table."""
    return tuple(
        AttributeRule(
            _kinds(objects), tuple(int(tag, 16) for tag in path.split("/")), keyword, vr, type_, when
        )
        for objects, path, keyword, vr, type_, when in _lines("attributes.tsv")
    )


@cache
def rules_of(kind: Kind) -> RuleNode:
    """The rules for a kind of objects, as a tree whose root is the data set."""
    root = RuleNode(0)
    for rule in attribute_rules():
        if kind not in rule.kinds:
            continue
        node = root
        for tag in rule.tags:
            node = node.inner.setdefault(tag, RuleNode(tag))
        node.rules.append(rule)
    return root


@cache
def enumerations() -> dict[int, frozenset[str]]:
    """The defined values of DICOS's coded attributes, by tag."""
    return {int(tag, 16): frozenset(values.split(",")) for tag, _, values in _lines("enumerations.tsv")}


def _kinds(objects: str) -> tuple[Kind, ...]:
    if objects == "all":
        return _EVERY_DICOS
    return _IMAGES if objects == "image" else (Kind(objects),)


def _lines(name: str) -> Iterator[list[str]]:
    text = files(__package__).joinpath(name).read_text("ascii")
    for line in text.splitlines()[1:]:
        yield line.split("\t")
