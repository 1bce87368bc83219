"""Who performs a request: the mark, the context's SOP class, and what nobody performs."""

from __future__ import annotations

import pytest

from scp_server.errors import OperationRefused
from scp_server.interfaces import AcceptedContext, Operation
from scp_server.protocol.message import (
    VERIFICATION_SOP_CLASS_UID,
    CEchoRQ,
    CFindRQ,
    CStoreRQ,
    Message,
    response_to,
)
from scp_server.services.registry import ServiceRegistry, handles
from scp_server.services.verification import VerificationService
from scp_server.testing.fake_operation import FakeOperation

CONTEXT = AcceptedContext(1, VERIFICATION_SOP_CLASS_UID, "1.2.840.10008.1.2")
ECHO = CEchoRQ(message_id=1)


class _Two:
    """Performs two kinds of request."""

    @handles(CEchoRQ)
    async def echo(self, operation: Operation) -> Message:
        return response_to(ECHO, 0)

    @handles(CFindRQ)
    async def find(self, operation: Operation) -> Message:
        return response_to(ECHO, 0)

    def not_marked(self) -> None:
        """Nothing that is registered."""


def test_a_request_finds_the_method_marked_for_its_kind_on_a_context_of_its_class() -> None:
    two, services = _Two(), ServiceRegistry()
    services.register(two, {VERIFICATION_SOP_CLASS_UID})
    assert services.find(ECHO, CONTEXT) == two.echo
    assert services.find(CFindRQ(message_id=1, affected_sop_class_uid="1.2"), CONTEXT) == two.find


def test_of_two_services_for_one_kind_of_request_the_contexts_class_decides() -> None:
    first, second, services = _Two(), _Two(), ServiceRegistry()
    services.register(first, {"1.2.3"})
    services.register(second, {VERIFICATION_SOP_CLASS_UID})
    assert services.find(ECHO, CONTEXT) == second.echo


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (CStoreRQ(message_id=1, affected_sop_class_uid="1.2", affected_sop_instance_uid="1.2.3"), "CStore"),
        (CFindRQ(message_id=1, affected_sop_class_uid=VERIFICATION_SOP_CLASS_UID), "CFind"),
    ],
)
async def test_what_nobody_performs_on_a_context_is_refused_with_0122(
    request_: CStoreRQ | CFindRQ, name: str
) -> None:
    services = ServiceRegistry()
    services.register(VerificationService(), {VERIFICATION_SOP_CLASS_UID})
    service = services.find(request_, CONTEXT)
    with pytest.raises(OperationRefused, match=name) as refusal:
        await service(FakeOperation(request_, CONTEXT))
    assert refusal.value.status == 0x0122


async def test_a_service_offered_for_other_classes_is_not_found() -> None:
    services = ServiceRegistry()
    services.register(VerificationService(), {"1.2.3"})
    with pytest.raises(OperationRefused):
        await services.find(ECHO, CONTEXT)(FakeOperation(ECHO, CONTEXT))


def test_an_object_without_a_marked_method_cannot_be_registered() -> None:
    with pytest.raises(TypeError, match="object has no method marked"):
        ServiceRegistry().register(object(), {"1.2.3"})
