"""The listening socket, with real ones."""

from __future__ import annotations

import asyncio
import socket

import pytest

from scp_server.errors import ConfigurationError
from scp_server.net.association_manager import AcceptorConfig, AssociationManager
from scp_server.net.listener import Listener, bind_again, bind_shared, bound_addresses
from scp_server.testing.acceptor_scene import ANY_SIZE, ScriptedServices


@pytest.fixture
def manager() -> AssociationManager:
    """With nobody connected."""
    return AssociationManager(AcceptorConfig(ANY_SIZE), ScriptedServices())


async def _connected(address: tuple[str, int]) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(*address)
    return writer


async def _until(count: int, manager: AssociationManager) -> None:
    async with asyncio.timeout(5):
        while manager.connection_count != count:
            await asyncio.sleep(0.001)


async def test_port_0_is_a_free_port_and_its_connections_are_the_managers(
    manager: AssociationManager,
) -> None:
    listener = Listener(manager, "127.0.0.1", 0)
    host, port = await listener.start()
    assert host == "127.0.0.1"
    assert port > 0
    writer = await _connected((host, port))
    await _until(1, manager)
    writer.close()
    await _until(0, manager)
    await listener.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid", "192.0.2.1"])
async def test_an_address_that_cannot_be_bound_is_a_configuration_error_that_names_it(
    manager: AssociationManager, host: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"listen: .*{host}:{port}"):
            await Listener(manager, host, port).start()


async def test_after_stop_nobody_connects_and_who_is_connected_stays(manager: AssociationManager) -> None:
    listener = Listener(manager, "127.0.0.1", 0)
    address = await listener.start()
    writer = await _connected(address)
    await _until(1, manager)
    await listener.stop()
    await listener.stop()
    with pytest.raises(OSError, match=r"."):
        await _connected(address)
    assert manager.connection_count == 1
    writer.close()
    await _until(0, manager)


async def test_a_port_can_be_taken_again_at_once(manager: AssociationManager) -> None:
    first = Listener(manager, "127.0.0.1", 0)
    host, port = await first.start()
    writer = await _connected((host, port))
    await _until(1, manager)
    await first.stop()
    second = Listener(manager, host, port)
    assert await second.start() == (host, port)
    writer.close()
    await _until(0, manager)
    await second.stop()


async def test_several_listen_where_one_has_bound_and_all_get_connections(
    manager: AssociationManager,
) -> None:
    bound = await bind_shared("127.0.0.1", 0)
    addresses = bound_addresses(bound)
    first = Listener(manager, "127.0.0.1", 0, bound)
    others = [
        Listener(AssociationManager(manager.config, manager.services), "", 0, bind_again(addresses))
        for _ in range(2)
    ]
    address = await first.start()
    assert [await other.start() for other in others] == [address, address]
    managers = [manager, *(other._manager for other in others)]
    writers = [await _connected(address) for _ in range(60)]
    async with asyncio.timeout(5):
        while sum(each.connection_count for each in managers) < len(writers):
            await asyncio.sleep(0.001)
    assert min(each.connection_count for each in managers) > 0
    for writer in writers:
        writer.close()
    for each in managers:
        await _until(0, each)
    for listener in (first, *others):
        await listener.stop()


async def test_nothing_is_accepted_before_anybody_listens(manager: AssociationManager) -> None:
    bound = await bind_shared("127.0.0.1", 0)
    with bound[0], pytest.raises(ConnectionRefusedError):
        await _connected(bound[0].getsockname()[:2])


async def test_a_port_that_somebody_else_shares_is_not_joined(manager: AssociationManager) -> None:
    (theirs,) = await bind_shared("127.0.0.1", 0)
    with theirs:
        theirs.listen()
        with pytest.raises(ConfigurationError, match=r"listen: .*in use"):
            await bind_shared("127.0.0.1", theirs.getsockname()[1])
