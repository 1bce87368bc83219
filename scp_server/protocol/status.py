"""The DIMSE statuses, and what class each is of (PS3.7 Annex C; PS3.4 for those of its services)."""

from __future__ import annotations

from enum import Enum, IntEnum


class StatusClass(Enum):
    """What a status says about the operation (PS3.7 C.1 to C.5)."""

    SUCCESS = "success"
    PENDING = "pending"
    CANCEL = "cancel"
    WARNING = "warning"
    FAILURE = "failure"


class Status(IntEnum):
    """Status (0000,0900). Where services give one code different meanings, each meaning has its name."""

    # PS3.7 C.1 to C.3: success, pending, cancel.
    SUCCESS = 0x0000
    PENDING = 0xFF00
    PENDING_OPTIONAL_KEYS_NOT_SUPPORTED = 0xFF01
    CANCEL = 0xFE00

    # PS3.7 C.4: warnings of every service.
    WARNING = 0x0001
    ATTRIBUTE_LIST_ERROR = 0x0107
    ATTRIBUTE_VALUE_OUT_OF_RANGE = 0x0116

    # PS3.7 C.5: failures of every service.
    NO_SUCH_ATTRIBUTE = 0x0105
    INVALID_ATTRIBUTE_VALUE = 0x0106
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    NO_SUCH_SOP_INSTANCE = 0x0112
    NO_SUCH_EVENT_TYPE = 0x0113
    NO_SUCH_ARGUMENT = 0x0114
    INVALID_ARGUMENT_VALUE = 0x0115
    INVALID_SOP_INSTANCE = 0x0117
    """The SOP Instance UID breaks the rules for UIDs."""
    NO_SUCH_SOP_CLASS = 0x0118
    CLASS_INSTANCE_CONFLICT = 0x0119
    MISSING_ATTRIBUTE = 0x0120
    MISSING_ATTRIBUTE_VALUE = 0x0121
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORIZED = 0x0124
    DUPLICATE_INVOCATION = 0x0210
    """The message id belongs to an operation that has not ended."""
    UNRECOGNIZED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213

    # PS3.4 B.2.3: C-STORE. A7xx, A9xx and Cxxx are families; these are their first members.
    COERCION_OF_DATA_ELEMENTS = 0xB000
    ELEMENTS_DISCARDED = 0xB006
    DATASET_DOES_NOT_MATCH_SOP_CLASS_WARNING = 0xB007
    OUT_OF_RESOURCES = 0xA700
    DATASET_DOES_NOT_MATCH_SOP_CLASS = 0xA900
    CANNOT_UNDERSTAND = 0xC000
    DUPLICATE_SOP_INSTANCE_KEPT = 0xC111
    """Ours, of family Cxxx: other bytes are kept under this SOP Instance UID, and these are not."""
    DUPLICATE_SOP_INSTANCE_REJECTED = 0xC112
    """Ours, of family Cxxx: the same where the policy is to reject, so that no one looks at them later."""

    # PS3.4 C.4: C-FIND, C-MOVE and C-GET. A700 and C000 mean what they mean above.
    UNABLE_TO_CALCULATE_NUMBER_OF_MATCHES = 0xA701
    UNABLE_TO_PERFORM_SUBOPERATIONS = 0xA702
    MOVE_DESTINATION_UNKNOWN = 0xA801
    IDENTIFIER_DOES_NOT_MATCH_SOP_CLASS = 0xA900
    SUBOPERATIONS_COMPLETE_WITH_FAILURES = 0xB000


_SINGLE_CLASSES: dict[int, StatusClass] = {
    Status.SUCCESS: StatusClass.SUCCESS,
    Status.PENDING: StatusClass.PENDING,
    Status.PENDING_OPTIONAL_KEYS_NOT_SUPPORTED: StatusClass.PENDING,
    Status.CANCEL: StatusClass.CANCEL,
    Status.WARNING: StatusClass.WARNING,
    Status.ATTRIBUTE_LIST_ERROR: StatusClass.WARNING,
    Status.ATTRIBUTE_VALUE_OUT_OF_RANGE: StatusClass.WARNING,
}
_WARNING_FAMILY = 0xB


def status_class(code: int) -> StatusClass:
    """Tell the class of any status (PS3.7 Annex C).

    A code outside the standard's classes is a failure: whatever it meant, it did not say success.
    """
    known = _SINGLE_CLASSES.get(code)
    if known is not None:
        return known
    return StatusClass.WARNING if code >> 12 == _WARNING_FAMILY else StatusClass.FAILURE
