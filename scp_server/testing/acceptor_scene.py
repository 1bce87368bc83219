"""The acceptor of `scp_server.net` on a stage: fake sockets, a clock of the test, scripted services."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable
from dataclasses import replace

from scp_server.interfaces import AcceptedContext, Operation, Service
from scp_server.net.association_manager import AcceptorConfig, AssociationManager
from scp_server.net.connection import Connection
from scp_server.net.places import Grants
from scp_server.protocol.message import Message, Request, response_to
from scp_server.testing import wire
from scp_server.testing.association_driver import (
    CT_IMAGE_STORAGE,
    EXPLICIT_LITTLE_ENDIAN,
    POLICY,
    STORAGE_CONTEXT_ID,
    VERIFICATION_CONTEXT_ID,
)
from scp_server.testing.fake_transport import ClockedLoop, FakeTransport
from scp_server.testing.wire import PDV, Control, PDUType, Tag

CONTEXTS = (
    wire.ProposedContext(VERIFICATION_CONTEXT_ID, wire.VERIFICATION, [EXPLICIT_LITTLE_ENDIAN]),
    wire.ProposedContext(STORAGE_CONTEXT_ID, CT_IMAGE_STORAGE, [EXPLICIT_LITTLE_ENDIAN]),
)
ANY_SIZE = replace(POLICY, maximum_length=131_072)
STEPS = 12


async def settle() -> None:
    """Let everything that can go on do so, until it waits for the test."""
    for _ in range(STEPS):
        await asyncio.sleep(0)


async def succeed(operation: Operation) -> Message:
    """A service that answers Success at once."""
    if not isinstance(operation.request, Request):
        raise TypeError("only a request is performed")
    return response_to(operation.request, 0)


class ScriptedServices:
    """Performs every request with `service`."""

    def __init__(self, service: Service = succeed) -> None:
        self.service = service

    def find(self, request: Request, context: AcceptedContext) -> Service:
        """See `association_manager.Services`."""
        del request, context
        return self.service


class StagedConnection:
    """One accepted connection, and the test as its peer."""

    def __init__(self, connection: Connection, transport: FakeTransport) -> None:
        self.connection = connection
        self.transport = transport

    def send(self, data: bytes) -> None:
        """These bytes arrive at once, read or not: a test looks at `transport.reading` for that."""
        self.connection.data_received(data)

    def end(self) -> None:
        """The peer sends no more; as a real transport does, it closes unless told otherwise."""
        if not self.connection.eof_received():
            self.transport.close()

    def associate(
        self,
        *,
        calling_ae_title: str = "SCRIPTED",
        application_context: str = "",
        user_items: bytes = b"",
    ) -> None:
        """Ask for an association on `CONTEXTS`, and take the answer away."""
        self.send(
            associate_rq(
                calling_ae_title=calling_ae_title,
                application_context=application_context,
                user_items=user_items,
            )
        )
        ((pdu_type, _),) = self.received()
        if pdu_type != PDUType.ASSOCIATE_AC:
            raise AssertionError(f"PDU type {pdu_type} instead of an A-ASSOCIATE-AC")

    def received(self) -> list[tuple[int, bytes]]:
        """Type and body of every whole PDU that has come since the last time."""
        data = self.transport.written
        pdus = []
        while len(data) >= 6:
            pdu_type, length = struct.unpack_from(">BxI", data)
            if len(data) < 6 + length:
                break
            pdus.append((pdu_type, bytes(data[6 : 6 + length])))
            del data[: 6 + length]
        return pdus

    def received_types(self) -> list[int]:
        """The types alone."""
        return [pdu_type for pdu_type, _ in self.received()]

    def responses(self) -> list[tuple[int, int]]:
        """(message id, status) of the responses that have come; raises AssertionError for anything else."""
        return list(read_responses(self.received()))


def read_responses(pdus: Iterable[tuple[int, bytes]]) -> list[tuple[int, int]]:
    """(message id, status) of each response in PDUs of one command set each."""
    responses = []
    for pdu_type, body in pdus:
        if pdu_type != PDUType.P_DATA_TF:
            raise AssertionError(f"PDU type {pdu_type}: {body.hex(' ')}")
        for _, control, fragment in wire.read_pdvs(body):
            if control & Control.COMMAND:
                elements = wire.read_command_set(fragment)
                responses.append(
                    (
                        int.from_bytes(elements[Tag.MESSAGE_ID_RESPONDED_TO], "little"),
                        int.from_bytes(elements[Tag.STATUS], "little"),
                    )
                )
    return responses


class AcceptorScene:
    """An `AssociationManager` and its connections. Make it inside the running loop."""

    def __init__(self, config: AcceptorConfig | None = None, grants: Grants | None = None) -> None:
        self.loop = ClockedLoop()
        self.services = ScriptedServices()
        self.manager = AssociationManager(
            config or AcceptorConfig(ANY_SIZE, max_pending_operations=2), self.services, grants=grants
        )

    def connect(self, host: str = "192.0.2.7") -> StagedConnection:
        """A peer has connected."""
        connection = self.manager.new_connection()
        connection._loop = self.loop.as_loop
        transport = FakeTransport(connection, peer=(host, 40_104))
        connection.connection_made(transport)
        return StagedConnection(connection, transport)

    def associated(self, host: str = "192.0.2.7", *, calling_ae_title: str = "SCRIPTED") -> StagedConnection:
        """A peer has an association."""
        staged = self.connect(host)
        staged.associate(calling_ae_title=calling_ae_title)
        return staged


def associate_rq(
    *, calling_ae_title: str = "SCRIPTED", application_context: str = "", user_items: bytes = b""
) -> bytes:
    """An A-ASSOCIATE-RQ for `CONTEXTS`."""
    return wire.associate_rq(
        CONTEXTS,
        calling_ae_title=calling_ae_title,
        application_context=application_context or wire.DICOM_APPLICATION_CONTEXT,
        user_items=user_items,
    )


def echo_rq(message_id: int = 1) -> bytes:
    """A C-ECHO-RQ."""
    command = wire.c_echo_rq(message_id)
    return wire.p_data_tf(PDV(VERIFICATION_CONTEXT_ID, Control.COMMAND | Control.LAST, command))


def store_rq(message_id: int = 1) -> bytes:
    """A C-STORE-RQ, without its data set."""
    command = wire.c_store_rq(message_id, CT_IMAGE_STORAGE, "1.2.3")
    return wire.p_data_tf(PDV(STORAGE_CONTEXT_ID, Control.COMMAND | Control.LAST, command))


def dataset(data: bytes, *, last: bool = False) -> bytes:
    """A fragment of the data set."""
    control = Control.LAST if last else Control.DATASET
    return wire.p_data_tf(PDV(STORAGE_CONTEXT_ID, control, data))


def cancel_rq(message_id: int, *, dataset_type: int = wire.NO_DATASET) -> bytes:
    """A C-CANCEL-RQ for the request `message_id` (PS3.7 9.3.2.3)."""
    command = wire.command_set(
        {
            Tag.COMMAND_FIELD: 0x0FFF,
            Tag.MESSAGE_ID_RESPONDED_TO: message_id,
            Tag.DATASET_TYPE: dataset_type,
        }
    )
    return wire.p_data_tf(PDV(VERIFICATION_CONTEXT_ID, Control.COMMAND | Control.LAST, command))


def store_rsp(message_id: int, status: int = 0, *, error_comment: str = "") -> bytes:
    """The answer to a C-STORE of the acceptor's."""
    command = wire.c_store_rsp(message_id, status, error_comment=error_comment)
    return wire.p_data_tf(PDV(STORAGE_CONTEXT_ID, Control.COMMAND | Control.LAST, command))


def echo_rsp(message_id: int, *, dataset_type: int = wire.NO_DATASET) -> bytes:
    """A C-ECHO-RSP that nobody waits for."""
    command = wire.command_set(
        {
            Tag.AFFECTED_SOP_CLASS_UID: wire.VERIFICATION,
            Tag.COMMAND_FIELD: 0x8030,
            Tag.MESSAGE_ID_RESPONDED_TO: message_id,
            Tag.DATASET_TYPE: dataset_type,
            Tag.STATUS: 0,
        }
    )
    return wire.p_data_tf(PDV(STORAGE_CONTEXT_ID, Control.COMMAND | Control.LAST, command))
