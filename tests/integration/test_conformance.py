"""Each claim that the conformance statement makes about queries, proved by asking a running server.

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

from scp_server.testing import wire
from scp_server.testing.archive import Archive
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.dicos_objects import DICOS_TDR_STORAGE
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
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
STUDY, SERIES, INSTANCE, REFERENCED = "2.25.900", "2.25.901", "2.25.902", "2.25.903"
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
SPECIAL: Mapping[int, Any] = {
    0x00080016: DICOS_TDR_STORAGE,
    0x00080018: INSTANCE,
    0x0020000D: STUDY,
    0x0020000E: SERIES,
    0x00080061: VALUES["CS"],
    0x00080062: DICOS_TDR_STORAGE,
    0x00081155: REFERENCED,
}
"""Values that the object has in place of those of their VR."""
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
KEYS = {f"{key['keyword']}-{key['level']}": key for key in QUERY["keys"]}
TYPES = [(row["vr"], kind) for row in QUERY["matching"] for kind in row["types"]]
VRS = [row["vr"] for row in QUERY["matching"] if row["vr"] != "SQ"]


def several(vr: str) -> Any:
    value, other = VALUES[vr], OTHERS[vr]
    if isinstance(value, bytes):
        return value + other
    return (value, other) if isinstance(value, int) else f"{value}\\{other}"


def rich_object() -> EncodedObject:
    """An object that has every key of the statement, and private elements of every VR."""
    elements = {0x00081140: Element(0x00081140, "SQ", [[Element(0x00081155, "UI", REFERENCED)]])}
    for key in KEYS.values():
        tag = int(key["tag"], 16)
        if key["source"] == "column":
            elements[tag] = Element(tag, key["vr"], SPECIAL.get(tag, VALUES[key["vr"]]))
    assessment = [Element(tag, "CS", VALUES["CS"]) for tag in (0x40101012, 0x40101015)]
    elements[0x40101011] = Element(0x40101011, "SQ", [[Element(0x40101038, "SQ", [assessment])]])
    elements[CREATOR.tag] = CREATOR
    for number, vr in enumerate(VRS):
        elements[FULL + number] = Element(FULL + number, vr, VALUES[vr])
        elements[EMPTY + number] = Element(EMPTY + number, vr, b"")
        elements[SEVERAL + number] = Element(SEVERAL + number, vr, several(vr))
    elements[FULL + 0x7F] = Element(FULL + 0x7F, "SQ", [[ONLY, Element(0x00080060, "CS", "CT")], []])
    syntax = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
    data = DatasetEncoder(syntax).encode(sorted(elements.values(), key=lambda one: one.tag))
    return EncodedObject(DICOS_TDR_STORAGE, INSTANCE, STUDY, SERIES, syntax.value, data, "V03")


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


# --- models and levels


@pytest.mark.parametrize("model", QUERY["models"], ids=lambda model: model["name"])
async def test_each_model_has_the_levels_it_claims_and_no_other(ask: Ask, model: dict[str, Any]) -> None:
    for level in LEVELS:
        found = await ask(level, ONLY, sop_class=model["sop_class_uid"])
        expected = (0x0000, [0xFF00]) if level in model["levels"] else (0xA900, [])
        assert (found.status, found.statuses) == expected, level


@pytest.mark.parametrize("model", QUERY["models"], ids=lambda model: model["name"])
async def test_each_level_needs_the_unique_keys_of_those_above(ask: Ask, model: dict[str, Any]) -> None:
    unique = {
        "PATIENT": ONLY,
        "STUDY": Element(0x0020000D, "UI", STUDY),
        "SERIES": Element(0x0020000E, "UI", SERIES),
        "IMAGE": Element(0x00080018, "UI", INSTANCE),
    }
    for number, level in enumerate(model["levels"]):
        above = [unique[higher] for higher in model["levels"][:number]]
        keys = [*above, unique[level]]
        found = await ask(level, *keys, agreed=b"", sop_class=model["sop_class_uid"])
        assert (found.status, found.statuses) == (0x0000, [0xFF00])
        for left_out in above:
            rest = [key for key in keys if key is not left_out]
            found = await ask(level, *rest, agreed=b"", sop_class=model["sop_class_uid"])
            assert (found.status, found.offending_elements) == (0xA900, (left_out.tag,))


@pytest.mark.parametrize(
    "service", [one for one in SAID["acceptor"] if one["uid"] in FIND_CLASSES], ids=lambda one: one["name"]
)
async def test_each_transfer_syntax_that_is_claimed_is_accepted_and_no_other(
    daemon: DaemonProcess, service: dict[str, Any]
) -> None:
    claimed = {syntax["uid"] for syntax in service["transfer_syntaxes"]}
    syntaxes = sorted(claimed | set(TransferSyntax))
    proposed = [ProposedContext(2 * n + 1, service["uid"], (uid,)) for n, uid in enumerate(syntaxes)]
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
    claims = QUERY["extended_negotiation"]
    everything = bytes(one["supported"] for one in claims)
    assert await answered(daemon, uid, b"\1" * len(claims)) == everything
    for one in claims:
        only = bytes(one["byte"] == number for number in range(1, len(claims) + 1))
        expected = bytes(map(min, only, everything))
        assert await answered(daemon, uid, only) == expected
    assert await answered(daemon, uid, bytes(len(claims))) == bytes(len(claims))
    for length in range(1, len(claims)):
        assert await answered(daemon, uid, b"\1" * length) == everything[:length]
    assert (await answered(daemon, uid, b"\1" * 20))[: len(claims)] == everything


async def test_nothing_is_answered_where_nothing_was_offered(daemon: DaemonProcess) -> None:
    async with await QueryingPeer.connect(daemon.ready.dicom_host, daemon.ready.dicom_port) as peer:
        answer = await peer.associate_to_find()
    assert wire.ItemType.EXTENDED_NEGOTIATION not in answer.user_items


# --- keys


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if not key.get("in_sequence")])
async def test_each_key_is_returned_and_matched_as_claimed(ask: Ask, name: str) -> None:
    key = KEYS[name]
    tag, vr = int(key["tag"], 16), key["vr"]
    in_studies = tag in (0x00080061, 0x00080062)
    for level in ("STUDY",) if in_studies else LEVELS[LEVELS.index(key["level"]) :]:
        only = [] if tag == ONLY.tag else [ONLY]
        stored = SPECIAL.get(tag, VALUES[vr])
        returned = await ask(
            level, Element(tag, vr, b""), ONLY if only else Element(0x00100010, "PN", "Poe*")
        )
        assert (returned.status, returned.statuses) == (0x0000, [0xFF00]), level
        if not key["matched"]:
            unmatched = await ask(level, ONLY, Element(tag, vr, OTHERS[vr]))
            # An SCU shall not ask for the first two, so nothing is to be said of them (PS3.4 C.4.1.1.3.2).
            expected = 0xFF00 if tag in (0x00080054, 0x00080056) else 0xFF01
            assert (unmatched.status, unmatched.statuses) == (0x0000, [expected]), level
            continue
        if vr != "US":
            assert values_of(returned.datasets, tag) == [stored], level
        same = await ask(level, *only, Element(tag, vr, stored))
        assert (same.status, same.statuses) == (0x0000, [0xFF00]), level
        other = await ask(level, Element(tag, vr, OTHERS[vr]))
        assert (other.status, other.statuses) == (0x0000, []), level


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.get("in_sequence")])
async def test_each_key_in_a_threats_assessment_is_matched(ask: Ask, name: str) -> None:
    tag = int(KEYS[name]["tag"], 16)
    for value, found in ((VALUES["CS"], 1), (OTHERS["CS"], 0)):
        assessment = Element(0x40101038, "SQ", [[Element(tag, "CS", value)]])
        answer = await ask("IMAGE", Element(0x40101011, "SQ", [[assessment]]))
        assert (answer.status, answer.statuses) == (0x0000, [0xFF00] * found)


async def test_retrieve_ae_title_is_in_every_answer_and_ours(ask: Ask) -> None:
    for level in LEVELS:
        found = await ask(level, ONLY)
        assert values_of(found.datasets, 0x00080054) == [SAID["ae_title"]]


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
    elif kind == "empty value, where agreed":
        agreed = b"\1\0\0\0\0\1"
        assert await is_found(EMPTY, '""', agreed)
        assert not await is_found(FULL, '""', agreed)
    elif kind == "multiple value, where agreed":
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
    assert QUERY["any_other_attribute"]
    for start, value in ((FULL, VALUES["LO"]), (SEVERAL, OTHERS["LO"])):
        found = await ask("STUDY", *private(place(start, "LO"), "LO", value))
        assert (found.statuses, len(values_of(found.datasets, place(start, "LO")))) == ([0xFF00], 1)


async def test_what_has_no_value_matches_as_claimed(ask: Ask) -> None:
    found = await ask("STUDY", ONLY, Element(0x00101010, "AS", "042Y"))
    assert bool(found.datasets) is QUERY["unknown_values_match"]


@pytest.mark.parametrize("term", SAID["character_sets"])
async def test_each_character_set_is_understood(ask: Ask, term: str) -> None:
    declared = Element(
        0x00080005, "CS", term if term.startswith("ISO_IR") or "ISO" not in term else f"\\{term}"
    )
    found = await ask("STUDY", declared, Element(0x00100010, "PN", "poe^JANE"), ONLY)
    assert (found.status, values_of(found.datasets, 0x0020000D)) == (0x0000, [STUDY])


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


@pytest.mark.parametrize("status", [row["status"] for row in QUERY["statuses"]])
async def test_each_status_is_answered_when_claimed(daemon: DaemonProcess, ask: Ask, status: str) -> None:
    async def of(*arguments: Any, **how: Any) -> set[int]:
        found = await ask(*arguments, **how)
        return {found.status, *found.statuses}

    proofs: dict[str, Callable[[], Awaitable[set[int]]]] = {
        "0x0000": lambda: of("STUDY", ONLY),
        "0xFF00": lambda: of("STUDY", ONLY),
        "0xFF01": lambda: of("STUDY", ONLY, Element(0x0020000E, "UI", b"")),
        "0xFE00": lambda: _cancelled(daemon),
        "0x0122": lambda: _other_class(daemon),
        "0xA700": lambda: of("IMAGE"),
        "0xA900": lambda: of("IMAGE", agreed=b""),
        "0xC000": lambda: of("STUDY", Element(0x00080020, "DA", "never")),
    }
    assert int(status, 16) in await proofs[status]()
