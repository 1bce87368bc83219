"""The upper layer's state machine as data: PS3.8 9.2, with Table 9-10 whole.

The table below is laid out as the standard prints it: a row per event, a column per state, in each cell
the action; `-` is a cell the standard leaves empty. An action ends in a state of its own (Tables 9-6 to
9-9), except two: AE-6 ends in Sta3, or in Sta13 when the provider itself refuses; AR-8 ends in Sta9 on the
requestor's side and in Sta10 on the acceptor's.

An empty cell that one of our own primitives runs into is a `LocalProtocolError`. No empty cell can be
reached by bytes from the peer, because there is no transport in Sta1 and Sta4.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from types import MappingProxyType

from scp_server.errors import LocalProtocolError


class Role(Enum):
    """Which side of the association we are (PS3.8 3.5)."""

    ACCEPTOR = "acceptor"
    REQUESTOR = "requestor"


class State(IntEnum):
    """The states of PS3.8 Tables 9-1 to 9-5."""

    STA1 = 1  # Idle: no association, and no transport, or one that is to be closed now
    STA2 = 2  # Transport connection open: awaiting an A-ASSOCIATE-RQ
    STA3 = 3  # Awaiting the local A-ASSOCIATE response primitive
    STA4 = 4  # Awaiting the opening of the transport connection
    STA5 = 5  # Awaiting an A-ASSOCIATE-AC or an A-ASSOCIATE-RJ
    STA6 = 6  # Association established: ready for data transfer
    STA7 = 7  # Awaiting an A-RELEASE-RP
    STA8 = 8  # Awaiting the local A-RELEASE response primitive
    STA9 = 9  # Release collision, requestor's side: awaiting the local A-RELEASE response primitive
    STA10 = 10  # Release collision, acceptor's side: awaiting an A-RELEASE-RP
    STA11 = 11  # Release collision, requestor's side: awaiting an A-RELEASE-RP
    STA12 = 12  # Release collision, acceptor's side: awaiting the local A-RELEASE response primitive
    STA13 = 13  # Awaiting the closing of the transport connection: the association no longer exists


class StateEvent(IntEnum):
    """What can happen to the state machine (the rows of PS3.8 Table 9-10)."""

    EVT1 = 1  # A-ASSOCIATE request primitive
    EVT2 = 2  # Transport connection confirmed
    EVT3 = 3  # A-ASSOCIATE-AC received
    EVT4 = 4  # A-ASSOCIATE-RJ received
    EVT5 = 5  # Transport connection indicated
    EVT6 = 6  # A-ASSOCIATE-RQ received
    EVT7 = 7  # A-ASSOCIATE response primitive: accept
    EVT8 = 8  # A-ASSOCIATE response primitive: reject
    EVT9 = 9  # P-DATA request primitive
    EVT10 = 10  # P-DATA-TF received
    EVT11 = 11  # A-RELEASE request primitive
    EVT12 = 12  # A-RELEASE-RQ received
    EVT13 = 13  # A-RELEASE-RP received
    EVT14 = 14  # A-RELEASE response primitive
    EVT15 = 15  # A-ABORT request primitive
    EVT16 = 16  # A-ABORT received
    EVT17 = 17  # Transport connection closed
    EVT18 = 18  # ARTIM timer expired
    EVT19 = 19  # Unrecognized or invalid PDU received


class Action(Enum):
    """What is done on a transition (PS3.8 Tables 9-6 to 9-9)."""

    AE_1 = "AE-1"  # Ask for a transport connection
    AE_2 = "AE-2"  # Send A-ASSOCIATE-RQ
    AE_3 = "AE-3"  # Confirm the association: accepted
    AE_4 = "AE-4"  # Confirm the association: rejected; close the transport
    AE_5 = "AE-5"  # Take the transport connection; start ARTIM
    AE_6 = "AE-6"  # Stop ARTIM; indicate the request, or reject it and start ARTIM
    AE_7 = "AE-7"  # Send A-ASSOCIATE-AC
    AE_8 = "AE-8"  # Send A-ASSOCIATE-RJ; start ARTIM
    DT_1 = "DT-1"  # Send P-DATA-TF
    DT_2 = "DT-2"  # Indicate P-DATA
    AR_1 = "AR-1"  # Send A-RELEASE-RQ
    AR_2 = "AR-2"  # Indicate the release
    AR_3 = "AR-3"  # Confirm the release; close the transport
    AR_4 = "AR-4"  # Send A-RELEASE-RP; start ARTIM
    AR_5 = "AR-5"  # Stop ARTIM
    AR_6 = "AR-6"  # Indicate P-DATA while our release is unanswered
    AR_7 = "AR-7"  # Send P-DATA-TF before answering the peer's release
    AR_8 = "AR-8"  # Indicate the release: collision
    AR_9 = "AR-9"  # Send A-RELEASE-RP, first of the two
    AR_10 = "AR-10"  # Confirm the release; ours is still to be answered
    AA_1 = "AA-1"  # Send A-ABORT (service user); start or restart ARTIM
    AA_2 = "AA-2"  # Stop ARTIM; close the transport
    AA_3 = "AA-3"  # Indicate the abort; close the transport
    AA_4 = "AA-4"  # Indicate that the provider aborted
    AA_5 = "AA-5"  # Stop ARTIM
    AA_6 = "AA-6"  # Ignore the PDU
    AA_7 = "AA-7"  # Send A-ABORT
    AA_8 = "AA-8"  # Send A-ABORT (service provider); indicate it; start ARTIM


_EMPTY = "-"
_TABLE_9_10 = """
        Sta1  Sta2  Sta3  Sta4  Sta5  Sta6  Sta7  Sta8  Sta9  Sta10 Sta11 Sta12 Sta13
Evt1    AE-1  -     -     -     -     -     -     -     -     -     -     -     -
Evt2    -     -     -     AE-2  -     -     -     -     -     -     -     -     -
Evt3    -     AA-1  AA-8  -     AE-3  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt4    -     AA-1  AA-8  -     AE-4  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt5    AE-5  -     -     -     -     -     -     -     -     -     -     -     -
Evt6    -     AE-6  AA-8  -     AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-7
Evt7    -     -     AE-7  -     -     -     -     -     -     -     -     -     -
Evt8    -     -     AE-8  -     -     -     -     -     -     -     -     -     -
Evt9    -     -     -     -     -     DT-1  -     AR-7  -     -     -     -     -
Evt10   -     AA-1  AA-8  -     AA-8  DT-2  AR-6  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt11   -     -     -     -     -     AR-1  -     -     -     -     -     -     -
Evt12   -     AA-1  AA-8  -     AA-8  AR-2  AR-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt13   -     AA-1  AA-8  -     AA-8  AA-8  AR-3  AA-8  AA-8  AR-10 AR-3  AA-8  AA-6
Evt14   -     -     -     -     -     -     -     AR-4  AR-9  -     -     AR-4  -
Evt15   -     -     AA-1  AA-2  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1  -
Evt16   -     AA-2  AA-3  -     AA-3  AA-3  AA-3  AA-3  AA-3  AA-3  AA-3  AA-3  AA-2
Evt17   -     AA-5  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AR-5
Evt18   -     AA-2  -     -     -     -     -     -     -     -     -     -     AA-2
Evt19   -     AA-1  AA-8  -     AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-7
"""


def _read_table(text: str) -> Mapping[tuple[StateEvent, State], Action]:
    header, *rows = (line.split() for line in text.strip().splitlines())
    states = [State[name.upper()] for name in header]
    return MappingProxyType(
        {
            (StateEvent[event.upper()], state): Action(cell)
            for event, *cells in rows
            for state, cell in zip(states, cells, strict=True)
            if cell != _EMPTY
        }
    )


TRANSITIONS: Mapping[tuple[StateEvent, State], Action] = _read_table(_TABLE_9_10)
"""PS3.8 Table 9-10: the action of every cell that is not empty."""

NEXT_STATES: Mapping[Action, tuple[State, ...]] = MappingProxyType(
    {
        Action.AE_1: (State.STA4,),
        Action.AE_2: (State.STA5,),
        Action.AE_3: (State.STA6,),
        Action.AE_4: (State.STA1,),
        Action.AE_5: (State.STA2,),
        Action.AE_6: (State.STA3, State.STA13),
        Action.AE_7: (State.STA6,),
        Action.AE_8: (State.STA13,),
        Action.DT_1: (State.STA6,),
        Action.DT_2: (State.STA6,),
        Action.AR_1: (State.STA7,),
        Action.AR_2: (State.STA8,),
        Action.AR_3: (State.STA1,),
        Action.AR_4: (State.STA13,),
        Action.AR_5: (State.STA1,),
        Action.AR_6: (State.STA7,),
        Action.AR_7: (State.STA8,),
        Action.AR_8: (State.STA9, State.STA10),
        Action.AR_9: (State.STA11,),
        Action.AR_10: (State.STA12,),
        Action.AA_1: (State.STA13,),
        Action.AA_2: (State.STA1,),
        Action.AA_3: (State.STA1,),
        Action.AA_4: (State.STA1,),
        Action.AA_5: (State.STA1,),
        Action.AA_6: (State.STA13,),
        Action.AA_7: (State.STA13,),
        Action.AA_8: (State.STA13,),
    }
)
"""Where each action ends; two states where that depends on the answer (AE-6) or on the role (AR-8)."""


def _cells(role: Role) -> Mapping[tuple[StateEvent, State], tuple[Action, State]]:
    collision = 1 if role is Role.ACCEPTOR else 0
    return MappingProxyType(
        {
            cell: (action, NEXT_STATES[action][collision if action is Action.AR_8 else 0])
            for cell, action in TRANSITIONS.items()
        }
    )


_CELLS = {role: _cells(role) for role in Role}


class StateMachine:
    """One association's place in Table 9-10."""

    __slots__ = ("_cells", "state")

    def __init__(self, role: Role) -> None:
        self._cells = _CELLS[role]
        self.state = State.STA1

    def check(self, event: StateEvent) -> None:
        """Raises LocalProtocolError where the standard leaves the cell of `event` empty."""
        if (event, self.state) not in self._cells:
            raise self._forbidden(event)

    def advance(self, event: StateEvent) -> Action:
        """Go where `event` leads and return the action to be done. Raises LocalProtocolError as `check`.

        AE-6 is taken to end in Sta3: what the provider itself would refuse is rejected from there (AE-8).
        """
        try:
            action, self.state = self._cells[event, self.state]
        except KeyError:
            raise self._forbidden(event) from None
        return action

    def _forbidden(self, event: StateEvent) -> LocalProtocolError:
        return LocalProtocolError(f"{event.name.title()} cannot happen in {self.state.name.title()}")
