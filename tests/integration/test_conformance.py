"""The conformance statement: what it says of queries is proved by asking a running server.

By pynetdicom, which knows nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from scp_server.objects import frame_codecs
from scp_server.objects.dicos import dictionary as dicos
from scp_server.objects.dictionary import vr_of
from scp_server.runtime.conformance import statement
from scp_server.runtime.conformance_page import markdown
from scp_server.services.query_retrieve.attributes import COLUMNS
from scp_server.services.query_retrieve.negotiation import FindByte
from scp_server.settings import Settings
from scp_server.testing.daemon import DaemonProcess, Ready
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from tests.pynetdicom_client import leave_responses_to_who_waits

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2.1"
RELATIONAL, EVERYTHING = b"\1", b"\1" * len(FindByte)
pytestmark = [
    # Wild cards and ranges are no values of their VRs, says pydicom.
    pytest.mark.filterwarnings("ignore:Invalid value for VR"),
    pytest.mark.filterwarnings("ignore:A value of type"),
]
CLAIMS = statement(Settings())["query"]
LEVELS = [
    pytest.param(model["uid"], level, id=f"{model['name']}-{level['level']}")
    for model in CLAIMS["models"]
    for level in model["levels"]
]
UNIQUE = {"PATIENT": 0x00100020, "STUDY": 0x0020000D, "SERIES": 0x0020000E, "IMAGE": 0x00080018}
SCHEDULED, DESCRIPTION = 0x00400275, 0x00400007
VALUES = {
    "CS": ("ONE", "TWO"),
    "LO": ("Text one", "Text two"),
    "SH": ("S one", "S two"),
    "PN": ("Doe^Jane", "Roe^John"),
    "DA": ("20240102", "20240103"),
    "TM": ("101112", "121314"),
    "DT": ("20240102101112", "20240103101112"),
    "IS": ("3", "4"),
    "US": ("3", "4"),
    "UI": ("1.2.840.1", "1.2.840.2"),
}
"""By VR, what the first of two objects has, and what the second."""
UNLIKE = {
    "DA": "19000101",
    "TM": "030303",
    "DT": "19000101",
    "IS": "99",
    "US": 99,
    "UI": "1.2.3.4",
    "CS": "NONE",
}
"""What none has, where that is not any text."""


def tag_of(keyword: str) -> int:
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword) or dicos.tag_of(keyword)
    assert tag is not None, keyword
    return int(tag)


def vr(tag: int) -> str:
    """The VR of a key: DICOM's, else DICOS's."""
    found = vr_of(tag, False)
    return vr_of(tag, True) if found == "UN" else found


def value(tag: int, which: int) -> str:
    """What the object `which` has for an attribute."""
    if tag in UNIQUE.values() and tag != UNIQUE["PATIENT"]:
        return make_uid(f"conformance {tag} {which}")
    return f"1.2.840.10008.5.1.4.1.1.{2 * which + 2}" if tag == 0x00080016 else VALUES[vr(tag)][which]


def made(which: int) -> EncodedObject:
    """An object that has every attribute with a column, and a sequence."""
    elements = [
        Element(tag, vr(tag), int(value(tag, which)) if vr(tag) == "US" else value(tag, which))
        for tag in COLUMNS
    ]
    elements.append(Element(SCHEDULED, "SQ", [[Element(DESCRIPTION, "LO", VALUES["LO"][which])]]))
    study, series, instance = (value(UNIQUE[level], which) for level in ("STUDY", "SERIES", "IMAGE"))
    dataset = DatasetEncoder(EXPLICIT).encode(elements)
    return EncodedObject(value(0x00080016, which), instance, study, series, EXPLICIT.value, dataset)


@contextmanager
def serving(data_dir: Path, **variables: str) -> Iterator[Ready]:
    """A daemon that has both objects."""

    async def fill(ready: Ready) -> None:
        objects = [made(0), made(1)]
        peer = await ScriptedPeer.connect(ready.dicom_host, ready.dicom_port)
        await peer.associate(storage_contexts(*objects))
        for each in objects:
            assert await peer.store(each) == 0x0000
        await peer.release()
        await peer.close()

    with DaemonProcess(data_dir, environment=variables) as daemon:
        asyncio.run(fill(daemon.ready))
        yield daemon.ready


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    with serving(tmp_path_factory.mktemp("conformance")) as ready:
        yield ready


Key = tuple[int, object]


class Associated:
    """An association, and what was agreed on of what was offered."""

    def __init__(self, ready: Ready, model: str, offered: bytes) -> None:
        ae = AE("SCU")
        ae.add_requested_context(model, EXPLICIT.value)
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid = model
        item.service_class_application_information = offered
        self._model = model
        self._association = ae.associate(
            ready.dicom_host, ready.dicom_port, ext_neg=[item] if offered else []
        )
        assert self._association.is_established
        leave_responses_to_who_waits(self._association)
        self.agreed = dict(self._association.acceptor.sop_class_extended).get(UID(model), b"")

    def ask(self, level: str, keys: Iterable[Key]) -> tuple[int, list[tuple[int, Dataset]]]:
        """The final status; the pending ones with their data sets."""
        query = Dataset()
        query.QueryRetrieveLevel = level
        for tag, wanted in sorted(keys, key=lambda key: key[0]):
            query[tag] = DataElement(tag, "SQ" if isinstance(wanted, Items) else vr(tag), wanted)
        answers = [
            (status.Status, found) for status, found in self._association.send_c_find(query, self._model)
        ]
        return answers[-1][0], [(status, found) for status, found in answers if found is not None]

    def count(self, *keys: Key) -> int:
        """How many studies match."""
        final, found = self.ask("STUDY", {STUDY_UID: "", **dict(keys)}.items())
        assert final == 0x0000, keys
        return len(found)


@contextmanager
def associated(ready: Ready, model: str = STUDY_ROOT, offered: bytes = b"") -> Iterator[Associated]:
    found = Associated(ready, model, offered)
    yield found
    found._association.release()


@pytest.mark.parametrize(("model", "level"), LEVELS)
def test_every_key_is_returned_and_matched_as_claimed(
    server: Ready, model: str, level: dict[str, Any]
) -> None:
    name, unique = level["level"], tag_of(level["unique"])
    keys = [level["unique"], *level["required"], *level["optional"], *level["values_below"]]
    with associated(server, model, RELATIONAL) as peer:
        assert peer.agreed == RELATIONAL
        for keyword in keys:
            tag = tag_of(keyword)
            for which in (0, 1):
                wanted: object = int(value(tag, which)) if vr(tag) == "US" else value(tag, which)
                final, found = peer.ask(name, {unique: "", tag: wanted}.items())
                assert (final, len(found)) == (0x0000, 1), keyword
                status, dataset = found[0]
                assert status == 0xFF00, keyword
                assert str(dataset[tag].value) == value(tag, which), keyword
                assert str(dataset[unique].value) == value(unique, which), keyword
            none = UNLIKE.get(vr(tag), "nothing like it")
            assert peer.ask(name, {unique: "", tag: none}.items()) == (0x0000, []), keyword


@pytest.mark.parametrize(("model", "level"), LEVELS)
def test_computed_keys_are_returned_as_claimed(server: Ready, model: str, level: dict[str, Any]) -> None:
    expected = {"ModalitiesInStudy": "ONE", "SOPClassesInStudy": value(0x00080016, 0)}
    expected |= {"RetrieveAETitle": "SCP_SERVER", "InstanceAvailability": "ONLINE"}
    unique = tag_of(level["unique"])
    # No report decides on what are no scans.
    expected |= {"AlarmDecision": "", "AlarmDecisionTime": "", "TDRType": ""}
    # Neither object refers to another.
    computed = [each for each in level["computed"] if each != "ReferencedSOPInstanceUID"]
    keys = {unique: value(unique, 0), **{tag_of(each): "" for each in (*computed, *level["ours"])}}
    with associated(server, model, RELATIONAL) as peer:
        final, found = peer.ask(level["level"], keys.items())
    assert (final, [status for status, _ in found]) == (0x0000, [0xFF00])
    for keyword in (*computed, *level["ours"]):
        assert str(found[0][1][tag_of(keyword)].value) == expected.get(keyword, "1"), keyword


@pytest.mark.parametrize("model", CLAIMS["models"], ids=lambda model: str(model["name"]))
def test_a_model_has_the_levels_that_are_claimed_and_no_other(server: Ready, model: dict[str, Any]) -> None:
    claimed = {level["level"] for level in model["levels"]}
    with associated(server, model["uid"], RELATIONAL) as peer:
        for level, tag in UNIQUE.items():
            assert peer.ask(level, [(tag, "")])[0] == (0x0000 if level in claimed else 0xA900), level


PATIENT_ID, NAME, DATE, SEX, STUDY_UID = 0x00100020, 0x00100010, 0x00080020, 0x00100040, 0x0020000D


def items(*keys: Key) -> Items:
    item = Dataset()
    for tag, wanted in keys:
        item[tag] = DataElement(tag, vr(tag), wanted)
    return Items([item])


MATCHING: dict[str, list[tuple[Key, int]]] = {
    "single value": [((PATIENT_ID, "Text one"), 1), ((PATIENT_ID, "text one"), 0), ((NAME, "DOE^JANE"), 1)],
    "list of UIDs": [((STUDY_UID, [value(STUDY_UID, 0), value(STUDY_UID, 1), "1.2.3"]), 2)],
    "universal": [((PATIENT_ID, ""), 2), ((PATIENT_ID, "*"), 2), ((STUDY_UID, ""), 2)],
    "wild card": [((PATIENT_ID, "Text*"), 2), ((PATIENT_ID, "Text ?ne"), 1), ((NAME, "*^Jo?n"), 1)],
    "range": [
        ((DATE, "20240102-20240103"), 2),
        ((DATE, "20240103-"), 1),
        ((DATE, "-20240102"), 1),
        ((0x00080030, "1011-1012"), 1),
        ((0x0008002A, "20240102-20240102"), 1),
    ],
    "sequence": [((SCHEDULED, items((DESCRIPTION, "Text o*"))), 1), ((SCHEDULED, items()), 2)],
    "empty value (negotiated)": [((0x00104000, '""'), 2), ((PATIENT_ID, '""'), 0)],
    "multiple values (negotiated)": [((SEX, ["ONE", "TWO"]), 0), ((SEX, ["ONE", "ONE"]), 1)],
}
"""By the name of a claimed type of matching: keys, and how many of the two studies they find."""


@pytest.mark.parametrize("name", CLAIMS["matching"])
def test_every_claimed_type_of_matching_is_done(server: Ready, name: str) -> None:
    offered = EVERYTHING if "negotiated" in name else b""
    with associated(server, offered=offered) as peer:
        for key, count in MATCHING[name]:
            assert peer.count(key) == count, key


@pytest.mark.parametrize("relational", ["never", "negotiated", "always"])
def test_extended_negotiation_is_answered_as_claimed(tmp_path: Path, relational: str) -> None:
    claimed = statement(Settings(query={"relational": relational}))["query"]  # type: ignore[arg-type]
    expected = bytes(claimed["extended_negotiation"].values())
    with serving(tmp_path, SCP_SERVER_QUERY__RELATIONAL=relational) as ready:
        for model in claimed["models"]:
            for offered in (EVERYTHING, EVERYTHING[:2], bytes(3)):
                with associated(ready, model["uid"], offered) as peer:
                    assert peer.agreed == bytes(map(min, offered, expected)), (
                        "no more than offered, nor longer"
                    )


def test_what_was_negotiated_holds(server: Ready) -> None:
    """Combined date-time, fuzzy names and multiple values, each beside what holds without it."""
    span: list[Key] = [(DATE, "20240102-20240103"), (0x00080030, "11-12")]
    fuzzy: Key = (NAME, "jane doe")
    both: Key = (SEX, ["ONE", "TWO"])
    with associated(server) as peer:
        assert [peer.count(*span), peer.count(fuzzy), peer.count(both)] == [1, 0, 2]
    with associated(server, offered=EVERYTHING) as peer:
        assert [peer.count(*span), peer.count(fuzzy), peer.count(both)] == [1, 1, 0]


UNKNOWN_TO_PYDICOM = ("ISO_IR 203", "ISO 2022 IR 203")
"""`tests/unit/objects/test_text.py` compares their bytes."""


@pytest.mark.parametrize(
    "term", [each for each in CLAIMS["character_sets"] if each not in UNKNOWN_TO_PYDICOM]
)
def test_queries_may_be_in_every_claimed_character_set(server: Ready, term: str) -> None:
    character_set: object = ["", term] if term.startswith("ISO 2022") else term
    with associated(server) as peer:
        assert peer.count((0x00080005, character_set), (NAME, "Doe^J*")) == 1


def test_a_missing_extra_is_named_for_each_transfer_syntax_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frame_codecs, "find_spec", lambda name: None)
    given = {each["uid"]: each["how"] for each in statement(Settings())["retrieve"]["given_another"]}
    assert given["1.2.840.10008.1.2.4.50"] == f"not decoded: {frame_codecs.MISSING_EXTRA}"
    assert given["1.2.840.10008.1.2.5"] == "decoded as RLE"
    assert given[EXPLICIT.value] == "re-encoded"


def test_the_page_in_the_documentation_is_that_of_the_defaults() -> None:
    page = Path(__file__).parents[2] / "docs" / "conformance.md"
    assert page.read_text(encoding="utf-8") == markdown(statement(Settings()))
