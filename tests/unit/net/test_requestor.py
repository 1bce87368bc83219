"""Asking for an association, where the connection itself comes to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from scp_server.errors import ConnectFailed
from scp_server.net.requestor import Requestor
from scp_server.net.requestor_connection import RequestorConfig
from scp_server.protocol.limits import Limits
from scp_server.testing.fake_transport import FakeTransport

RESPONSE_SECONDS = 0.01


async def test_a_connection_that_was_made_too_late_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made, and given up in the same moment: an event loop may close the socket and tell nobody."""
    transports: list[FakeTransport] = []

    async def too_late(factory: Callable[[], Any], _host: str, _port: int) -> None:
        protocol = factory()
        transports.append(FakeTransport(protocol))
        protocol.connection_made(transports[0])
        raise TimeoutError

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", too_late)
    config = RequestorConfig(limits=Limits(response_seconds=RESPONSE_SECONDS, idle_seconds=0.0))
    with pytest.raises(ConnectFailed, match="no connection"):
        async with Requestor("127.0.0.1", 104, config=config):
            pass
    written = bytes(transports[0].written)
    assert written[:1] == b"\x01", "an A-ASSOCIATE-RQ"
    await asyncio.sleep(5 * RESPONSE_SECONDS)
    assert (bytes(transports[0].written), transports[0].fate) == (written, "open")
