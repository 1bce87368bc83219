"""What a key of a query may look like: keyword, tag, or private element with its creator.

| form | means |
|---|---|
| `PatientName` | a keyword of DICOM, or else of DICOS |
| `0010,0020`, `(0010,0020)`, `00100020` | a tag |
| `0029,ACME CT,10` | a private element: group, private creator, last two digits of the element |
| `...:LO` | any of them, with the VR that it is to have |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from scp_server.errors import QueryError
from scp_server.objects.dicos import dictionary as dicos
from scp_server.objects.dictionary import vr_of
from scp_server.objects.vr import LONG_FORM_VRS, SHORT_FORM_VRS, tag_text

_WITH_VR = re.compile(r"(.*):([A-Z]{2})", re.DOTALL).fullmatch
_TAG = re.compile(r"([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})").fullmatch
_PRIVATE = re.compile(r"([0-9A-Fa-f]{3}[13579BDFbdf]),(.+),([0-9A-Fa-f]{2})").fullmatch
_KEYWORD = re.compile(r"[A-Z][A-Za-z0-9]*").fullmatch
_VRS: Final = frozenset(vr.decode() for vr in SHORT_FORM_VRS | LONG_FORM_VRS)
_NEAREST = 3


@dataclass(frozen=True, slots=True)
class KeyName:
    """Which element a key means, and what it is called.

    `tag` of a private element has 0 in the place of the block, which is found by `creator` (PS3.5 7.8.1).
    `vr` is UN where neither the key nor a dictionary says it.
    """

    tag: int
    vr: str
    name: str
    creator: str | None = None


def parse_key(text: str) -> KeyName:
    """Read a key. Raises QueryError, naming the nearest keywords where a keyword is wrong."""
    with_vr = _WITH_VR(text.strip())
    name, vr = (with_vr[1], with_vr[2]) if with_vr else (text.strip(), "")
    if vr and vr not in _VRS:
        raise QueryError(f"{text!r}: {vr!r} is no VR")
    inner = name[1:-1] if name.startswith("(") and name.endswith(")") else name
    private = _PRIVATE(inner)
    if private is not None:
        tag = int(private[1], 16) << 16 | int(private[3], 16)
        return KeyName(tag, vr or "UN", name, private[2].strip())
    found = _TAG(inner)
    tag = int(found[1] + found[2], 16) if found else _tag_of(name)
    group = tag >> 16
    if group in (0x0000, 0x0002, 0xFFFE) or tag & 0xFFFF == 0:
        raise QueryError(f"{text!r}: {tag_text(tag)} is no attribute of a data set")
    return KeyName(tag, vr or _vr_of(tag), name)


def keyword_of(tag: int) -> str:
    """The keyword of an element, or its tag as text where no dictionary has it."""
    from pydicom.datadict import keyword_for_tag

    return str(keyword_for_tag(tag)) or dicos.keyword_of(tag) or tag_text(tag)


def _tag_of(keyword: str) -> int:
    if _KEYWORD(keyword) is not None:
        tag = _dicom_tags().get(keyword)
        if tag is None:
            tag = dicos.tag_of(keyword)
        if tag is not None:
            return tag
    raise QueryError(f"{keyword!r} is neither a keyword nor a tag{_nearest(keyword)}")


def _nearest(keyword: str) -> str:
    from difflib import get_close_matches

    spellings = {known.lower(): known for known in (*_dicom_tags(), *_dicos_keywords())}
    squeezed = re.sub(r"[^a-z0-9]", "", keyword.lower())
    near = [spellings[one] for one in get_close_matches(squeezed, spellings, n=_NEAREST, cutoff=0.6)]
    return f"; did you mean {', '.join(near)}?" if near else ""


@cache
def _dicom_tags() -> dict[str, int]:
    from pydicom.datadict import keyword_dict

    return {keyword: int(tag) for keyword, tag in keyword_dict.items() if keyword}


@cache
def _dicos_keywords() -> tuple[str, ...]:
    return tuple(attribute.keyword for attribute in dicos.attributes().values())


def _vr_of(tag: int) -> str:
    """DICOM's VR where it has one, for both are asked alike; DICOS's otherwise."""
    vr = vr_of(tag, is_dicos=False)
    return vr if vr != "UN" else vr_of(tag, is_dicos=True)
