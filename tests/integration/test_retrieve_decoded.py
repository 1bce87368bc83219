"""The daemon gives whoever takes implicit VR only what it keeps compressed, and outlives its decoders."""

from __future__ import annotations

import os
import select
import signal
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from pydicom import FileDataset, dcmread
from pydicom.pixels.utils import pixel_array

from scp_server import Requestor
from scp_server.errors import RetrieveFailed
from scp_server.net.retrieving import Retrieval, RetrieveResult
from scp_server.protocol.message import VERIFICATION_SOP_CLASS_UID
from scp_server.storage.received_folder import ReceivedFolder
from scp_server.testing.compressed_objects import (
    BASELINE,
    EXTENDED,
    HTJ2K,
    J2K,
    LOSSLESS_SV1,
    LS,
    RLE,
    Pixels,
    compressed_ct,
    encode,
    noise,
    rle_colour_frame,
    smooth,
)
from scp_server.testing.daemon import DaemonProcess, stored_files
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_ct
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.objects import CT_IMAGE_STORAGE, ct_image
from tests.integration.conftest import StartServer

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
STUDY_GET, STUDY_MOVE = "1.2.840.10008.5.1.4.1.2.2.3", "1.2.840.10008.5.1.4.1.2.2.2"
ASKS = [(uid, [EXPLICIT]) for uid in (STUDY_GET, STUDY_MOVE, VERIFICATION_SOP_CLASS_UID)]
STUDY = make_uid("decoded study")
END_SECONDS = 10

Address = tuple[str, int]


def made(
    syntax: str, frames: Sequence[Pixels], bits: int = 8, photometric: str = "MONOCHROME2"
) -> EncodedObject:
    """One of the study, its frames encoded."""
    is_rle_colour = syntax == RLE and frames[0].ndim == 3
    encoded = [rle_colour_frame(each) if is_rle_colour else encode(syntax, each, bits) for each in frames]
    return compressed_ct(
        syntax, frames, encoded, bits=bits, photometric=photometric, study_instance_uid=STUDY
    )


def broken(syntax: str, encoded: bytes) -> EncodedObject:
    """One of the study whose only frame nobody can decode."""
    return compressed_ct(syntax, [noise(8, 8)], [encoded], study_instance_uid=STUDY)


async def store(address: Address, objects: Sequence[EncodedObject]) -> None:
    kinds = dict.fromkeys((each.sop_class_uid, (each.transfer_syntax_uid,)) for each in objects)
    async with Requestor(*address, contexts=list(kinds)) as association:
        for each in objects:
            result = await association.store(
                each.sop_class_uid, each.sop_instance_uid, each.transfer_syntax_uid, pieces(each.dataset)
            )
            assert result.status == 0x0000


async def pieces(dataset: bytes) -> AsyncIterator[bytes]:
    yield dataset


def address_of(daemon: DaemonProcess) -> Address:
    return daemon.ready.dicom_host, daemon.ready.dicom_port


def taking(address: Address, *sop_classes: str) -> Requestor:
    """An association that takes objects in implicit VR little endian only."""
    receives = [(uid, (IMPLICIT,)) for uid in (sop_classes or (CT_IMAGE_STORAGE,))]
    return Requestor(*address, contexts=ASKS, receives=receives)


async def ended(retrieval: Retrieval) -> RetrieveResult:
    with suppress(RetrieveFailed):
        async for _ in retrieval:
            pass
    assert retrieval.result is not None
    return retrieval.result


async def get(
    association: Requestor, folder: Path, query: Mapping[str, object]
) -> tuple[RetrieveResult, dict[str, FileDataset]]:
    """How a C-GET ended, and what it brought by SOP Instance UID, as pydicom reads it."""
    with ReceivedFolder(folder) as sink:
        result = await ended(association.get(query, receive=sink))
    files = {path.stem: dcmread(path) for path in folder.glob("*.dcm")}
    assert {each.file_meta.TransferSyntaxUID for each in files.values()} <= {IMPLICIT}
    return result, files


def told(result: RetrieveResult) -> tuple[int | None, int | None, int | None]:
    return result.status, result.counters.completed, result.counters.failed


def decoders(daemon: DaemonProcess) -> list[int]:
    """The process ids of the daemon's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, in parentheses, may have spaces.
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == daemon.ready.pid and state != "Z":
                found.append(int(path.parent.name))
    return found


def has_ended(descriptor: int) -> bool:
    """Whether the process of this pidfd ends soon."""
    return bool(select.select([descriptor], [], [], END_SECONDS)[0])


KINDS: list[tuple[str, Sequence[Pixels], int, str, str]] = [
    (RLE, [noise(16, 20, bits=16, seed=n) for n in range(3)], 16, "MONOCHROME2", "MONOCHROME2"),
    (RLE, [noise(9, 7, 3)], 8, "RGB", "RGB"),
    (J2K, [noise(16, 20, bits=12)], 12, "MONOCHROME2", "MONOCHROME2"),
    (J2K, [noise(9, 7, 3, seed=n) for n in range(2)], 8, "YBR_RCT", "RGB"),
    (HTJ2K, [noise(16, 20, bits=16)], 16, "MONOCHROME1", "MONOCHROME1"),
    (LS, [noise(16, 20, bits=16, seed=n) for n in range(2)], 16, "MONOCHROME2", "MONOCHROME2"),
    (LS, [noise(9, 7, 3)], 8, "YBR_FULL", "YBR_FULL"),
    (LOSSLESS_SV1, [noise(16, 20, bits=16)], 16, "MONOCHROME2", "MONOCHROME2"),
    (BASELINE, [smooth(16, 20)], 8, "MONOCHROME2", "MONOCHROME2"),
    (BASELINE, [smooth(16, 20, 3)], 8, "YBR_FULL_422", "RGB"),
    (EXTENDED, [smooth(16, 20, bits=12)], 12, "MONOCHROME2", "MONOCHROME2"),
]


def as_read(sent: EncodedObject) -> FileDataset:
    return dcmread(BytesIO(sent.part10()))


def wanted_pixels(syntax: str, frames: Sequence[Pixels], bits: int) -> np.ndarray[Any, Any]:
    """What decoding gives: for lossy JPEG what libjpeg makes of it, otherwise what was encoded."""
    if syntax in (BASELINE, EXTENDED):
        frames = [imagecodecs.jpeg8_decode(encode(syntax, each, bits)) for each in frames]
    return np.stack(frames) if len(frames) > 1 else frames[0]


async def test_whoever_takes_implicit_vr_only_gets_compressed_objects_pixel_for_pixel(tmp_path: Path) -> None:
    objects = [made(syntax, frames, bits, before) for syntax, frames, bits, before, _ in KINDS]
    with DaemonProcess(tmp_path / "data") as daemon:
        await store(address_of(daemon), objects)
        async with taking(address_of(daemon)) as association:
            result, found = await get(association, tmp_path / "out", {"StudyInstanceUID": STUDY})
        assert told(result) == (0x0000, len(KINDS), 0)
        for sent, (syntax, frames, bits, _, after) in zip(objects, KINDS, strict=True):
            one = found[sent.sop_instance_uid]
            assert np.array_equal(pixel_array(one, raw=True), wanted_pixels(syntax, frames, bits))
            assert one.PhotometricInterpretation == after
            assert (one.BitsStored, one.HighBit) == (bits, bits - 1)
            assert one.get("PlanarConfiguration") == (0 if one.SamplesPerPixel == 3 else None)
            assert one.get("LossyImageCompression") == ("01" if syntax in (BASELINE, EXTENDED) else None)
        assert not daemon.log_records("codecs.missing")
        (decoder,) = decoders(daemon)
        descriptor = os.pidfd_open(decoder)
    assert has_ended(descriptor), "SIGTERM leaves a decoder"
    os.close(descriptor)


async def test_uncompressed_and_dicos_objects_are_given_implicit_vr(tmp_path: Path) -> None:
    syntaxes = (
        TransferSyntax.EXPLICIT_VR_BIG_ENDIAN,
        TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
        TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64,
    )
    objects = [
        ct_image(seed=n, study_instance_uid=STUDY, transfer_syntax=each) for n, each in enumerate(syntaxes)
    ]
    dicos = [dicos_ct(transfer_syntax=each) for each in (TransferSyntax.RLE_LOSSLESS, syntaxes[-1])]
    wanted = as_read(dicos_ct()).PixelData
    with DaemonProcess(tmp_path / "data") as daemon:
        await store(address_of(daemon), [*objects, *dicos])
        async with taking(address_of(daemon), CT_IMAGE_STORAGE, dicos[0].sop_class_uid) as association:
            result, found = await get(association, tmp_path / "out", {"StudyInstanceUID": STUDY})
            assert told(result) == (0x0000, len(objects), 0)
            for n, sent in enumerate(objects):
                one = found[sent.sop_instance_uid]
                assert one.PixelData == as_read(ct_image(seed=n, study_instance_uid=STUDY)).PixelData
            query = {"StudyInstanceUID": dicos[0].study_instance_uid}
            result, found = await get(association, tmp_path / "dicos", query)
    # Two parts of one instance, which are the same bytes once they are decoded and re-encoded.
    assert told(result) == (0x0000, 2, 0)
    assert {each.PixelData for each in found.values()} == {wanted}


async def test_a_move_destination_that_takes_implicit_vr_only_gets_decoded_objects(tmp_path: Path) -> None:
    narrow = {"SCP_SERVER_NEGOTIATION__TRANSFER_SYNTAXES": '["ImplicitVRLittleEndian"]'}
    frames = [noise(16, 20, bits=12, seed=n) for n in range(2)]
    with DaemonProcess(tmp_path / "viewer", environment=narrow) as viewer:
        host, port = address_of(viewer)
        with DaemonProcess(tmp_path / "data", "--remote", f"VIEWER={host}:{port}") as daemon:
            await store(
                address_of(daemon), [made(J2K, frames, 12), broken(J2K, b"\xff\x4f\xff\x51" + bytes(60))]
            )
            async with Requestor(*address_of(daemon), contexts=ASKS) as association:
                query = {"StudyInstanceUID": STUDY}
                result = await ended(association.move(query, destination="VIEWER"))
        assert told(result) == (0xB000, 1, 1)
        (stored,) = stored_files(tmp_path / "viewer")
    assert stored.transfer_syntax_uid == IMPLICIT
    assert np.array_equal(dcmread(stored.path).pixel_array, np.stack(frames))


def hostile() -> list[EncodedObject]:
    """Frames that are garbage, cut, bombs, or not what they are said to be."""
    good = encode(J2K, noise(8, 8), 8)
    # 60 000 by 60 000 pixels, which would be gigabytes.
    bomb = good[:8] + struct.pack(">II", 60_000, 60_000) + good[16:]
    return [
        broken(J2K, good[:60]),
        broken(J2K, bomb),
        broken(LS, b"\xff\xd8" + bytes(range(256)) * 40),
        broken(LS, encode(LS, noise(8, 8), 8)[:30]),
        broken(BASELINE, encode(LOSSLESS_SV1, noise(8, 8), 8)),
        broken(RLE, struct.pack("<16I", 1, 64, *[0] * 14) + b"\x80" * 1000),
        broken("1.2.840.10008.1.2.4.100", b"\0\0\1\xb3" + bytes(100)),
    ]


async def test_frames_that_nobody_can_decode_are_failed_sub_operations_and_harm_nothing_else(
    tmp_path: Path,
) -> None:
    bad, good = hostile(), made(LS, [noise(16, 20)])
    with DaemonProcess(tmp_path / "data") as daemon:
        await store(address_of(daemon), [*bad, good])
        async with taking(address_of(daemon)) as association:
            for _ in range(2):
                result, found = await get(association, tmp_path / "out", {"StudyInstanceUID": STUDY})
                assert told(result) == (0xB000, 1, len(bad))
                assert sorted(result.failed_sop_instance_uids) == sorted(
                    each.sop_instance_uid for each in bad
                )
                assert list(found) == [good.sop_instance_uid]
            assert await association.echo() == 0x0000
        failures = daemon.log_records("suboperation.failed")
        problems = {record["problem"] for record in failures}
        assert problems == {
            "the object cannot be given a transfer syntax that was accepted",
            "no presentation context that it can be sent on",
        }
        assert not daemon.log_records("suboperation.crashed")


async def test_a_decoder_that_hangs_is_killed_and_costs_one_object(tmp_path: Path) -> None:
    objects = [made(LS, [noise(16, 20, seed=n)]) for n in range(2)]
    quick = {"SCP_SERVER_CODECS__FRAME_SECONDS": "2"}
    with DaemonProcess(tmp_path / "data", environment=quick) as daemon:
        await store(address_of(daemon), objects)
        async with taking(address_of(daemon)) as association:
            query = {"StudyInstanceUID": STUDY}
            assert told((await get(association, tmp_path / "1", query))[0]) == (0x0000, 2, 0)
            (decoder,) = decoders(daemon)
            descriptor = os.pidfd_open(decoder)
            os.kill(decoder, signal.SIGSTOP)
            assert told((await get(association, tmp_path / "2", query))[0]) == (0xB000, 1, 1)
            assert has_ended(descriptor)
            os.close(descriptor)
            assert told((await get(association, tmp_path / "3", query))[0]) == (0x0000, 2, 0)
            assert decoders(daemon) != [decoder]


async def test_what_is_kept_compressed_is_decoded_after_a_reload_too(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server()
    retrieve = server.settings.retrieve.model_copy(update={"pending_seconds": 1.0})
    assert server.reload(server.settings.model_copy(update={"retrieve": retrieve}))
    frame = noise(16, 20)
    one = made(LS, [frame])
    await store(server.address, [one])
    async with taking(server.address) as association:
        result, found = await get(association, tmp_path / "out", {"StudyInstanceUID": STUDY})
    assert told(result) == (0x0000, 1, 0)
    assert np.array_equal(found[one.sop_instance_uid].pixel_array, frame)


async def test_a_killed_daemon_leaves_no_decoder_not_even_one_that_hangs(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "data") as daemon:
        await store(address_of(daemon), [made(LS, [noise(16, 20)])])
        async with taking(address_of(daemon)) as association:
            await get(association, tmp_path / "out", {"StudyInstanceUID": STUDY})
        (decoder,) = decoders(daemon)
        descriptor = os.pidfd_open(decoder)
        # It never comes to read that its input has ended.
        os.kill(decoder, signal.SIGSTOP)
        daemon.kill()
        assert has_ended(descriptor)
        os.close(descriptor)
