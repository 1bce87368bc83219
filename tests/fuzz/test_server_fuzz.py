"""Whatever peers send, the whole server stays as it was: nothing unhandled or kept, and an echo answered.

Runs for about 24 seconds, half of it on each event loop; SCP_FUZZ_SECONDS sets another time, SCP_FUZZ_SEED
another start.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from scp_server import Server, Settings
from scp_server.observability.logs import captured_logs
from scp_server.testing import wire
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_ct, dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image, encapsulated_pdf, structured_report
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from scp_server.testing.wire import PDV, Control, PDUType, ProposedContext, Tag

SECONDS = float(os.environ.get("SCP_FUZZ_SECONDS", "24")) / 2
SEED = int(os.environ.get("SCP_FUZZ_SEED", "20260611"))
BATCH = 200
CLOSED_SECONDS = 8.0
"""Every connection is over by then: the server's timers are all below a second here."""
VERIFICATION = [ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))]
Conversation = list[bytes]


def _command(command: bytes, context_id: int = 3) -> bytes:
    return wire.p_data_tf(PDV(context_id, Control.COMMAND | Control.LAST, command))


def _store(
    stored: EncodedObject, message_id: int, fragment_bytes: int, *, glued: bool = False
) -> list[bytes]:
    command = wire.c_store_rq(message_id, stored.sop_class_uid, stored.sop_instance_uid, dicos=glued)
    stream = (command if glued else b"") + stored.dataset
    cuts = range(0, len(stream), fragment_bytes)
    pdus = [] if glued else [_command(command)]
    for start in cuts:
        control = Control.COMMAND if glued and start == 0 else Control.DATASET
        if start == cuts[-1]:
            control |= Control.LAST
        pdus.append(wire.p_data_tf(PDV(3, control, stream[start : start + fragment_bytes])))
    return pdus


def _conversations() -> list[Conversation]:
    """Valid ones, each a list of PDUs."""
    end = [wire.release_rq()]
    conversations = []
    for number, (stored, fragment_bytes) in enumerate(
        [
            (ct_image(rows=8, columns=8, sequences=True, private=True), 500),
            (ct_image(rows=8, columns=8, seed=1, sequences=True, undefined_length=True), 9_000),
            (ct_image(rows=64, columns=64, seed=2, transfer_syntax=TransferSyntax.RLE_LOSSLESS), 4_000),
            (
                ct_image(rows=8, columns=8, seed=3, transfer_syntax=TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN),
                70,
            ),
            (
                ct_image(
                    rows=8,
                    columns=8,
                    seed=4,
                    transfer_syntax=TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
                ),
                200,
            ),
            (structured_report(), 900),
            (encapsulated_pdf(document_bytes=3_000), 1_000),
        ]
    ):
        request = wire.associate_rq(storage_contexts(stored), calling_ae_title=f"FUZZ{number}")
        stores = _store(stored, 1, fragment_bytes) + _store(stored, 2, 131_066)
        conversations.append([request, *stores, _command(wire.c_echo_rq(3), 1), *end])
    for stored in (dicos_ct(frames=2, rows=8, columns=8), dicos_tdr()):
        request = wire.associate_rq(
            storage_contexts(stored), application_context=wire.DICOS_V03_APPLICATION_CONTEXT
        )
        glued = _store(stored, 0, 4_000, glued=True) + _store(stored, 0, 300, glued=True)
        conversations.append([request, *glued, *_store(stored, 1, 5_000), *end])
    cancel = wire.command_set(
        {Tag.COMMAND_FIELD: 0x0FFF, Tag.MESSAGE_ID_RESPONDED_TO: 1, Tag.DATASET_TYPE: wire.NO_DATASET}
    )
    echoes = [_command(wire.c_echo_rq(number), 1) for number in range(40)]
    conversations.append([wire.associate_rq(VERIFICATION), *echoes, _command(cancel, 1), *end])
    many = [PDV(1, Control.COMMAND | Control.LAST, wire.c_echo_rq(number % 3)) for number in range(200)]
    conversations.append([wire.associate_rq(VERIFICATION), wire.p_data_tf(*many), wire.abort()])
    return conversations


CONVERSATIONS = _conversations()
STRAY = [
    wire.release_rq(),
    wire.release_rp(),
    wire.abort(),
    wire.abort(2, 6),
    wire.associate_rj(1, 1, 1),
    wire.associate_ac({1: (0, "1.2.840.10008.1.2")}),
    wire.associate_rq(VERIFICATION),
    _command(wire.c_echo_rq(9), 1),
    wire.p_data_tf(PDV(3, Control.DATASET, b"")),
    wire.p_data_tf(PDV(3, Control.LAST, b"")),
    wire.p_data_tf(*[PDV(3, Control.DATASET, b"x")] * 300),
    b"\x04\0\xff\xff\xff\xff",
    b"\x01\0\0\x0f\xff\xff",
    b"\0" * 7,
    b"GET / HTTP/1.1\r\n\r\n",
]
LENGTHS = [0, 1, 2, 3, 5, 11, 0x7FFF, 0xFFFF, 0x20000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]


def mutate(rng: random.Random, conversation: Conversation) -> Conversation:
    """One to three changes: to bits, to lengths, to whole PDUs and their order, to where it ends."""
    pdus = list(conversation)
    for _ in range(rng.randint(1, 3)):
        # The request is changed seldom: most of what can go wrong comes behind it.
        at = rng.randrange(len(pdus)) if rng.random() < 0.2 else rng.randrange(len(pdus) // 2, len(pdus))
        pdu = bytearray(pdus[at])
        place = rng.randrange(len(pdu))
        match rng.randrange(10):
            case 0:
                pdu[place] ^= 1 << rng.randrange(8)
            case 1:
                for _ in range(20):
                    pdu[rng.randrange(len(pdu))] = rng.randrange(256)
            case 2:
                pdu[2:6] = rng.choice(LENGTHS).to_bytes(4, "big")
            case 3:
                pdu[6:10] = rng.choice(LENGTHS).to_bytes(4, "big")
            case 4:
                pdu[place : place + 4] = rng.choice(LENGTHS).to_bytes(4, rng.choice(["big", "little"]))
            case 5:
                del pdu[place:]
            case 6:
                del pdus[at + 1 :]
            case 7:
                other = rng.randrange(len(pdus))
                pdus[at], pdus[other] = pdus[other], pdus[at]
                continue
            case 8:
                pdus.insert(at, rng.choice(STRAY))
                continue
            case _:
                pdu += rng.randbytes(rng.randint(1, 200))
        pdus[at] = bytes(pdu) or b"\0"
    return pdus


async def _converse(
    rng: random.Random, address: tuple[str, int], pdus: Conversation, outcomes: Counter[str]
) -> None:
    """Say it all, in segments of some kind; then end, or wait for the server to end."""
    peer = await ScriptedPeer.connect(*address, timeout_seconds=CLOSED_SECONDS)
    end = rng.choice(["wait", "wait", "eof", "close", "reset", "reset in the middle"])
    data = b"".join(pdus[1:])
    pieces = [data[start : start + 700] for start in range(0, len(data), 700)]
    segments = rng.choice([pdus[1:], [data], pieces])
    if end == "reset in the middle":
        segments = segments[: rng.randrange(len(segments) + 1)]
    try:
        await peer.send(pdus[0])
        if rng.random() < 0.9:
            outcomes[PDUType((await peer.read_pdu()).pdu_type).name] += 1
        for segment in segments:
            await peer.send(segment)
        if end == "eof":
            peer.half_close()
        if end in ("wait", "eof"):
            outcomes.update(_pdu_types(await peer.wait_eof()))
    except (ConnectionError, EOFError):
        outcomes["ended early"] += 1
    finally:
        outcomes[end] += 1
        await (peer.reset() if end.startswith("reset") else peer.close())


def _pdu_types(answered: bytes) -> list[str]:
    types, position = [], 0
    while position + 6 <= len(answered):
        types.append(PDUType(answered[position]).name)
        position += 6 + int.from_bytes(answered[position + 2 : position + 6], "big")
    assert position == len(answered), "the server's last PDU was cut"
    return types


def _settings(data_dir: Path) -> Settings:
    """Timers that are short, and budgets small enough to be used up."""
    seconds = {
        f"{name}_seconds": 0.3 for name in ("artim", "response", "idle", "dicos_idle", "dimse", "write")
    }
    settings: dict[str, Any] = {
        "listen": {"port": 0},
        "http": {"port": 0},
        "data_dir": data_dir,
        "storage": {"durability": "process"},
        "timeouts": seconds,
        "limits": {
            "process_buffer_bytes": 1 << 20,
            "association_buffer_bytes": 1 << 17,
            "header_buffer_bytes": 4_096,
            "max_pending_operations": 4,
            "send_buffer_bytes": 4_096,
        },
        "drain_timeout_seconds": 1,
    }
    return Settings(**settings)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _settled(server: Server) -> None:
    """Everything that connections took is given back, in time."""
    manager = server._manager
    async with asyncio.timeout(CLOSED_SECONDS):
        while manager.connection_count or manager.association_count or manager.budget.held_bytes:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_mutated_conversations_leave_the_server_as_it_was(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_fuzz(tmp_path))


async def _fuzz(tmp_path: Path) -> None:
    async with Server(_settings(tmp_path)) as server:
        await _hold_conversations(server, tmp_path)


async def _hold_conversations(server: Server, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    unhandled: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: unhandled.append(context))
    outcomes: Counter[str] = Counter()
    tasks, descriptors, rounds = len(asyncio.all_tasks()), 0, 0
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        batch = [
            mutate(rng, conversation) if rng.random() < 0.9 else conversation
            for conversation in rng.choices(CONVERSATIONS, k=BATCH)
        ]
        seed = rng.random()
        try:
            with captured_logs() as logs:
                await asyncio.gather(
                    *(
                        _converse(random.Random(f"{seed} {number}"), server.address, pdus, outcomes)
                        for number, pdus in enumerate(batch)
                    )
                )
                await _settled(server)
                async with await ScriptedPeer.connect(*server.address) as peer:
                    await peer.associate(VERIFICATION)
                    assert await peer.echo() == 0x0000
                    await peer.release()
                await _settled(server)
            _check(server, logs, unhandled, tmp_path)
            assert len(asyncio.all_tasks()) <= tasks, "a task is left"
            descriptors = descriptors or _descriptors() + 8
            assert _descriptors() <= descriptors, "descriptors leak"
        except BaseException as error:
            error.add_note(f"seed {SEED}, batch {rounds} of {BATCH} conversations")
            raise
        rounds += 1
    # Conversations that never got through, or were never refused, would prove little.
    for outcome in ("ASSOCIATE_AC", "P_DATA_TF", "RELEASE_RP", "ABORT", "wait", "reset"):
        assert outcomes[outcome] > rounds, outcomes
    assert any((tmp_path / "objects").rglob("*.dcm"))
    print(f"{rounds * BATCH} conversations: {dict(outcomes)}")


def _check(
    server: Server, logs: list[dict[str, Any]], unhandled: list[dict[str, Any]], data_dir: Path
) -> None:
    assert unhandled == []
    assert [line for line in logs if "exception" in line or line["level"] in ("error", "critical")] == []
    assert server._manager.association_count == 0
    assert server._manager._request_bytes == 0
    assert not server._manager.places.per_peer
    assert not server._manager.places.per_address
    assert [path.name for path in data_dir.rglob("*.part")] == []
