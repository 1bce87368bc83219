"""A peer that queries exactly as it is told, and reads the answers one at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from scp_server.testing import wire
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.scripted_peer import Response, ScriptedPeer
from scp_server.testing.wire import Answer, Control, ProposedContext, Tag

PATIENT_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
PATIENT_STUDY_ONLY_FIND = "1.2.840.10008.5.1.4.1.2.3.1"
FIND_CLASSES = (PATIENT_ROOT_FIND, STUDY_ROOT_FIND, PATIENT_STUDY_ONLY_FIND)
EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
QUERY_RETRIEVE_LEVEL = 0x00080052
PENDING = frozenset({0xFF00, 0xFF01})


@dataclass(frozen=True, slots=True)
class Found:
    """All answers to one query."""

    status: int
    comment: str
    offending_elements: tuple[int, ...]
    statuses: list[int]
    datasets: list[bytes] = field(repr=False)


class QueryingPeer(ScriptedPeer):
    """A `ScriptedPeer` that may send C-FIND, one query at a time."""

    async def associate_to_find(
        self,
        more: Iterable[ProposedContext] = (),
        *,
        offered: Mapping[str, bytes] | None = None,
        transfer_syntax: str = EXPLICIT,
        calling_ae_title: str = "SCRIPTED",
        application_context: str = wire.DICOM_APPLICATION_CONTEXT,
    ) -> Answer:
        """Propose the query models, C-ECHO and `more`; `offered` is extended negotiation by SOP class."""
        contexts = [ProposedContext(1, wire.VERIFICATION, (TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN,))]
        contexts += [
            ProposedContext(3 + 2 * n, uid, (transfer_syntax,)) for n, uid in enumerate(FIND_CLASSES)
        ]
        items = [wire.extended_negotiation(uid, value) for uid, value in (offered or {}).items()]
        return await self.associate(
            [*contexts, *more],
            user_items=b"".join(items),
            calling_ae_title=calling_ae_title,
            application_context=application_context,
        )

    async def send_find(self, identifier: bytes, sop_class_uid: str = STUDY_ROOT_FIND) -> int:
        """Send a C-FIND-RQ and its identifier, and wait for nothing; the message id."""
        message_id, context_id = self._next_message_id(), self._context_for(sop_class_uid)
        command = wire.c_find_rq(message_id, sop_class_uid)
        await self.send(wire.p_data_tf(wire.PDV(context_id, Control.COMMAND | Control.LAST, command)))
        step = self._fragment_bytes()
        for start in range(0, len(identifier) or 1, step):
            last = Control.LAST if start + step >= len(identifier) else Control.DATASET
            fragment = identifier[start : start + step]
            await self.send(wire.p_data_tf(wire.PDV(context_id, Control.DATASET | last, fragment)))
        return message_id

    async def send_cancel(self, message_id: int, sop_class_uid: str = STUDY_ROOT_FIND) -> None:
        """Send a C-CANCEL-RQ."""
        context_id = self._context_for(sop_class_uid)
        command = wire.c_cancel_rq(message_id)
        await self.send(wire.p_data_tf(wire.PDV(context_id, Control.COMMAND | Control.LAST, command)))

    async def responses(self) -> AsyncIterator[tuple[Response, bytes]]:
        """Every response up to the final one, with its data set."""
        while True:
            response, dataset = await self._read_message()
            yield response, dataset
            if response.status not in PENDING:
                return

    async def find(self, identifier: bytes, sop_class_uid: str = STUDY_ROOT_FIND) -> Found:
        """Query, and read all answers."""
        await self.send_find(identifier, sop_class_uid)
        return await self.rest()

    async def rest(self) -> Found:
        """All answers that are still to come."""
        statuses: list[int] = []
        datasets: list[bytes] = []
        async for response, dataset in self.responses():
            if response.status not in PENDING:
                return Found(response.status, response.error_comment, _tags(response), statuses, datasets)
            statuses.append(response.status)
            datasets.append(dataset)
        raise AssertionError("responses end with a final one")

    async def _read_message(self) -> tuple[Response, bytes]:
        """A response with its data set, in one PDU with its command set or in several."""
        command, dataset = bytearray(), bytearray()
        response: Response | None = None
        while True:
            for context_id, control, fragment in wire.read_pdvs(await self._expect(wire.PDUType.P_DATA_TF)):
                (command if control & Control.COMMAND else dataset).extend(fragment)
                if not control & Control.LAST:
                    continue
                if not control & Control.COMMAND:
                    assert response is not None
                    return response, bytes(dataset)
                response = Response(context_id, wire.read_command_set(bytes(command)))
                if response.elements[Tag.DATASET_TYPE] == wire.NO_DATASET.to_bytes(2, "little"):
                    return response, b""


def identifier(
    level: str, *keys: Element, transfer_syntax: TransferSyntax = EXPLICIT, codec: str = "ascii"
) -> bytes:
    """The data set of a query; no level where it is empty."""
    levels = [Element(QUERY_RETRIEVE_LEVEL, "CS", level)] if level else []
    return DatasetEncoder(transfer_syntax, codec).encode([*levels, *keys])


def values_of(datasets: Sequence[bytes], tag: int) -> list[str]:
    """The text of one element in answers in explicit VR little endian, sorted; some may not have it."""
    wanted = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    found = []
    for data in datasets:
        position = 0
        while position < len(data):
            long = data[position + 4 : position + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR")
            start = position + (12 if long else 8)
            length = int.from_bytes(data[start - (4 if long else 2) : start], "little")
            if data[position : position + 4] == wanted:
                found.append(data[start : start + length].decode("utf-8").rstrip(" \0"))
            position = start + length
    return sorted(found)


def _tags(response: Response) -> tuple[int, ...]:
    data = response.elements.get(Tag.OFFENDING_ELEMENT, b"")
    pairs = [data[start : start + 4] for start in range(0, len(data), 4)]
    return tuple(int.from_bytes(p[:2], "little") << 16 | int.from_bytes(p[2:], "little") for p in pairs)
