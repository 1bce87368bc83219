"""What the conformance statement claims of matching, negotiation and statuses: VR by VR, byte by byte.

The statement is printed by the command, under the configuration that the server runs with.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from scp_server.objects.vr import NUMBER_BYTES, TEXT_VRS
from scp_server.testing import wire
from scp_server.testing.archive import Archive
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import CT_IMAGE_STORAGE, ct_image
from scp_server.testing.querying_peer import (
    FIND_CLASSES,
    PATIENT_ROOT_FIND,
    STUDY_ROOT_FIND,
    Found,
    QueryingPeer,
    identifier,
    values_of,
)
from scp_server.testing.wire import ProposedContext

SETTINGS = {
    "SCP_SERVER_QUERY__MAX_MATCHES": "5",
    "SCP_SERVER_STORAGE__DURABILITY": "process",
    "SCP_SERVER_LISTEN__AE_TITLE": "PROVED",
}
LEVELS = ("PATIENT", "STUDY", "SERIES", "IMAGE")
STUDY, SERIES, INSTANCE = "2.25.900", "2.25.901", "2.25.902"
VALUES: Mapping[str, Any] = {
    "AE": "AETITLE",
    "AS": "042Y",
    "AT": b"\x10\x00\x20\x00",
    "CS": "CODE",
    "DA": "20260102",
    "DS": "1.5",
    "DT": "20260102030405",
    "IS": "77",
    "LO": "Some Text",
    "LT": "Some Text",
    "PN": "Poe^Jane",
    "SH": "Some Text",
    "ST": "Some Text",
    "TM": "030405",
    "UC": "Some Text",
    "UI": "2.25.77",
    "UR": "urn:some:text",
    "UT": "Some Text",
    **dict.fromkeys(("US", "SS", "UL", "SL", "FL", "FD"), 3),
    "SV": (3).to_bytes(8, "little"),
    "UV": (3).to_bytes(8, "little"),
    **dict.fromkeys(("OB", "OW", "OL", "OF", "OD", "OV", "UN"), b"\1\2\3\4\5\6\7\10"),
}
"""What the object has, by VR."""
OTHERS: Mapping[str, Any] = {
    "AE": "OTHER",
    "AS": "043Y",
    "AT": b"\x10\x00\x10\x00",
    "CS": "OTHER",
    "DA": "20250101",
    "DS": "2.5",
    "DT": "20250101",
    "IS": "78",
    "PN": "Roe^Rick",
    "TM": "010101",
    "UI": "2.25.78",
    **dict.fromkeys(("LO", "LT", "SH", "ST", "UC", "UR", "UT"), "Other"),
    **dict.fromkeys(("US", "SS", "UL", "SL", "FL", "FD"), 4),
    "SV": (4).to_bytes(8, "little"),
    "UV": (4).to_bytes(8, "little"),
    **dict.fromkeys(("OB", "OW", "OL", "OF", "OD", "OV", "UN"), b"\1\2\3\4\5\6\7\11"),
}
CREATOR = Element(0x00290010, "LO", "PROOF")
FULL, EMPTY, SEVERAL = 0x00291000, 0x00291080, 0x002910C0
"""Where private elements begin, one of each VR: with a value, without, and with two."""
ONLY = Element(0x00100020, "LO", VALUES["LO"])
"""Finds nothing but the object."""


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SCP_SERVER_")}
    return {**kept, **SETTINGS}


def print_statement() -> dict[str, Any]:
    command = [sys.executable, "-m", "scp_server", "conformance", "--format", "json"]
    ended = subprocess.run(command, capture_output=True, env=environment(), check=True, timeout=60)
    said: dict[str, Any] = json.loads(ended.stdout)
    return said


SAID = print_statement()
QUERY = SAID["query"]
VRS = sorted({*TEXT_VRS, *NUMBER_BYTES, "AT", "OB", "OW", "OL", "OF", "OD", "OV", "UN"})
"""All but SQ."""
GROUPS = {"every VR": [*VRS, "SQ"], "every VR but SQ": VRS, "every VR of text": sorted(TEXT_VRS)}
TYPES = [
    (vr, kind)
    for kind, claimed in QUERY["matching"].items()
    for group in claimed
    for vr in GROUPS.get(group, [group])
]


def several(vr: str) -> Any:
    value, other = VALUES[vr], OTHERS[vr]
    if isinstance(value, bytes):
        return value + other
    return (value, other) if isinstance(value, int) else f"{value}\\{other}"


def rich_object() -> EncodedObject:
    """An object with private elements of every VR: with a value, without, and with two."""
    elements = [
        Element(0x00080016, "UI", CT_IMAGE_STORAGE),
        Element(0x00080018, "UI", INSTANCE),
        Element(0x0020000D, "UI", STUDY),
        Element(0x0020000E, "UI", SERIES),
        ONLY,
        CREATOR,
        Element(FULL + 0x7F, "SQ", [[ONLY, Element(0x00080060, "CS", "CT")], []]),
    ]
    for number, vr in enumerate(VRS):
        elements.append(Element(FULL + number, vr, VALUES[vr]))
        elements.append(Element(EMPTY + number, vr, b""))
        elements.append(Element(SEVERAL + number, vr, several(vr)))
    syntax = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
    data = DatasetEncoder(syntax).encode(sorted(elements, key=lambda one: one.tag))
    return EncodedObject(CT_IMAGE_STORAGE, INSTANCE, STUDY, SERIES, syntax.value, data)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    archive = Archive.at(tmp_path_factory.mktemp("proof") / "data")
    objects = [rich_object(), *(ct_image(seed=seed, rows=2, columns=2) for seed in range(8))]
    with asyncio.Runner() as runner:
        assert runner.run(archive.store(objects)) == [0] * len(objects)
    with DaemonProcess(archive.data_dir, environment=SETTINGS) as running:
        yield running


Ask = Callable[..., Awaitable[Found]]


@asynccontextmanager
async def associated(daemon: DaemonProcess, **how: Any) -> AsyncIterator[QueryingPeer]:
    async with await QueryingPeer.connect(daemon.ready.dicom_host, daemon.ready.dicom_port) as peer:
        await peer.associate_to_find(**how)
        yield peer


@pytest.fixture
def ask(daemon: DaemonProcess) -> Ask:
    """One query; `agreed` is offered in extended negotiation, a relational one unless said otherwise."""

    async def once(
        level: str, *keys: Element, agreed: bytes = b"\1", sop_class: str = PATIENT_ROOT_FIND
    ) -> Found:
        async with associated(daemon, offered={sop_class: agreed} if agreed else {}) as peer:
            found = await peer.find(identifier(level, *keys), sop_class)
            await peer.release()
            return found

    return once


# --- unique keys and transfer syntaxes


@pytest.mark.parametrize("model", QUERY["models"], ids=lambda model: model["name"])
async def test_each_level_needs_the_unique_keys_of_those_above(ask: Ask, model: dict[str, Any]) -> None:
    unique = {
        "PATIENT": ONLY,
        "STUDY": Element(0x0020000D, "UI", STUDY),
        "SERIES": Element(0x0020000E, "UI", SERIES),
        "IMAGE": Element(0x00080018, "UI", INSTANCE),
    }
    levels = [each["level"] for each in model["levels"]]
    for number, level in enumerate(levels):
        above = [unique[higher] for higher in levels[:number]]
        keys = [*above, unique[level]]
        found = await ask(level, *keys, agreed=b"", sop_class=model["uid"])
        assert (found.status, found.statuses) == (0x0000, [0xFF00])
        for left_out in above:
            rest = [key for key in keys if key is not left_out]
            found = await ask(level, *rest, agreed=b"", sop_class=model["uid"])
            assert (found.status, found.offending_elements) == (0xA900, (left_out.tag,))


@pytest.mark.parametrize("uid", FIND_CLASSES)
async def test_each_transfer_syntax_that_is_claimed_is_accepted_and_no_other(
    daemon: DaemonProcess, uid: str
) -> None:
    claimed = {syntax["uid"] for syntax in SAID["transfer_syntaxes"]["query"]}
    syntaxes = sorted(claimed | set(TransferSyntax))
    proposed = [ProposedContext(2 * n + 1, uid, (syntax,)) for n, syntax in enumerate(syntaxes)]
    async with await QueryingPeer.connect(daemon.ready.dicom_host, daemon.ready.dicom_port) as peer:
        answer = await peer.associate(proposed)
    assert set(answer.accepted().values()) == claimed


# --- extended negotiation


async def answered(daemon: DaemonProcess, uid: str, offered: bytes) -> bytes:
    async with await QueryingPeer.connect(daemon.ready.dicom_host, daemon.ready.dicom_port) as peer:
        answer = await peer.associate_to_find(offered={uid: offered})
    item = answer.user_items[wire.ItemType.EXTENDED_NEGOTIATION]
    assert item[2 : 2 + len(uid)].decode() == uid
    return item[2 + len(uid) :]


@pytest.mark.parametrize("uid", FIND_CLASSES)
async def test_extended_negotiation_is_answered_as_claimed_byte_by_byte(
    daemon: DaemonProcess, uid: str
) -> None:
    everything = bytes(QUERY["extended_negotiation"].values())
    claims = range(len(everything))
    assert await answered(daemon, uid, b"\1" * len(claims)) == everything
    for byte in claims:
        only = bytes(byte == number for number in claims)
        assert await answered(daemon, uid, only) == bytes(map(min, only, everything))
    assert await answered(daemon, uid, bytes(len(claims))) == bytes(len(claims))
    for length in range(1, len(claims)):
        assert await answered(daemon, uid, b"\1" * length) == everything[:length]
    assert (await answered(daemon, uid, b"\1" * 20))[: len(claims)] == everything


async def test_nothing_is_answered_where_nothing_was_offered(daemon: DaemonProcess) -> None:
    async with await QueryingPeer.connect(daemon.ready.dicom_host, daemon.ready.dicom_port) as peer:
        answer = await peer.associate_to_find()
    assert wire.ItemType.EXTENDED_NEGOTIATION not in answer.user_items


# --- answers


async def test_retrieve_ae_title_is_in_every_answer_and_ours(ask: Ask) -> None:
    for level in LEVELS:
        found = await ask(level, ONLY)
        assert values_of(found.datasets, 0x00080054) == [SAID["association"]["ae_title"]]


# --- matching


def private(number: int, vr: str, value: Any) -> list[Element]:
    return [ONLY, CREATOR, Element(number, vr, value)]


def place(start: int, vr: str) -> int:
    return start + VRS.index(vr)


@pytest.mark.parametrize(("vr", "kind"), TYPES, ids=lambda value: value)
async def test_each_vr_is_matched_as_claimed(ask: Ask, vr: str, kind: str) -> None:
    async def is_found(start: int, value: Any, agreed: bytes = b"\1") -> bool:
        found = await ask("IMAGE", *private(place(start, vr), vr, value), agreed=agreed)
        assert found.status == 0x0000
        assert set(found.statuses) <= {0xFF00}
        return len(found.datasets) == 1

    if vr == "SQ":
        item = [] if kind == "universal" else [Element(0x00080060, "CS", "CT")]
        sequence = FULL + 0x7F
        found = await ask("IMAGE", *private(sequence, "SQ", [item]))
        assert found.statuses == [0xFF00]
        wrong = await ask("IMAGE", *private(sequence, "SQ", [[Element(0x00080060, "CS", "MR")]]))
        assert wrong.statuses == []
    elif kind == "universal":
        assert await is_found(FULL, b"")
        assert await is_found(EMPTY, b"")
    elif kind == "single value":
        assert await is_found(FULL, VALUES[vr])
        assert not await is_found(FULL, OTHERS[vr])
        assert not await is_found(EMPTY, VALUES[vr])
    elif kind == "list of UIDs":
        assert await is_found(FULL, f"2.25.1\\{VALUES[vr]}\\2.25.2")
        assert not await is_found(FULL, "2.25.1\\2.25.2")
    elif kind == "wild card":
        text = VALUES[vr]
        for pattern in (f"{text[:2]}*", f"*{text[2:]}", f"{text[0]}?{text[2:]}", "*", f"?{text[1:-1]}?"):
            assert await is_found(FULL, pattern), pattern
        for pattern in (f"{text[1:]}*", f"{text}?", "x*"):
            assert not await is_found(FULL, pattern), pattern
    elif kind == "range":
        stored, other = VALUES[vr], OTHERS[vr]
        for value in (f"{other}-{stored}", f"{stored}-", f"-{stored}", f"{stored}-{stored}"):
            assert await is_found(FULL, value), value
        for value in (f"-{other}", f"{stored[:-1]}9-", f"{other}-{other}"):
            assert not await is_found(FULL, value), value
    elif kind == "empty value (negotiated)":
        agreed = b"\1\0\0\0\0\1"
        assert await is_found(EMPTY, '""', agreed)
        assert not await is_found(FULL, '""', agreed)
    elif kind == "multiple values (negotiated)":
        agreed = b"\1\0\0\0\0\0\1"
        assert await is_found(SEVERAL, several(vr), agreed)
        assert not await is_found(FULL, several(vr), agreed)
        assert await is_found(FULL, several(vr))
    else:
        pytest.fail(f"the statement claims {kind!r}, which nothing here proves")


WITHOUT = [vr for vr in VRS if isinstance(VALUES[vr], str) and (vr, "wild card") not in TYPES]


@pytest.mark.parametrize("vr", WITHOUT)
async def test_a_wild_card_is_none_where_none_is_claimed(ask: Ask, vr: str) -> None:
    found = await ask("IMAGE", *private(place(FULL, vr), vr, f"{VALUES[vr][:-1]}?"))
    assert found.datasets == []


async def test_any_other_attribute_is_returned_and_matched(ask: Ask) -> None:
    assert "returned and matched" in QUERY["other_keys"]
    for start, value in ((FULL, VALUES["LO"]), (SEVERAL, OTHERS["LO"])):
        found = await ask("STUDY", *private(place(start, "LO"), "LO", value))
        assert (found.statuses, len(values_of(found.datasets, place(start, "LO")))) == ([0xFF00], 1)


async def test_what_has_no_value_matches_as_claimed(ask: Ask) -> None:
    found = await ask("STUDY", ONLY, Element(0x00101010, "AS", "042Y"))
    assert bool(found.datasets) is QUERY["unknown_values_match"]


# --- statuses


async def _cancelled(daemon: DaemonProcess) -> set[int]:
    async with associated(daemon, offered={STUDY_ROOT_FIND: b"\1"}) as peer:
        message_id = peer._message_id + 1
        await peer.send_cancel(message_id)  # nothing runs: ignored
        command = wire.c_cancel_rq(message_id)
        cancel = wire.p_data_tf(wire.PDV(5, wire.Control.COMMAND | wire.Control.LAST, command))
        request = wire.c_find_rq(message_id, STUDY_ROOT_FIND)
        last = wire.Control.LAST
        await peer.send(
            wire.p_data_tf(wire.PDV(5, wire.Control.COMMAND | last, request))
            + wire.p_data_tf(wire.PDV(5, last, identifier("IMAGE")))
            + cancel
        )
        found = await peer.rest()
        return {found.status, *found.statuses}


async def _other_class(daemon: DaemonProcess) -> set[int]:
    async with associated(daemon) as peer:
        command, last = wire.c_find_rq(1, PATIENT_ROOT_FIND), wire.Control.LAST
        await peer.send(wire.p_data_tf(wire.PDV(5, wire.Control.COMMAND | last, command)))
        await peer.send(wire.p_data_tf(wire.PDV(5, last, identifier("STUDY"))))
        return {(await peer.rest()).status}


@pytest.mark.parametrize("status", QUERY["statuses"])
async def test_each_status_is_answered_when_claimed(daemon: DaemonProcess, ask: Ask, status: str) -> None:
    async def of(*arguments: Any, **how: Any) -> set[int]:
        found = await ask(*arguments, **how)
        return {found.status, *found.statuses}

    proofs: dict[str, Callable[[], Awaitable[set[int]]]] = {
        "0000": lambda: of("STUDY", ONLY),
        "FF00": lambda: of("STUDY", ONLY),
        "FF01": lambda: of("STUDY", ONLY, Element(0x0020000E, "UI", b"")),
        "FE00": lambda: _cancelled(daemon),
        "0122": lambda: _other_class(daemon),
        "A700": lambda: of("IMAGE"),
        "A900": lambda: of("IMAGE", agreed=b""),
        "C000": lambda: of("STUDY", Element(0x00080020, "DA", "never")),
    }
    assert int(status, 16) in await proofs[status]()
