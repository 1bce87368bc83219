"""C-ECHO."""

from __future__ import annotations

import pytest

from scp_server.errors import OperationRefused
from scp_server.interfaces import AcceptedContext
from scp_server.protocol.message import VERIFICATION_SOP_CLASS_UID, CEchoRQ, CEchoRSP
from scp_server.services.verification import VerificationService
from scp_server.testing.fake_operation import FakeOperation

CONTEXT = AcceptedContext(1, VERIFICATION_SOP_CLASS_UID, "1.2.840.10008.1.2")


async def test_an_echo_is_answered_with_success_and_its_own_message_id() -> None:
    answer = await VerificationService().echo(FakeOperation(CEchoRQ(message_id=77), CONTEXT))
    assert isinstance(answer, CEchoRSP)
    assert (answer.status, answer.message_id_being_responded_to) == (0x0000, 77)
    assert not answer.has_dataset


@pytest.mark.parametrize("uid", ["", "1.2.840.10008.1.1.1", "1.2.840.10008.5.1.4.1.1.2", "x"])
async def test_an_echo_for_another_class_than_the_contexts_is_0122(uid: str) -> None:
    operation = FakeOperation(CEchoRQ(message_id=1, affected_sop_class_uid=uid), CONTEXT)
    with pytest.raises(OperationRefused) as refusal:
        await VerificationService().echo(operation)
    assert refusal.value.status == 0x0122
