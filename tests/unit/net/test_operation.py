"""The ladder under a service, apart from any connection."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scp_server.errors import AssociationAborted, AssociationError, AssociationLost, OperationRefused
from scp_server.interfaces import AcceptedContext, AssociationInfo, Operation, Service
from scp_server.net.dataset_stream import DatasetStream
from scp_server.net.operation import PerformedOperation, refusing
from scp_server.protocol.events import Buffer
from scp_server.protocol.message import CEchoRQ, CFindRQ, CStoreRQ, Message, Request, Response, response_to
from scp_server.testing.acceptor_scene import succeed
from scp_server.testing.fake_sender import FakeSender

CONTEXT = AcceptedContext(1, "1.2.840.10008.1.1", "1.2.840.10008.1.2")
INFO = AssociationInfo("id-1", "SCU", "SCP", "192.0.2.1", 104, "1.2.840.10008.3.1.1.1")
ECHO = CEchoRQ(message_id=5)
STORE = CStoreRQ(
    message_id=6, has_dataset=True, affected_sop_class_uid="1.2", affected_sop_instance_uid="1.2\n3"
)
FIND = CFindRQ(message_id=7, has_dataset=True, affected_sop_class_uid="1.2")
Logs = list[dict[str, Any]]


class Performance:
    """An operation, and the responses that it sent."""

    def __init__(self, request: Request, service: Service) -> None:
        self.sent: list[Message] = []
        self.released_bytes = 0
        stream = DatasetStream(self._release, ended=not request.has_dataset)
        self.operation = PerformedOperation(INFO, CONTEXT, request, stream, service, self._send, FakeSender())

    def _release(self, size_bytes: int) -> None:
        self.released_bytes += size_bytes

    async def _send(self, operation: PerformedOperation, response: Message, dataset: Buffer | None) -> None:
        assert operation is self.operation
        assert dataset is None
        self.sent.append(response)

    @property
    def statuses(self) -> list[int]:
        return [message.status for message in self.sent if isinstance(message, Response)]


async def test_an_answer_is_sent_and_logged_in_one_line(logs: Logs) -> None:
    performance = Performance(ECHO, succeed)
    await performance.operation.perform()
    assert performance.statuses == [0]
    (line,) = logs
    assert (line["event"], line["level"], line["status"]) == ("operation.performed", "info", "0x0000")
    assert (line["operation"], line["message_id"], line["association_id"]) == ("CEcho", 5, "id-1")


async def test_a_refusal_is_its_status_comment_and_elements_and_a_warning(logs: Logs) -> None:
    async def refuse(_operation: Operation) -> Message:
        raise OperationRefused(0xA900, "not this one", (0x00080016,))

    performance = Performance(ECHO, refuse)
    await performance.operation.perform()
    (response,) = performance.sent
    assert isinstance(response, Response)
    assert (response.status, response.error_comment) == (0xA900, "not this one")
    assert response.offending_elements == (0x00080016,)
    assert [(line["level"], line["error"]) for line in logs] == [("warning", "not this one")]


@pytest.mark.parametrize("warning", [0xB000, 0xB006, 0xB007, 0xBFFF])
@pytest.mark.parametrize("raised", [False, True])
@pytest.mark.parametrize(("is_dicos", "told"), [(True, 0x0000), (False, None)])
async def test_a_dicos_scanner_hears_success_where_another_peer_hears_a_warning(
    logs: Logs, warning: int, raised: bool, is_dicos: bool, told: int | None
) -> None:
    async def warn(operation: Operation) -> Message:
        if raised:
            raise OperationRefused(warning, "coerced")
        return response_to(STORE, warning, comment="coerced")

    performance = Performance(STORE, warn)
    performance.operation.dataset.push(memoryview(b""), last=True)
    performance.operation.association = replace(INFO, is_dicos=is_dicos)
    await performance.operation.perform()
    assert performance.statuses == [warning if told is None else told]
    assert performance.operation.status == performance.statuses[0]
    assert logs[-1]["status"] == f"0x{performance.statuses[0]:04X}"


async def test_a_failure_stays_a_failure_to_a_dicos_scanner(logs: Logs) -> None:
    performance = Performance(STORE, refusing(0xC000, "cut"))
    performance.operation.dataset.push(memoryview(b""), last=True)
    performance.operation.association = replace(INFO, is_dicos=True)
    await performance.operation.perform()
    assert performance.statuses == [0xC000]


@pytest.mark.parametrize(
    ("status", "level"), [(0x0000, "info"), (0xFE00, "info"), (0xA900, "warning"), (0xB000, "warning")]
)
async def test_success_and_what_the_peer_cancelled_are_no_warnings(
    logs: Logs, status: int, level: str
) -> None:
    async def end(operation: Operation) -> Message:
        return response_to(FIND, status)

    performance = Performance(FIND, end)
    performance.operation.dataset.push(memoryview(b""), last=True)
    await performance.operation.perform()
    assert logs[-1]["level"] == level


async def test_what_the_service_left_of_the_data_set_is_awaited_and_released(logs: Logs) -> None:
    performance = Performance(STORE, succeed)
    performance.operation.dataset.push(memoryview(bytes(5000)), last=False)
    performance.operation.dataset.push(memoryview(bytes(100)), last=True)
    await performance.operation.perform()
    assert performance.statuses == [0]
    assert performance.released_bytes == 5100
    assert logs[-1]["dataset_bytes"] == 5100
    assert "\n" not in logs[-1]["sop_instance_uid"]


@pytest.mark.parametrize(("request_", "status"), [(ECHO, 0x0110), (STORE, 0xC000), (FIND, 0xC000)])
async def test_a_bug_is_a_failure_that_says_nothing_of_it_to_the_peer(
    logs: Logs, request_: Request, status: int
) -> None:
    async def fail(_operation: Operation) -> Message:
        raise KeyError("secret")

    performance = Performance(request_, fail)
    performance.operation.dataset.push(memoryview(b""), last=True)
    await performance.operation.perform()
    (response,) = performance.sent
    assert isinstance(response, Response)
    assert (response.status, response.error_comment) == (status, "internal error")
    assert [line["event"] for line in logs] == ["operation.failed", "operation.performed"]


async def test_an_ended_association_goes_through_and_nothing_is_sent() -> None:
    async def read(operation: Operation) -> Message:
        async for _ in operation.dataset.chunks():
            pass
        return await succeed(operation)

    performance = Performance(STORE, read)
    performance.operation.association_ended(AssociationAborted(0, 0))
    assert performance.operation.cancel_requested
    with pytest.raises(AssociationAborted):
        await performance.operation.perform()
    assert performance.sent == []


async def test_an_ended_association_goes_through_a_service_that_read_nothing() -> None:
    performance = Performance(STORE, succeed)
    performance.operation.association_ended(AssociationLost("gone"))
    with pytest.raises(AssociationError):
        await performance.operation.perform()
    assert performance.sent == []


async def test_another_associations_end_is_a_failure_of_the_service(logs: Logs) -> None:
    async def fail(_operation: Operation) -> Message:
        raise AssociationLost("the destination's")

    performance = Performance(ECHO, fail)
    await performance.operation.perform()
    assert performance.statuses == [0x0110]


async def test_a_refusing_service_refuses(logs: Logs) -> None:
    performance = Performance(ECHO, refusing(0x0211, "unknown"))
    await performance.operation.perform()
    assert performance.statuses == [0x0211]
