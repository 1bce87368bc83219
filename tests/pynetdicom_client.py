"""pynetdicom as a requestor in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.dimse_primitives import DimseServiceType

    Message = tuple[int, DimseServiceType] | tuple[None, None]


def leave_responses_to_who_waits(association: Association) -> Association:
    """Have only who waits for a response take messages, not the association's own thread as well; returns the
    association. A peer that answers makes no requests but those of C-GET, which are taken by who waits, too.
    """
    take = association.dimse.get_msg

    def take_if_waiting(block: bool = False) -> Message:
        return take(block) if block else (None, None)

    association.dimse.get_msg = take_if_waiting  # type: ignore[method-assign]
    return association
