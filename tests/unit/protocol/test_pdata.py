"""P-DATA: where messages begin and end, and what is refused, whatever the cut."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_server.errors import ProtocolError
from scp_server.protocol.events import CommandReceived, DatasetFragment, Event
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import CEchoRQ, CStoreRQ
from scp_server.protocol.pdata import PDataParser
from scp_server.testing import wire
from scp_server.testing.association_driver import (
    SMALL_LIMITS,
    byte_by_byte,
    cut_at,
    normalised,
    store_command,
    whole,
)
from scp_server.testing.wire import PDV, Control

CTX = 3
CMD, LAST, DATA = Control.COMMAND, Control.LAST, Control.DATASET
ECHO = wire.c_echo_rq(7)
STORE = store_command()
INVALID, UNEXPECTED = 6, 5


def command_with_group_length(command: bytes, length: int) -> bytes:
    return command[:8] + struct.pack("<I", length) + command[12:]


def run(
    pdus: Sequence[bytes], cut: Callable[[bytes], list[bytes]] = whole, limits: Limits = SMALL_LIMITS
) -> tuple[list[Event], int | None, PDataParser]:
    """Feed P-DATA-TF PDUs; returns the events, the reason if there was a ProtocolError, and the parser."""
    events: list[Event] = []
    parser = PDataParser(limits, {1, CTX}, events.append)
    try:
        for pdu in pdus:
            parser.begin_pdu(len(pdu) - 6)
            for piece in cut(pdu[6:]):
                # Offsets other than 0 are the rule in a real buffer.
                parser.feed(memoryview(b"??" + piece), 2, 2 + len(piece))
    except ProtocolError as error:
        return normalised(events), error.reason, parser
    return normalised(events), None, parser


def pdus(*fragments: tuple[Control, bytes], context_id: int = CTX) -> list[bytes]:
    """A P-DATA-TF for each fragment."""
    return [wire.p_data_tf(PDV(context_id, control, data)) for control, data in fragments]


def one_pdu(*fragments: tuple[Control, bytes]) -> list[bytes]:
    """All fragments in one P-DATA-TF."""
    return [wire.p_data_tf(*(PDV(CTX, control, data) for control, data in fragments))]


def expect_store(events: list[Event], data: bytes, *, glued: bool) -> None:
    command, dataset = events
    assert isinstance(command, CommandReceived)
    assert isinstance(command.message, CStoreRQ)
    assert command.glued is glued
    assert dataset == DatasetFragment(CTX, memoryview(data), True)


NORMAL: dict[str, list[bytes]] = {
    "a PDU for each fragment": pdus((CMD | LAST, STORE), (DATA, b"abcd"), (LAST, b"efgh")),
    "all in one PDU": one_pdu((CMD | LAST, STORE), (DATA, b"abcd"), (LAST, b"efgh")),
    "command in pieces": pdus(
        (CMD, STORE[:5]), (CMD, STORE[5:13]), (CMD | LAST, STORE[13:]), (LAST, b"abcdefgh")
    ),
    "empty fragments": pdus((CMD, b""), (CMD | LAST, STORE), (DATA, b""), (DATA, b"abcdefgh"), (LAST, b"")),
    "command without last bit, data PDVs": pdus((CMD, STORE), (DATA, b"abcd"), (LAST, b"efgh")),
    "command closed by an empty PDV": pdus((CMD, STORE), (CMD | LAST, b""), (LAST, b"abcdefgh")),
    "command closed after another empty PDV": pdus(
        (CMD, STORE), (CMD, b""), (CMD | LAST, b""), (LAST, b"abcdefgh")
    ),
    "odd fragments": pdus((CMD | LAST, STORE), (DATA, b"a"), (DATA, b"bcd"), (LAST, b"efgh")),
    "reserved control bits set": [
        p.replace(b"\x03\x03\0\0\0\0", b"\x03\xff\0\0\0\0")
        for p in pdus((CMD | LAST, STORE), (LAST, b"abcdefgh"))
    ],
    "group length too long": pdus((CMD | LAST, command_with_group_length(STORE, 400)), (LAST, b"abcdefgh")),
    "group length absurd": pdus(
        (CMD | LAST, command_with_group_length(STORE, 2**32 - 1)), (LAST, b"abcdefgh")
    ),
    "group length missing": pdus((CMD | LAST, STORE[12:]), (LAST, b"abcdefgh")),
    "group length missing, in pieces": pdus(
        (CMD, STORE[12:20]), (CMD | LAST, STORE[20:]), (LAST, b"abcdefgh")
    ),
}
GLUED: dict[str, list[bytes]] = {
    "one PDV for all": pdus((CMD | LAST, STORE + b"abcdefgh")),
    "first PDV not last": pdus((CMD, STORE + b"abcd"), (DATA, b"ef"), (LAST, b"gh")),
    "command itself in pieces": pdus((CMD, STORE[:9]), (CMD, STORE[9:] + b"ab"), (LAST, b"cdefgh")),
    "command in pieces, rest in the last": pdus((CMD, STORE[:40]), (CMD | LAST, STORE[40:] + b"abcdefgh")),
    "data ends in an empty PDV": pdus((CMD, STORE + b"abcdefgh"), (LAST, b"")),
}


@pytest.mark.parametrize("cut", [whole, byte_by_byte])
@pytest.mark.parametrize("name", list(NORMAL))
def test_a_message_framed_as_the_standard_says_or_nearly(
    name: str, cut: Callable[[bytes], list[bytes]]
) -> None:
    """PS3.8 E.1, PS3.8 E.2."""
    events, reason, parser = run(NORMAL[name], cut)
    assert reason is None
    expect_store(events, b"abcdefgh", glued=False)
    assert not parser.in_message


@pytest.mark.parametrize("cut", [whole, byte_by_byte])
@pytest.mark.parametrize("name", list(GLUED))
def test_a_command_set_glued_to_its_data_set(name: str, cut: Callable[[bytes], list[bytes]]) -> None:
    events, reason, parser = run(GLUED[name], cut)
    assert reason is None
    expect_store(events, b"abcdefgh", glued=True)
    assert not parser.in_message


@pytest.mark.parametrize("closing", [[], pdus((CMD | LAST, b"")), pdus((CMD, b""), (CMD | LAST, b""))])
def test_a_command_without_last_bit_is_delivered_at_once_and_may_be_closed_later(
    closing: list[bytes],
) -> None:
    echo = pdus((CMD, ECHO))
    for following in (echo, pdus((CMD | LAST, ECHO)), pdus((CMD | LAST, ECHO), context_id=1)):
        events, reason, parser = run([*echo, *closing, *following])
        assert reason is None
        assert [type(e.message) for e in events if isinstance(e, CommandReceived)] == [CEchoRQ, CEchoRQ]
        assert parser.whole_messages == 2


def test_both_framings_mix_on_one_association() -> None:
    events, reason, _ = run([*NORMAL["all in one PDU"], *GLUED["one PDV for all"], *pdus((CMD | LAST, ECHO))])
    assert reason is None
    expect_store(events[:2], b"abcdefgh", glued=False)
    expect_store(events[2:4], b"abcdefgh", glued=True)
    assert isinstance(events[4], CommandReceived)


def test_dicos_s_type_of_data_set_announces_one() -> None:
    command = store_command(0, dicos=True)
    events, reason, _ = run(pdus((CMD | LAST, command + b"abcdefgh")))
    assert reason is None
    expect_store(events, b"abcdefgh", glued=True)


SO_MANY_EMPTY = SMALL_LIMITS.max_empty_fragments
TOO_LONG = b"\0" * (SMALL_LIMITS.max_command_bytes + 1)
REFUSED: dict[str, tuple[list[bytes], int, int]] = {
    # name: PDUs, reason, how many events come before
    "data with no command": (pdus((LAST, b"ab")), UNEXPECTED, 0),
    "data after a command that announces none": (pdus((CMD | LAST, ECHO), (LAST, b"ab")), UNEXPECTED, 1),
    "data before the command is whole": (pdus((CMD, STORE[:20]), (LAST, b"ab")), UNEXPECTED, 0),
    "command inside a data set": (pdus((CMD | LAST, STORE), (CMD | LAST, ECHO)), UNEXPECTED, 1),
    "command inside a glued data set": (pdus((CMD, STORE + b"ab"), (CMD | LAST, b"cd")), UNEXPECTED, 2),
    "empty command inside a glued data set": (pdus((CMD, STORE + b"ab"), (CMD | LAST, b"")), UNEXPECTED, 2),
    "command closed after its data began": (
        pdus((CMD, STORE), (DATA, b"ab"), (CMD | LAST, b"")),
        UNEXPECTED,
        2,
    ),
    "command closed twice": (pdus((CMD, STORE), (CMD | LAST, b""), (CMD | LAST, b"")), UNEXPECTED, 1),
    "other context inside a command": (
        [*pdus((CMD, STORE[:20])), *pdus((CMD | LAST, STORE[20:]), context_id=1)],
        UNEXPECTED,
        0,
    ),
    "other context inside a data set": (
        [*pdus((CMD | LAST, STORE)), *pdus((LAST, b"ab"), context_id=1)],
        UNEXPECTED,
        1,
    ),
    "context not accepted": (pdus((CMD | LAST, ECHO), context_id=5), INVALID, 0),
    "context 0": (pdus((CMD | LAST, b""), context_id=0), INVALID, 0),
    "surplus behind a command without data set": (pdus((CMD | LAST, ECHO + b"ab")), INVALID, 0),
    "surplus, command not last": (pdus((CMD, ECHO + b"ab")), INVALID, 0),
    "surplus, no group length": (pdus((CMD | LAST, ECHO[12:] + b"ab")), INVALID, 0),
    "command cut by its last bit": (pdus((CMD | LAST, ECHO[:-3])), INVALID, 0),
    "group length too short": (pdus((CMD | LAST, command_with_group_length(ECHO, 20))), INVALID, 0),
    "group length 0": (pdus((CMD | LAST, command_with_group_length(STORE, 0))), INVALID, 0),
    "empty command": (pdus((CMD | LAST, b"")), INVALID, 0),
    "command of 8 bytes": (pdus((CMD | LAST, ECHO[:8])), INVALID, 0),
    "command closed without being open": (pdus((CMD | LAST, ECHO), (CMD | LAST, b"")), INVALID, 1),
    "command too long": (pdus((CMD, TOO_LONG)), INVALID, 0),
    "command too long in pieces": (pdus((CMD, TOO_LONG[:500]), (CMD, TOO_LONG[500:])), INVALID, 0),
    "empty command fragments": (pdus(*[(CMD, b"")] * (SO_MANY_EMPTY + 1)), INVALID, 0),
    "empty data fragments": (pdus((CMD | LAST, STORE), *[(DATA, b"")] * (SO_MANY_EMPTY + 1)), INVALID, 1),
    "empty fragments after a command": (pdus((CMD, ECHO), *[(CMD, b"")] * (SO_MANY_EMPTY + 1)), INVALID, 1),
    "PDV length 0": ([wire.pdu(4, bytes(6))], INVALID, 0),
    "PDV length 1": ([wire.pdu(4, bytes([0, 0, 0, 1, CTX, 3]))], INVALID, 0),
    "PDV beyond its PDU": ([wire.pdu(4, struct.pack(">IBB", 103, CTX, 3) + bytes(100))], INVALID, 0),
    "PDV of 4 GiB": ([wire.pdu(4, struct.pack(">IBB", 2**32 - 1, CTX, 3) + bytes(100))], INVALID, 0),
    "bytes behind the last PDV": ([wire.pdu(4, struct.pack(">IBB", 2, CTX, 1) + b"\0")], INVALID, 0),
}


@pytest.mark.parametrize("cut", [whole, byte_by_byte])
@pytest.mark.parametrize("name", list(REFUSED))
def test_what_breaks_the_rules_is_refused_with_its_reason(
    name: str, cut: Callable[[bytes], list[bytes]]
) -> None:
    data, expected_reason, expected_events = REFUSED[name]
    events, reason, _ = run(data, cut)
    assert reason == expected_reason
    assert len(events) == expected_events


@pytest.mark.parametrize("group", [NORMAL, GLUED])
def test_the_most_empty_fragments_allowed_are_counted_for_each_message_anew(
    group: dict[str, list[bytes]],
) -> None:
    store = pdus((CMD | LAST, STORE), *[(DATA, b"")] * SO_MANY_EMPTY, (LAST, b"ab"))
    messages = [*store, *store]
    for message in group.values():
        messages += message
    assert run(messages)[1] is None


def test_the_longest_command_set_allowed_is_served_and_its_glued_data_does_not_count() -> None:
    limits = Limits(max_command_bytes=len(STORE))
    events, reason, _ = run(pdus((CMD | LAST, STORE + bytes(5000))), limits=limits)
    assert reason is None
    expect_store(events, bytes(5000), glued=True)
    assert run(pdus((CMD | LAST, STORE)), limits=Limits(max_command_bytes=len(STORE) - 1))[1] == INVALID


EVERYTHING = [(name, p) for group in (NORMAL, GLUED) for name, p in group.items()]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_cuts_never_change_the_events(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from([*NORMAL, *GLUED, *REFUSED]), min_size=1, max_size=4))
    table = {**NORMAL, **GLUED, **{name: row[0] for name, row in REFUSED.items()}}
    stream = [pdu for name in names for pdu in table[name]]
    positions = data.draw(st.lists(st.integers(0, 10_000), max_size=20))
    expected_events, expected_reason, _ = run(stream)
    events, reason, _ = run(stream, cut_at(positions))
    assert (events, reason) == (expected_events, expected_reason)


def test_fragments_are_views_of_what_came_in() -> None:
    events: list[Event] = []
    parser = PDataParser(Limits(), {CTX}, events.append)
    body = wire.p_data_tf(PDV(CTX, CMD | LAST, STORE), PDV(CTX, LAST, b"x" * 1000))[6:]
    parser.begin_pdu(len(body))
    parser.feed(memoryview(body), 0, len(body))
    assert isinstance(events[1], DatasetFragment)
    assert events[1].data.obj is body


def test_many_small_pdvs_in_one_pdu_need_no_recursion() -> None:
    fragments = [(DATA, b"a")] * 5000
    events, reason, _ = run(one_pdu((CMD | LAST, STORE), *fragments, (LAST, b"z")))
    assert reason is None
    expect_store(events, b"a" * 5000 + b"z", glued=False)


def test_a_pdv_of_4_gib_costs_no_memory() -> None:
    parser = PDataParser(Limits(), {CTX}, lambda event: None)
    start = struct.pack(">IBB", len(STORE) + 2, CTX, 3) + STORE
    length = 2**32 - 1
    start += struct.pack(">IBB", length - len(start) - 4, CTX, 2)
    piece = memoryview(bytes(1 << 20))
    parser.begin_pdu(length)
    parser.feed(memoryview(start), 0, len(start))
    left = length - len(start)
    tracemalloc.start()
    try:
        while left:
            size = min(left, len(piece))
            parser.feed(piece, 0, size)
            left -= size
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not parser.in_message
    assert parser.whole_messages == 1
    assert peak_bytes < 20_000


def test_a_flood_of_command_bytes_ends_at_the_limit() -> None:
    limits = Limits()
    parser = PDataParser(limits, {CTX}, lambda event: None)
    piece = memoryview(bytes(1024))
    parser.begin_pdu(2**32 - 1)
    header = struct.pack(">IBB", 2**32 - 5, CTX, CMD)
    parser.feed(memoryview(header), 0, len(header))
    taken = 0

    def flood() -> None:
        nonlocal taken
        while True:
            parser.feed(piece, 0, len(piece))
            taken += len(piece)

    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            flood()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= limits.max_command_bytes
    assert peak_bytes < 3 * limits.max_command_bytes
