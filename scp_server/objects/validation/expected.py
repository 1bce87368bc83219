"""What the dictionaries expect of an attribute: its VRs and its value multiplicity (PS3.6)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from scp_server.objects.dicos import dictionary as dicos

_DICOS_GROUPS: Final = frozenset((0x4010, 0x4300, 0x6100))
"""Groups in which DICOS has attributes under tags that mean something else to DICOM, or nothing."""
_DICOS_MULTIPLICITIES: Final = {
    0x40101004: "3",
    0x40101005: "3",
    0x40101010: "1",
    0x40101024: "1",
    0x40101027: "1",
    0x40101031: "1",
    0x40101042: "1",
    0x4010103A: "1",
}
_MULTIPLICITY: Final = re.compile(r"(\d+)(?:-(\d+|\d*n))?").fullmatch


class Expected(NamedTuple):
    """VRs an attribute may have (none: any), and its multiplicity as the dictionary writes it (or empty)."""

    vrs: tuple[str, ...]
    multiplicity: str


@lru_cache(maxsize=4_096)
def expected(tag: int, is_dicos: bool) -> Expected | None:
    """What is known of an attribute; None where it is in no dictionary."""
    vrs, multiplicity = _dicom(tag)
    if not is_dicos:
        return Expected(vrs, multiplicity) if vrs else None
    ours = dicos.attributes().get(tag)
    if ours is None:
        return Expected(vrs, multiplicity) if vrs else None
    if tag >> 16 in _DICOS_GROUPS or not set(vrs) >= set(ours.vrs):
        multiplicity = _DICOS_MULTIPLICITIES.get(tag, "")
    return Expected(tuple(dict.fromkeys((*ours.vrs, *vrs))), multiplicity)


def _dicom(tag: int) -> tuple[tuple[str, ...], str]:
    from pydicom.datadict import dictionary_VM, dictionary_VR

    try:
        return tuple(str(dictionary_VR(tag)).split(" or ")), dictionary_VM(tag)
    except KeyError:
        return (), ""


@lru_cache(maxsize=4_096)
def is_multiplicity(count: int, multiplicity: str) -> bool:
    """Whether so many values are allowed by `1`, `1-3`, `1-n`, `2-2n`; unknown forms allow all."""
    for alternative in multiplicity.split(" or "):
        found = _MULTIPLICITY(alternative)
        if found is None:
            return True
        least, most = int(found[1]), found[2]
        if most is None:
            allowed = count == least
        elif most.endswith("n"):
            allowed = count >= least and count % int(most[:-1] or 1) == 0
        else:
            allowed = least <= count <= int(most)
        if allowed:
            return True
    return False
