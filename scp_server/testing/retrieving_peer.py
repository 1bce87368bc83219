"""A peer that retrieves exactly as it is told: C-MOVE and C-GET, each message by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scp_server.testing import wire
from scp_server.testing.dataset_encoder import Element
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.querying_peer import EXPLICIT, QueryingPeer, identifier, values_of
from scp_server.testing.scripted_peer import Response
from scp_server.testing.wire import PDV, Control, ProposedContext, Tag

STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
PENDING = 0xFF00
_C_GET_RQ, _C_MOVE_RQ = 0x0010, 0x0021
_MOVE_DESTINATION = 0x0600
_COUNTS = (0x1020, 0x1021, 0x1022, 0x1023)
_STUDY_INSTANCE_UID, _FAILED_SOP_INSTANCE_UID_LIST = 0x0020000D, 0x00080058


@dataclass(frozen=True, slots=True)
class Final:
    """How a retrieve ended. `counts` are remaining, completed, failed and warning, None where not there."""

    status: int
    counts: tuple[int | None, ...]
    failed_sop_instance_uids: tuple[str, ...] = ()


class RetrievingPeer(QueryingPeer):
    """A `ScriptedPeer` that may send C-MOVE and C-GET of the Study Root model."""

    async def associate_to_retrieve(self, receives: Iterable[EncodedObject] = ()) -> None:
        """Propose C-MOVE, C-GET and C-ECHO, and to take objects of these kinds, as their SCP."""
        contexts = [
            ProposedContext(1, wire.VERIFICATION, (EXPLICIT,)),
            ProposedContext(3, STUDY_ROOT_GET, (EXPLICIT,)),
            ProposedContext(5, STUDY_ROOT_MOVE, (EXPLICIT,)),
        ]
        kinds = dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in receives)
        contexts += [
            ProposedContext(7 + 2 * number, kind, (syntax,)) for number, (kind, syntax) in enumerate(kinds)
        ]
        roles = b"".join(
            wire.role_selection(kind, scu=False, scp=True)
            for kind in dict.fromkeys(kind for kind, _ in kinds)
        )
        answer = await self.associate(contexts, user_items=roles)
        assert len(answer.accepted()) == len(contexts)

    async def send_get(self, study_instance_uid: str, *, and_cancel: bool = False) -> int:
        """Send a C-GET-RQ with its identifier, its C-CANCEL-RQ in the same write if so; the message id."""
        elements: dict[int, int | str | bytes] = {
            Tag.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_GET,
            Tag.COMMAND_FIELD: _C_GET_RQ,
        }
        return await self._send_request(STUDY_ROOT_GET, elements, study_instance_uid, and_cancel)

    async def send_move(self, study_instance_uid: str, destination: str, *, and_cancel: bool = False) -> int:
        """Send a C-MOVE-RQ with its identifier, its C-CANCEL-RQ in the same write if so; the message id."""
        elements: dict[int, int | str | bytes] = {
            Tag.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_MOVE,
            Tag.COMMAND_FIELD: _C_MOVE_RQ,
            _MOVE_DESTINATION: destination + " " * (len(destination) % 2),
        }
        return await self._send_request(STUDY_ROOT_MOVE, elements, study_instance_uid, and_cancel)

    async def _send_request(
        self, sop_class_uid: str, elements: dict[int, int | str | bytes], study: str, and_cancel: bool
    ) -> int:
        message_id, context_id = self._next_message_id(), self._context_for(sop_class_uid)
        with_dataset = {Tag.MESSAGE_ID: message_id, Tag.PRIORITY: 0, Tag.DATASET_TYPE: 1}
        commands = [wire.command_set(elements | with_dataset)]
        keys = identifier("STUDY", Element(_STUDY_INSTANCE_UID, "UI", study))
        if and_cancel:
            commands.append(wire.c_cancel_rq(message_id))
        command, *cancel = (PDV(context_id, Control.COMMAND | Control.LAST, each) for each in commands)
        pdvs = [command, PDV(context_id, Control.LAST, keys), *cancel]
        await self.send(b"".join(wire.p_data_tf(each) for each in pdvs))
        return message_id

    async def cancel_move(self, message_id: int) -> None:
        """C-CANCEL-RQ on the context of C-MOVE."""
        await self.send_cancel(message_id, STUDY_ROOT_MOVE)

    async def cancel_get(self, message_id: int) -> None:
        """C-CANCEL-RQ on the context of C-GET."""
        await self.send_cancel(message_id, STUDY_ROOT_GET)

    async def read_message(self) -> tuple[Response, bytes]:
        """The next message but for pending responses: a C-STORE-RQ or a final response, with its data set."""
        while True:
            message, dataset = await self._read_message()
            if Tag.STATUS not in message.elements or message.status != PENDING:
                return message, dataset

    async def read_command(self) -> Response:
        """The next command set but for those of pending responses; its data set is left."""
        while True:
            command = await self.read_response()
            if Tag.STATUS not in command.elements or command.status != PENDING:
                return command

    async def read_dataset(self) -> bytes:
        """The rest of a message, to its last fragment."""
        data = []
        while True:
            for _, control, fragment in wire.read_pdvs((await self.read_pdu()).body):
                data.append(fragment)
                if control & Control.LAST:
                    return b"".join(data)

    async def answer_store(self, store: Response, status: int = 0) -> None:
        """Answer a C-STORE-RQ."""
        message_id = int.from_bytes(store.elements[Tag.MESSAGE_ID], "little")
        response = wire.c_store_rsp(message_id, status)
        await self.send(wire.p_data_tf(PDV(store.context_id, Control.COMMAND | Control.LAST, response)))

    async def pending(self) -> tuple[int | None, ...]:
        """The counts of the next message, a pending response."""
        message, _ = await self._read_message()
        assert message.status == PENDING
        return counts(message)

    async def final(self) -> Final:
        """The final response, whatever pending ones come before it."""
        message, dataset = await self.read_message()
        listed = values_of([dataset], _FAILED_SOP_INSTANCE_UID_LIST)
        return Final(message.status, counts(message), tuple(listed[0].split("\\")) if listed else ())


def counts(response: Response) -> tuple[int | None, ...]:
    """Remaining, completed, failed and warning (PS3.7 9.1.4.1); None where there is none."""
    values = [response.elements.get(element) for element in _COUNTS]
    return tuple(None if value is None else int.from_bytes(value, "little") for value in values)
