"""Events of the log, and deliveries of them, as tests of subscribers need them."""

from __future__ import annotations

from typing import Any

from scp_server.pipeline.deliveries import Delivery, EventKind, LoggedEvent
from scp_server.testing.encoded_object import EncodedObject

AT_NS = 1_700_000_000_123_456_789


def stored(one: EncodedObject, location: str, event_id: int = 7, **facts: Any) -> LoggedEvent:
    """The event of an object that is stored at `location`."""
    data = {
        "study_instance_uid": one.study_instance_uid,
        "series_instance_uid": one.series_instance_uid,
        "sop_instance_uid": one.sop_instance_uid,
        "sop_class_uid": one.sop_class_uid,
        "modality": "CT",
        "transfer_syntax_uid": one.transfer_syntax_uid,
        "calling_ae_title": "SCANNER",
        "called_ae_title": "ARCHIVE",
        **facts,
    }
    key = f"{one.study_instance_uid}/{one.series_instance_uid}"
    return LoggedEvent(event_id, EventKind.OBJECT_STORED, AT_NS, key, location, "a1", data)


def of_association(kind: EventKind, event_id: int = 6, **facts: Any) -> LoggedEvent:
    """An event of an association."""
    data = {"calling_ae_title": "SCANNER", "called_ae_title": "ARCHIVE", **facts}
    return LoggedEvent(event_id, kind, AT_NS, "a/1", None, "a/1", data)


def settled(study_instance_uid: str, event_id: int = 9) -> LoggedEvent:
    """A study for which nothing comes any more."""
    data = {"study_instance_uid": study_instance_uid}
    return LoggedEvent(event_id, EventKind.STUDY_SETTLED, AT_NS, study_instance_uid, None, "", data)


def delivery(event: LoggedEvent, attempt: int = 1, *, may_be_repeated: bool = False) -> Delivery:
    """Its delivery."""
    return Delivery(event, attempt, may_be_repeated, f"archive:{event.event_id}:name")
