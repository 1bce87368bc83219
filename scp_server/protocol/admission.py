"""Which PDUs are let in: judged by their six bytes of header, and by what negotiation must not leave us with.

Nothing of a body has been taken when `judge_header` speaks, so a length that lies costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from scp_server.errors import ProtocolError
from scp_server.protocol.framing import Body
from scp_server.protocol.limits import Limits
from scp_server.protocol.pdata import PDV_HEADER
from scp_server.protocol.pdu import PDU, AbortReason, AssociateAC, AssociateRQ, PDUType
from scp_server.protocol.sending import SMALLEST_PDU_LENGTH
from scp_server.protocol.state_machine import State, StateEvent

SHORT_PDU_LENGTH = 4
"""Length of every A-ASSOCIATE-RJ, A-RELEASE-RQ, A-RELEASE-RP and A-ABORT (PS3.8 9.3.4, 9.3.6-9.3.8)."""

RECEIVED: Mapping[int, StateEvent] = MappingProxyType(
    {
        PDUType.A_ASSOCIATE_RQ: StateEvent.EVT6,
        PDUType.A_ASSOCIATE_AC: StateEvent.EVT3,
        PDUType.A_ASSOCIATE_RJ: StateEvent.EVT4,
        PDUType.P_DATA_TF: StateEvent.EVT10,
        PDUType.A_RELEASE_RQ: StateEvent.EVT12,
        PDUType.A_RELEASE_RP: StateEvent.EVT13,
        PDUType.A_ABORT: StateEvent.EVT16,
    }
)
"""The event that a PDU of each type is (PS3.8 Table 9-10)."""

PDU_NAMES: Mapping[StateEvent, str] = MappingProxyType(
    {event: PDUType(pdu_type).name.replace("_", "-") for pdu_type, event in RECEIVED.items()}
)

_READ_IN: Mapping[int, State] = MappingProxyType(
    {PDUType.A_ASSOCIATE_RQ: State.STA2, PDUType.A_ASSOCIATE_AC: State.STA5}
)
"""The only state in which the content of an A-ASSOCIATE PDU matters; elsewhere its body is dropped."""


def judge_header(pdu_type: int, length: int, state: State, announced_length: int, limits: Limits) -> Body:
    """What becomes of a PDU's body. `announced_length` is our maximum length, 0 for no limit (PS3.8 D.1).

    Raises ProtocolError for a type that PS3.8 does not know and for a length that cannot be.
    """
    if pdu_type == PDUType.P_DATA_TF:
        if length < PDV_HEADER.size or length > announced_length > 0:
            raise _bad_length(pdu_type, length)
        return Body.STREAM
    if pdu_type not in RECEIVED:
        text = f"PDU type {pdu_type:02X}H is not known"
        raise ProtocolError(text, reason=AbortReason.UNRECOGNIZED_PDU)
    read_in = _READ_IN.get(pdu_type)
    if read_in is not None:
        if length > limits.max_associate_pdu_bytes:
            raise _bad_length(pdu_type, length)
        return Body.HOLD if state is read_in else Body.SKIP
    if length != SHORT_PDU_LENGTH:
        raise _bad_length(pdu_type, length)
    return Body.HOLD


def check_maximum_length(pdu: PDU) -> None:
    """Refuse a maximum length that no P-DATA-TF with an even fragment fits into. Raises ProtocolError."""
    if isinstance(pdu, AssociateRQ | AssociateAC):
        length = pdu.user_information.maximum_length
        if length and length < SMALLEST_PDU_LENGTH:
            text = f"a maximum length of {length} leaves no room for a fragment"
            raise ProtocolError(text, reason=AbortReason.INVALID_PDU_PARAMETER_VALUE)


def _bad_length(pdu_type: int, length: int) -> ProtocolError:
    name = PDU_NAMES[RECEIVED[pdu_type]]
    return ProtocolError(f"{name} of length {length}", reason=AbortReason.INVALID_PDU_PARAMETER_VALUE)
