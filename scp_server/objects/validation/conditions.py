"""When a conditional attribute (type 1C or 2C) is demanded: the names that `attributes.tsv` uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from scp_server.objects.validation.subject import Subject, coded

_SHARED_GROUPS: Final = 0x52009229
_PLANE_POSITION: Final = 0x00209113
_INSPECTION_CRITERIA: Final = 0x4010106E
_EARLIER_VERSIONS: Final = ("V01", "V02", "V02A")


class Condition(NamedTuple):
    """Whether it holds for an object, and how a sentence says so."""

    holds: Callable[[Subject], bool]
    because: str


def _first_item_has(subject: Subject, sequence: int, tag: int) -> bool:
    item = next(iter(subject.header.items(sequence)), None)
    return item is not None and tag in item


CONDITIONS: Final[Mapping[str, Condition]] = {
    "aborted": Condition(lambda it: it.abort_flag == "ABORT", "where AbortFlag is ABORT"),
    "additional-screening": Condition(
        lambda it: it.additional_screening == "YES", "where AdditionalScreeningPerformed is YES"
    ),
    "alarm": Condition(lambda it: it.alarm_decision == "ALARM", "where AlarmDecision is ALARM"),
    "for-presentation": Condition(
        lambda it: it.presentation_intent == "FOR PRESENTATION",
        "where PresentationIntentType is FOR PRESENTATION",
    ),
    "machine": Condition(lambda it: it.tdr_type == "MACHINE", "where TDRType is MACHINE"),
    "not-person": Condition(lambda it: it.ooi_type != "PERSON", "where OOIType is not PERSON"),
    "operator": Condition(lambda it: it.tdr_type == "OPERATOR", "where TDRType is OPERATOR"),
    "person": Condition(lambda it: it.ooi_type == "PERSON", "where OOIType is PERSON"),
    "position-not-shared": Condition(
        lambda it: not _first_item_has(it, _SHARED_GROUPS, _PLANE_POSITION),
        "where the frames do not share one",
    ),
    "random-screening": Condition(
        lambda it: it.tdr_type == "MACHINE" and coded(it.header, _INSPECTION_CRITERIA) == "RANDOM",
        "where TDRType is MACHINE and AdditionalInspectionSelectionCriteria is RANDOM",
    ),
    "v02": Condition(lambda it: it.dicos_version in ("V02", "V02A"), "in DICOS V02"),
    # An object that does not say its version is judged by the newest whose rules are known.
    "v03": Condition(lambda it: it.dicos_version not in _EARLIER_VERSIONS, "in DICOS V03"),
    "v03-not-person": Condition(
        lambda it: it.dicos_version not in _EARLIER_VERSIONS and it.ooi_type != "PERSON",
        "in DICOS V03 where OOIType is not PERSON",
    ),
}
