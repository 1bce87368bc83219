"""Objects as a load generator sends them: encoded once, with UIDs that are changed where they lie.

Each sender has UIDs of its own, and each object the next of its sender's. 200 instances make a study of one
series and one patient, as a CT scan does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypedDict

from scp_server.testing.dataset_encoder import Element
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import Patient, ct_image, structured_report
from scp_server.testing.wire import PDV, Control, c_store_rq, p_data_tf

INSTANCES_PER_STUDY = 200
SMALL_BYTES = 10_000
CONTEXT_ID = 1
_FIRST_SENDER = 1_000
_FIRST_NUMBER = 100_000_000
"""All numbers have the same count of digits, and none begins with a zero."""
_PDV_HEADER_BYTES = 6


@dataclass(frozen=True, slots=True)
class Names:
    """What tells objects apart; of one length for every sender and number."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    patient_id: str


def names(sender: int, number: int) -> Names:
    """The names of a sender's object `number`, from 0 on."""
    who = _FIRST_SENDER + sender
    study = _FIRST_NUMBER + number // INSTANCES_PER_STUDY
    return Names(
        f"1.2.840.99999.21.20240101.{who}.{study}",
        f"1.2.840.99999.22.20240101.{who}.{study}",
        f"1.2.840.99999.23.20240101.{who}.{_FIRST_NUMBER + number}",
        f"PAT-{who}-{study}",
    )


_TEMPLATE = names(0, 0)


class _Identity(TypedDict):
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str


def _identity() -> _Identity:
    return {
        "study_instance_uid": _TEMPLATE.study_instance_uid,
        "series_instance_uid": _TEMPLATE.series_instance_uid,
        "sop_instance_uid": _TEMPLATE.sop_instance_uid,
    }


@cache
def ct_slice() -> EncodedObject:
    """A CT slice of 525 kB: some 120 elements, sequences and private ones among them, and pixels."""
    return ct_image(
        rows=512,
        columns=512,
        patient=Patient(patient_id=_TEMPLATE.patient_id),
        private=True,
        sequences=True,
        extra=[Element(0x00291001 + number, "LO", f"private value {number}") for number in range(80)],
        **_identity(),
    )


@cache
def small_report() -> EncodedObject:
    """A structured report of 10 kB, most of it one text."""
    patient = Patient(patient_id=_TEMPLATE.patient_id)
    bare = structured_report(patient=patient, text="", **_identity())
    text = "No finding. " * (SMALL_BYTES // 12)
    return structured_report(patient=patient, text=text[: SMALL_BYTES - bare.size_bytes], **_identity())


OBJECTS: Mapping[str, Callable[[], EncodedObject]] = {"ct": ct_slice, "small": small_report}


class StoreMessage:
    """A C-STORE request of several PDUs as one buffer, to be sent again and again under other names."""

    def __init__(self, template: EncodedObject, maximum_length: int) -> None:
        """PDUs as long as the peer takes them. Raises ValueError where a name spans two."""
        self.encoded = bytearray(
            p_data_tf(
                PDV(
                    CONTEXT_ID,
                    Control.COMMAND | Control.LAST,
                    c_store_rq(1, template.sop_class_uid, _TEMPLATE.sop_instance_uid),
                )
            )
        )
        most = maximum_length - _PDV_HEADER_BYTES
        for start in range(0, template.size_bytes, most):
            last = Control.LAST if start + most >= template.size_bytes else Control.DATASET
            self.encoded += p_data_tf(PDV(CONTEXT_ID, last, template.dataset[start : start + most]))
        # The instance is named by the command, too.
        self._instance = self._places(_TEMPLATE.sop_instance_uid, 2)
        self._study = self._places(_TEMPLATE.study_instance_uid, 1)
        self._series = self._places(_TEMPLATE.series_instance_uid, 1)
        self._patient = self._places(_TEMPLATE.patient_id, 1)

    def name(self, sender: int, number: int) -> None:
        """Make it the object `number` of a sender."""
        wanted = names(sender, number)
        for places, text in (
            (self._instance, wanted.sop_instance_uid),
            (self._study, wanted.study_instance_uid),
            (self._series, wanted.series_instance_uid),
            (self._patient, wanted.patient_id),
        ):
            value = text.encode("ascii")
            for place in places:
                self.encoded[place : place + len(value)] = value

    def _places(self, text: str, count: int) -> list[int]:
        value = text.encode("ascii")
        places = []
        place = self.encoded.find(value)
        while place >= 0:
            places.append(place)
            place = self.encoded.find(value, place + len(value))
        if len(places) != count:
            raise ValueError(f"{text} is in the message {len(places)} times, not {count}")
        return places
