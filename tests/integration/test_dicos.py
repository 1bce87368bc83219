"""What DICOS scanners send that other servers stumble over, against the whole server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scp_server import Server
from scp_server.objects.raw_header import RawHeader
from scp_server.testing import wire
from scp_server.testing.daemon import read_stored_file
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.dicos_objects import BAG, Scan, dicos_ct, dicos_dx, dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import Framing, ScriptedPeer, storage_contexts

Datasets = Callable[[], dict[str, list[bytes]]]
EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
SYNTAXES = [
    EXPLICIT,
    TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64,
    TransferSyntax.JPEG_LOSSLESS,
    TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.RLE_LOSSLESS,
]
"""The four that the toolkit's client offers, and the one that its files may have."""
NUMBER_OF_FRAMES = 0x00280008
FRAMINGS: list[Framing] = ["standard", "glued"]


async def _send(server: Server, *objects: EncodedObject, framing: Framing = "glued") -> list[int]:
    """The status of each, sent on one association as the toolkit's client does: ids from 0 in steps of 2."""
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(
            storage_contexts(*objects), application_context=wire.DICOS_V03_APPLICATION_CONTEXT
        )
        return [
            await peer.store(stored, framing=framing, message_id=2 * number)
            for number, stored in enumerate(objects)
        ]


def _with_dataset(stored: EncodedObject, dataset: bytes) -> EncodedObject:
    return dataclasses.replace(stored, dataset=dataset)


# --- what is kept


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name.lower())
async def test_every_transfer_syntax_is_kept_and_indexed_by_the_dicos_dictionary(
    server: Server, stored_datasets: Datasets, syntax: TransferSyntax, framing: Framing
) -> None:
    stored = dicos_ct(frames=5, transfer_syntax=syntax)
    assert await _send(server, stored, framing=framing) == [0x0000]
    assert stored_datasets() == {stored.sop_instance_uid: [stored.dataset]}
    (part,) = await server.index.parts(stored.sop_instance_uid)
    packed = await server.index.header(part.location)
    assert packed is not None
    header = RawHeader.unpack(packed)
    assert (header.vr(NUMBER_OF_FRAMES), header.value(NUMBER_OF_FRAMES)) == ("US", [5]), "IS in DICOM"


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(struct.pack("<HH2sxxI", 0x7FE0, 0x0011, b"OL", 64), id="32 bits"),
        pytest.param(struct.pack("<HH2sxxQ", 0x7FE0, 0x0012, b"OD", 64), id="64 bits"),
        pytest.param(struct.pack("<HH2sxxI", 0x7FE0, 0x0013, b"OF", 64), id="float"),
    ],
)
async def test_pixels_of_other_kinds_are_kept_whatever_way_their_length_is_written(
    server: Server, stored_datasets: Datasets, pixels: bytes
) -> None:
    ct = dicos_ct()
    stored = _with_dataset(ct, ct.dataset[: ct.dataset.index(b"\xe0\x7f\x10\0OW")] + pixels + bytes(64))
    assert await _send(server, stored) == [0x0000]
    assert stored_datasets() == {stored.sop_instance_uid: [stored.dataset]}


async def test_a_report_in_its_images_series_and_in_another_study_is_kept_and_says_what_it_is_about(
    server: Server, stored_datasets: Datasets
) -> None:
    image = dicos_ct()
    same_series = dicos_tdr(image)
    old, new = (_uid_element(one.series_instance_uid, 0x0020000E) for one in (same_series, image))
    assert old in same_series.dataset
    same_series = _with_dataset(same_series, same_series.dataset.replace(old, new))
    elsewhere = dicos_tdr(image, scan=Scan("BAG9999", "SCAN-9"))
    assert elsewhere.study_instance_uid != image.study_instance_uid
    objects = [image, same_series, elsewhere]
    assert await _send(server, *objects) == [0x0000] * 3
    assert stored_datasets() == {one.sop_instance_uid: [one.dataset] for one in objects}
    assert _rows(server, "SELECT count(*) FROM studies") == [(2,)]
    assert _rows(
        server,
        "SELECT sop_instance_uid FROM instance_references JOIN instances USING (instance_key) "
        "WHERE referenced_sop_instance_uid = ? ORDER BY 1",
        image.sop_instance_uid,
    ) == sorted((one.sop_instance_uid,) for one in (same_series, elsewhere))


async def test_an_object_of_inspection_without_a_name_is_indexed_by_its_id(server: Server) -> None:
    scans = [Scan("BAG1", "A"), Scan("BAG1", "B"), Scan("BAG2", "C")]
    assert await _send(server, *(dicos_dx(scan=scan) for scan in scans)) == [0x0000] * 3
    assert _rows(server, "SELECT patient_id, patient_name FROM patients ORDER BY 1") == [
        ("BAG1", None),
        ("BAG2", None),
    ]


def _uid_element(uid: str, tag: int) -> bytes:
    return DatasetEncoder(EXPLICIT).element(Element(tag, "UI", uid))


def _rows(server: Server, query: str, *parameters: str) -> list[tuple[Any, ...]]:
    path = server.settings.data_dir / "index" / "index.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute(query, parameters).fetchall()


# --- what is readable is kept, whatever else is wrong with it


def _only_identity(stored: EncodedObject) -> bytes:
    uids = {
        0x00080016: stored.sop_class_uid,
        0x00080018: stored.sop_instance_uid,
        0x0020000D: stored.study_instance_uid,
        0x0020000E: stored.series_instance_uid,
    }
    return DatasetEncoder(EXPLICIT).encode([Element(tag, "UI", uid) for tag, uid in uids.items()])


def _other_value(tag: int, vr: str, value: str) -> Callable[[EncodedObject], bytes]:
    """The data set with one more element, before all others of its kind; the first of a kind counts."""

    def change(stored: EncodedObject) -> bytes:
        element = DatasetEncoder(EXPLICIT).element(Element(tag, vr, value))
        at = stored.dataset.index(element[:6])
        length = struct.unpack_from("<H", stored.dataset, at + 6)[0]
        return stored.dataset[:at] + element + stored.dataset[at + 8 + length :]

    return change


@pytest.mark.parametrize(
    ("stored", "change"),
    [
        pytest.param(dicos_ct(), _only_identity, id="CT of four UIDs"),
        pytest.param(ct_image(), _only_identity, id="medical CT of four UIDs"),
        pytest.param(dicos_tdr(), _other_value(0x40101027, "CS", "BANANA"), id="unknown TDR type"),
        pytest.param(dicos_tdr(), _other_value(0x00080060, "CS", "CT"), id="wrong modality"),
        pytest.param(dicos_tdr(), _other_value(0x4010102B, "DT", "yesterday"), id="no date"),
        pytest.param(dicos_ct(), _other_value(0x4010103A, "CS", "V04"), id="unknown version"),
        pytest.param(ct_image(), _other_value(0x00080020, "DA", "20261399"), id="impossible date"),
        pytest.param(ct_image(), _other_value(0x00200013, "IS", "first"), id="no number"),
    ],
)
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_what_is_readable_and_wrong_by_its_iod_is_kept_with_0000(
    server: Server,
    stored_datasets: Datasets,
    stored: EncodedObject,
    change: Callable[[EncodedObject], bytes],
    framing: Framing,
) -> None:
    wrong = _with_dataset(stored, change(stored))
    assert wrong.dataset != stored.dataset
    assert await _send(server, wrong, framing=framing) == [0x0000]
    assert stored_datasets() == {wrong.sop_instance_uid: [wrong.dataset]}
    assert (await server.index.totals()).parts == 1


# --- what is unreadable is refused, for DICOS too


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize(
    ("change", "status"),
    [
        pytest.param(lambda dataset: dataset[:-1], 0xC000, id="cut in the pixels"),
        pytest.param(lambda dataset: dataset[:200], 0xC000, id="cut in the header"),
        pytest.param(lambda dataset: b"\xff" * 1500, 0xC000, id="garbage"),
        pytest.param(
            lambda dataset: dataset.replace(_uid_element(BAG.study_instance_uid, 0x0020000D), b""),
            0xC000,
            id="no study",
        ),
        pytest.param(
            lambda dataset: dataset.replace(
                _uid_element(BAG.study_instance_uid, 0x0020000D), _uid_element("../../etc", 0x0020000D)
            ),
            0xC000,
            id="a study UID that is none",
        ),
        pytest.param(lambda dataset: dicos_dx().dataset, 0xA900, id="another object"),
    ],
)
async def test_an_unreadable_dicos_object_is_refused_and_quarantined_byte_for_byte(
    server: Server,
    stored_datasets: Datasets,
    tmp_path: Path,
    change: Callable[[bytes], bytes],
    status: int,
    framing: Framing,
) -> None:
    image = dicos_ct()
    wrong = _with_dataset(image, change(image.dataset))
    assert wrong.dataset != image.dataset
    assert await _send(server, wrong, image, framing=framing) == [status, 0x0000]
    assert stored_datasets() == {image.sop_instance_uid: [image.dataset]}
    (kept,) = (tmp_path / "data" / "quarantine").glob("*.quarantine")
    assert read_stored_file(kept).dataset == wrong.dataset
    assert json.loads(kept.with_suffix(".json").read_bytes())["status"] == status
