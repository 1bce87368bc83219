"""The attributes of DICOS V03, where its VRs and keywords differ from DICOM's or DICOM has none.

`attributes.tsv` beside this module has one line each: tag (eight hex digits), VR (alternatives joined by `/`,
the first is the usual one), keyword and DICOS's name. It is read when first asked for.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import NamedTuple


class DICOSAttribute(NamedTuple):
    """One line of the dictionary. `vr` is the first of the VRs it may have, which are `vrs`."""

    tag: int
    vr: str
    keyword: str
    name: str
    vrs: tuple[str, ...]


@cache
def attributes() -> dict[int, DICOSAttribute]:
    """All attributes by tag."""
    text = files(__package__).joinpath("attributes.tsv").read_text("ascii")
    found = {}
    for line in text.splitlines()[1:]:
        tag, vr, keyword, name = line.split("\t")
        vrs = tuple(vr.split("/")) if vr else ()
        found[int(tag, 16)] = DICOSAttribute(int(tag, 16), vr.partition("/")[0], keyword, name, vrs)
    return found


@cache
def _tags_by_keyword() -> dict[str, int]:
    return {attribute.keyword: tag for tag, attribute in attributes().items()}


def vr_of(tag: int) -> str | None:
    """The attribute's VR in DICOS; None when DICOS V03 does not have it or leaves the VR open."""
    attribute = attributes().get(tag)
    return (attribute.vr or None) if attribute else None


def vrs_of(tag: int) -> tuple[str, ...]:
    """All VRs the attribute may have in DICOS; none when DICOS V03 does not have it."""
    attribute = attributes().get(tag)
    return attribute.vrs if attribute else ()


def keyword_of(tag: int) -> str | None:
    """The attribute's keyword: DICOM's where there is one, otherwise made from DICOS's name."""
    attribute = attributes().get(tag)
    return attribute.keyword if attribute else None


def tag_of(keyword: str) -> int | None:
    """The tag of a keyword as `keyword_of` gives it."""
    return _tags_by_keyword().get(keyword)
