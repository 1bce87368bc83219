"""Verification: C-ECHO (PS3.4 Annex A, PS3.7 9.1.5)."""

from __future__ import annotations

from typing import cast

from scp_server.errors import OperationRefused
from scp_server.interfaces import AssociationListener, Operation
from scp_server.protocol.message import CEchoRQ, Message, response_to
from scp_server.protocol.status import Status
from scp_server.services.registry import handles


class VerificationService:
    """Answers that we are here."""

    def __init__(self, listener: AssociationListener | None = None) -> None:
        self._listener = listener

    @handles(CEchoRQ)
    async def echo(self, operation: Operation) -> Message:
        """C-ECHO: 0x0000, or 0x0122 for a SOP class other than the context's."""
        request = cast(CEchoRQ, operation.request)
        if request.affected_sop_class_uid != operation.context.abstract_syntax:
            raise OperationRefused(
                Status.SOP_CLASS_NOT_SUPPORTED, "the SOP class is not the one of this context"
            )
        if self._listener is not None:
            self._listener.echoed(operation.association)
        return response_to(request, Status.SUCCESS)
