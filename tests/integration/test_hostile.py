"""Attacks on a daemon in its own process: what each may cost it in memory, and that it answers afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from scp_server.testing import wire
from scp_server.testing.association_driver import CT_IMAGE_STORAGE
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, UnexpectedAnswer
from scp_server.testing.wire import PDV, Control, PDUType, ProposedContext, Tag
from tests.integration.target import CONTEXTS, STORE, VERIFICATION, Target, hold_many

MIB = 1 << 20
MOST_GROWTH_BYTES = 64 * MIB
SETTINGS = {
    "STORAGE__DURABILITY": "process",
    "TIMEOUTS__ARTIM_SECONDS": "3",
    "TIMEOUTS__WRITE_SECONDS": "3",
    "LIMITS__PROCESS_BUFFER_BYTES": str(16 * MIB),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One daemon for all attacks: what one leaves behind, the next would show."""
    environment = {f"SCP_SERVER_{name}": value for name, value in SETTINGS.items()}
    with DaemonProcess(tmp_path_factory.mktemp("hostile"), environment=environment) as daemon:
        yield Target(daemon)
    assert [line for line in daemon.output if "Traceback" in line or '"exception"' in line] == []
    assert daemon.log_records("operation.failed") == []
    assert not list(daemon.data_dir.rglob("*.part"))


@contextlib.asynccontextmanager
async def _attacked(
    target: Target, most_growth_bytes: int = MOST_GROWTH_BYTES
) -> AsyncIterator[list[ScriptedPeer]]:
    """What happens inside costs bounded memory, and no answer afterwards; listed peers are reset."""
    await target.echo_seconds(5)
    if not target.peaceful_bytes:
        assert await _refused(target, ct_image().dataset) == 0xA900
        target.peaceful_bytes = target.usage.resident_bytes
    descriptors = target.usage.descriptors
    target.usage.forget_peak()
    peers: list[ScriptedPeer] = []
    try:
        yield peers
        # The daemon has looked at everything that was sent before this.
        await target.echo_seconds(1)
    finally:
        for peer in peers:
            with contextlib.suppress(OSError):
                await peer.reset()
    growth = target.usage.peak_bytes - target.peaceful_bytes
    await target.answers_quickly()
    assert growth <= most_growth_bytes, f"{growth / MIB:.1f} MiB"
    async with asyncio.timeout(10):
        while target.usage.descriptors > descriptors + 1:
            await asyncio.sleep(0.01)


async def _crowd(
    target: Target, count: int, attack: Callable[[ScriptedPeer], Awaitable[object]], peers: list[ScriptedPeer]
) -> None:
    """So many peers attack at once, each on a connection of its own."""
    crowd = [await target.connect() for _ in range(count)]
    peers += crowd
    await asyncio.gather(*(attack(peer) for peer in crowd))


# -- row 1: lengths that lie --------------------------------------------------------------------------------


@pytest.mark.parametrize("pdu_type", list(PDUType), ids=lambda value: value.name)
async def test_a_length_of_4_gib_ends_the_association_before_its_body(
    target: Target, pdu_type: PDUType
) -> None:
    lie = struct.pack(">BxI", pdu_type, 0xFFFF_FFFF)
    async with _attacked(target) as peers:
        for _ in range(20):
            peer = await target.associate()
            peers.append(peer)
            await peer.send(lie + bytes(100_000))
            assert await peer.expect_abort() == (2, 6)
            assert await peer.wait_eof(1) == b""


async def test_an_a_associate_rq_above_1_mib_is_aborted_at_its_header(target: Target) -> None:
    async with _attacked(target) as peers:
        for _ in range(20):
            peer = await target.connect()
            peers.append(peer)
            await peer.send(struct.pack(">BxI", PDUType.ASSOCIATE_RQ, MIB + 1))
            assert await peer.expect_abort() == (0, 0)


async def test_requests_of_1_mib_sent_but_for_a_byte_on_200_connections_are_bounded_together(
    target: Target,
) -> None:
    async def almost(peer: ScriptedPeer) -> None:
        with contextlib.suppress(ConnectionError):
            await peer.send(struct.pack(">BxI", PDUType.ASSOCIATE_RQ, MIB - 1) + bytes(MIB - 2))

    async with _attacked(target) as peers:
        await _crowd(target, 200, almost, peers)
        await target.answers_quickly()


async def test_many_small_items_in_a_request_cost_what_their_bytes_cost(target: Target) -> None:
    sub_items = struct.pack(">BxH", 0x59, 0) * 16_000
    request = wire.associate_rq(VERIFICATION, user_items=b"")
    grown = bytearray(request)
    # The user information item is the last: its length and the PDU's grow by what is added.
    at = request.rindex(b"\x50\x00")
    length = struct.unpack_from(">H", grown, at + 2)[0] + len(sub_items)
    struct.pack_into(">H", grown, at + 2, length)
    struct.pack_into(">I", grown, 2, len(request) - 6 + len(sub_items))
    grown += sub_items

    async def ask(peer: ScriptedPeer) -> None:
        await peer.send(bytes(grown))
        assert (await peer.read_pdu()).pdu_type in (PDUType.ABORT, PDUType.ASSOCIATE_RJ)

    async with _attacked(target) as peers:
        await _crowd(target, 50, ask, peers)


async def test_a_megabyte_of_transfer_syntaxes_costs_bounded_memory_and_time(target: Target) -> None:
    syntaxes = [f"1.2.{number}" for number in range(900)]
    contexts = [ProposedContext(number, wire.VERIFICATION, syntaxes) for number in range(1, 150, 2)]
    request = wire.associate_rq(contexts)
    assert 500_000 < len(request) < MIB

    async def ask(peer: ScriptedPeer) -> None:
        await peer.send(request)
        await peer.read_pdu()

    async with _attacked(target) as peers:
        await _crowd(target, 10, ask, peers)


# -- row 2: half-open, idle, stalled ------------------------------------------------------------------------


async def test_an_echo_is_quick_while_hundreds_are_half_open_idle_and_stalled(target: Target) -> None:
    async with _attacked(target) as peers:
        await hold_many(target, peers)
        await target.answers_quickly()


# -- row 3: deaf peers --------------------------------------------------------------------------------------


async def test_a_flood_of_echoes_whose_answers_nobody_reads_is_left_unread(target: Target) -> None:
    flood = b"".join(
        wire.p_data_tf(PDV(1, Control.COMMAND | Control.LAST, wire.c_echo_rq(number & 0xFFFF)))
        for number in range(4_000)
    )

    async def deaf_peer() -> ScriptedPeer:
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(target.address)
        peer = ScriptedPeer(*await asyncio.open_connection(sock=narrow), timeout_seconds=1)
        await peer.associate(VERIFICATION)
        peer._reader._transport.pause_reading()  # type: ignore[attr-defined]
        return peer

    async def send(peer: ScriptedPeer) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            while True:
                await peer.send(flood)

    async with _attacked(target) as peers:
        peers += [await deaf_peer() for _ in range(60)]
        await asyncio.gather(*(send(peer) for peer in peers))
        await target.answers_quickly()


# -- row 4: messages without end ----------------------------------------------------------------------------


@pytest.mark.parametrize("group_length", [0xFFFF_FFF0, 0x0001_0000, None], ids=["4 GiB", "64 KiB", "none"])
async def test_a_command_without_end_is_cut_at_64_kib(target: Target, group_length: int | None) -> None:
    element = struct.pack("<HHI", 0, Tag.ERROR_COMMENT, 56) + bytes(56)
    first = b"" if group_length is None else struct.pack("<HHII", 0, 0, 4, group_length)
    fragment = wire.p_data_tf(PDV(1, Control.COMMAND, (first + element * 256)[:16_378]))

    async with _attacked(target) as peers:
        for _ in range(10):
            peer = await target.associate()
            peers.append(peer)
            await peer.send(fragment * 5)
            assert await peer.expect_abort() == (2, 6)


async def test_empty_fragments_without_end_are_cut(target: Target) -> None:
    empty = wire.p_data_tf(*[PDV(3, Control.DATASET, b"")] * 500)
    async with _attacked(target) as peers:
        for _ in range(10):
            peer = await target.associate()
            peers.append(peer)
            await peer.send(STORE + empty * 3)
            assert await peer.expect_abort() == (2, 6)


async def test_a_header_in_fragments_of_one_byte_costs_what_its_bytes_cost(target: Target) -> None:
    value = struct.pack("<HH2sxxI", 0x0009, 0x1001, b"OB", 900_000)
    tiny = wire.p_data_tf(*[PDV(3, Control.DATASET, b"\0")] * 10_000)

    async def send(peer: ScriptedPeer) -> None:
        await peer.associate(CONTEXTS)
        await peer.send(STORE + wire.p_data_tf(PDV(3, Control.DATASET, value)))
        for _ in range(12):
            await peer.send(tiny)

    async with _attacked(target) as peers:
        await _crowd(target, 5, send, peers)


# -- rows 5 to 7: data sets ---------------------------------------------------------------------------------


async def _refused(target: Target, dataset: bytes, context_id: int = 3) -> int:
    """The status of a C-STORE of `dataset`; the association must go on after it."""
    async with await target.associate() as peer:
        command = wire.c_store_rq(1, CT_IMAGE_STORAGE, "1.2.3.4")
        await peer.send(wire.p_data_tf(PDV(context_id, Control.COMMAND | Control.LAST, command)))
        for start in range(0, len(dataset), 100_000):
            last = start + 100_000 >= len(dataset)
            control = Control.LAST if last else Control.DATASET
            await peer.send(wire.p_data_tf(PDV(context_id, control, dataset[start : start + 100_000])))
        status = (await peer.read_response()).status
        assert await peer.echo() == 0x0000
    return status


@pytest.mark.parametrize("closed", [False, True])
async def test_ten_thousand_nested_sequences_are_c000(target: Target, closed: bool) -> None:
    sequence = struct.pack("<HH2sxxI", 0x0040, 0xA730, b"SQ", 0xFFFF_FFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFF_FFFF)
    ends = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    dataset = (sequence + item) * 10_000 + ends * (10_000 if closed else 0)
    async with _attacked(target):
        assert set(await asyncio.gather(*(_refused(target, dataset) for _ in range(10)))) == {0xC000}


@pytest.mark.parametrize("length", [0xFFFF_FFFE, 0x7FFF_FFFE, 0x5700_0000])
async def test_an_element_that_is_cut_costs_no_more_than_what_came(target: Target, length: int) -> None:
    dataset = ct_image().dataset[:300] + struct.pack("<HH2sxxI", 0x0009, 0x1001, b"OB", length) + b"cut"
    async with _attacked(target):
        assert set(await asyncio.gather(*(_refused(target, dataset) for _ in range(20)))) == {0xC000}


def _bomb(inflated_bytes: int) -> bytes:
    """A deflated data set whose private value inflates a thousandfold."""
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    header = ct_image(transfer_syntax=TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN).dataset[:300]
    value = struct.pack("<HH2sxxI", 0x0009, 0x1001, b"OB", inflated_bytes)
    parts = [compressor.compress(header + value)]
    parts += [compressor.compress(bytes(MIB)) for _ in range(inflated_bytes // MIB)]
    parts.append(compressor.flush())
    data = b"".join(parts)
    return data + b"\0" * (len(data) % 2)


async def test_a_deflate_bomb_is_refused_and_never_unfolded(target: Target) -> None:
    bomb = _bomb(256 * MIB)
    assert len(bomb) < MIB
    async with _attacked(target):
        statuses = set(await asyncio.gather(*(_refused(target, bomb, 5) for _ in range(4))))
        assert statuses <= {0xC000, 0xA700}


# -- row 9: services on contexts that lack them --------------------------------------------------------------


@pytest.mark.parametrize(
    ("command_field", "context_id"),
    [(0x0001, 1), (0x0020, 1), (0x0020, 3), (0x0010, 3), (0x0021, 3), (0x0030, 3), (0x0130, 3), (0x0140, 3)],
)
async def test_a_service_that_the_context_lacks_is_0122_and_its_data_set_is_drained(
    target: Target, command_field: int, context_id: int
) -> None:
    sop_class, instance = (0x0003, 0x1001) if command_field == 0x0130 else (0x0002, 0x1000)
    command: dict[int, int | str | bytes] = {
        sop_class: CT_IMAGE_STORAGE,
        Tag.COMMAND_FIELD: command_field,
        Tag.MESSAGE_ID: 7,
        Tag.PRIORITY: 0,
        Tag.DATASET_TYPE: 1,
        instance: "1.2.3",
    }
    if command_field == 0x0130:
        command |= {0x1008: 1}
    if command_field == 0x0021:
        command |= {0x0600: b"ELSEWHERE "}
    async with await target.associate() as peer:
        encoded = wire.command_set(command)
        await peer.send(wire.p_data_tf(PDV(context_id, Control.COMMAND | Control.LAST, encoded)))
        await peer.send(wire.p_data_tf(PDV(context_id, Control.LAST, ct_image().dataset)))
        response = await peer.read_response()
        assert (response.status, response.message_id_responded_to) == (0x0122, 7)
        assert await peer.echo() == 0x0000
    assert not list((target.daemon.data_dir / "objects").rglob("*.dcm"))


async def test_a_context_that_was_not_accepted_aborts(target: Target) -> None:
    async with await target.associate() as peer:
        command = wire.c_echo_rq(1)
        await peer.send(wire.p_data_tf(PDV(99, Control.COMMAND | Control.LAST, command)))
        assert (await peer.expect_abort()).source == 2
        with pytest.raises((EOFError, ConnectionError, UnexpectedAnswer)):
            await peer.read_response()


# -- the budget: last, since freeing so much leaves the process's memory scattered --------------------------


async def test_headers_without_end_are_held_within_the_budget(target: Target) -> None:
    value = struct.pack("<HH2sxxI", 0x0009, 0x1001, b"OB", 0x7FFF_FFFE)
    part = wire.p_data_tf(PDV(3, Control.DATASET, bytes(100_000)))

    async def send(peer: ScriptedPeer) -> None:
        await peer.associate(CONTEXTS)
        await peer.send(STORE + wire.p_data_tf(PDV(3, Control.DATASET, value)))
        for _ in range(9):
            await peer.send(part)

    # What associations hold by right, 16 MiB here; one read of each more; and what freeing leaves scattered.
    # Without the budget it would be 1 MiB for each, and without an end if they left anything behind.
    most_bytes = 16 * MIB + 200 * MIB // 4 + MOST_GROWTH_BYTES
    for _ in range(3):
        async with _attacked(target, most_bytes) as peers:
            await _crowd(target, 200, send, peers)
            await target.answers_quickly()
