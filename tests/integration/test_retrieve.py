"""C-GET and C-MOVE from a whole server: everything comes back as it was, or arrives elsewhere."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from scp_server import Requestor, Server
from scp_server.errors import RetrieveFailed
from scp_server.interfaces import AcceptedContext
from scp_server.net.receiving import ObjectSinkWriter
from scp_server.net.retrieving import RetrieveResult
from scp_server.objects.part10 import read_file_meta
from scp_server.protocol.message import VERIFICATION_SOP_CLASS_UID, CStoreRQ
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_dx, dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.objects import ct_image, structured_report
from tests.integration.conftest import StartServer

STUDY_GET, STUDY_MOVE = "1.2.840.10008.5.1.4.1.2.2.3", "1.2.840.10008.5.1.4.1.2.2.2"
EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN.value
RETRIEVES = [(STUDY_GET, [EXPLICIT]), (VERIFICATION_SOP_CLASS_UID, [EXPLICIT])]
STUDY = make_uid("study")


class Memory:
    """A sink that keeps data sets in the order in which they come; `answer` may refuse or wait."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str, bytes]] = []
        self.before_commit: Callable[[], Any] | None = None

    async def begin(self, request: CStoreRQ, context: AcceptedContext) -> ObjectSinkWriter:
        return _Writer(self, request, context)


class _Writer:
    def __init__(self, memory: Memory, request: CStoreRQ, context: AcceptedContext) -> None:
        self._memory = memory
        self._request = request
        self._context = context
        self._pieces: list[bytes] = []

    async def write(self, chunks: Sequence[memoryview]) -> None:
        self._pieces += map(bytes, chunks)

    async def commit(self) -> None:
        if self._memory.before_commit is not None:
            await self._memory.before_commit()
        whole = b"".join(self._pieces)
        uid, syntax = self._request.affected_sop_instance_uid, self._context.transfer_syntax
        self._memory.received.append((uid, syntax, whole))

    async def abort(self) -> None: ...


async def store(server: Server, objects: Sequence[EncodedObject]) -> None:
    kinds = dict.fromkeys((each.sop_class_uid, (each.transfer_syntax_uid,)) for each in objects)
    async with Requestor(*server.address, contexts=list(kinds)) as association:
        for each in objects:
            result = await association.store(
                each.sop_class_uid, each.sop_instance_uid, each.transfer_syntax_uid, _pieces(each.dataset)
            )
            assert result.status == 0x0000


async def _pieces(dataset: bytes) -> AsyncIterator[bytes]:
    yield dataset


def receiving(server: Server, objects: Sequence[EncodedObject]) -> Requestor:
    """An association that takes objects of these kinds back as they are."""
    kinds = dict.fromkeys((each.sop_class_uid, (each.transfer_syntax_uid,)) for each in objects)
    return Requestor(*server.address, contexts=RETRIEVES, receives=list(kinds))


async def get(association: Requestor, sink: Memory, query: Mapping[str, object]) -> RetrieveResult:
    getting = association.get(query, receive=sink)
    async for _ in getting:
        pass
    assert getting.result is not None
    return getting.result


def told(result: RetrieveResult) -> tuple[int | None, int | None, int | None, int | None]:
    progress = result.counters
    return result.status, progress.completed, progress.failed, progress.warning


async def test_every_object_comes_back_byte_for_byte(server: Server) -> None:
    """PS3.4 C.4.3.3.1."""
    objects = [
        *(
            ct_image(seed=n, study_instance_uid=STUDY, transfer_syntax=syntax, sequences=True, private=True)
            for n, syntax in enumerate(TransferSyntax)
        ),
        structured_report(study_instance_uid=STUDY),
    ]
    await store(server, objects)
    sink = Memory()
    async with receiving(server, objects) as association:
        result = await get(association, sink, {"StudyInstanceUID": STUDY})
    assert told(result) == (0x0000, len(objects), 0, 0)
    assert sink.received == [
        (each.sop_instance_uid, each.transfer_syntax_uid, each.dataset) for each in objects
    ]


async def test_whoever_takes_one_transfer_syntax_only_gets_all_that_can_be_given_it(server: Server) -> None:
    uncompressed = [each for each in TransferSyntax if not each.is_encapsulated]
    syntaxes = [*uncompressed, TransferSyntax.RLE_LOSSLESS, TransferSyntax.JPEG_LOSSLESS]
    objects = [
        ct_image(seed=n, study_instance_uid=STUDY, transfer_syntax=each) for n, each in enumerate(syntaxes)
    ]
    await store(server, objects)
    for wanted in uncompressed:
        sink = Memory()
        takes = [(objects[0].sop_class_uid, (wanted.value,))]
        async with Requestor(*server.address, contexts=RETRIEVES, receives=takes) as association:
            result = await get(association, sink, {"StudyInstanceUID": STUDY})
        # The last one's pixels only look like JPEG, which its decoder finds out before anything is sent.
        assert told(result) == (0xB000, len(objects) - 1, 1, 0)
        assert {syntax for _, syntax, _ in sink.received} == {wanted.value}
        for n, (_, _, dataset) in enumerate(sink.received):
            both = [dataset, ct_image(seed=n, study_instance_uid=STUDY, transfer_syntax=wanted).dataset]
            if wanted is TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
                both = [zlib.decompress(each, -zlib.MAX_WBITS) for each in both]
            assert both[0] == both[1]


async def test_dicos_objects_and_both_sections_of_a_ct_come_back(server: Server) -> None:
    first, second = two_section_ct()
    objects = [first, second, dicos_dx(), dicos_tdr(first)]
    await store(server, objects)
    sink = Memory()
    async with receiving(server, objects) as association:
        result = await get(association, sink, {"StudyInstanceUID": first.study_instance_uid})
    assert told(result) == (0x0000, 4, 0, 0)
    assert [dataset for _, _, dataset in sink.received] == [each.dataset for each in objects]


async def test_objects_without_a_granted_role_or_context_fail_and_are_named(server: Server) -> None:
    plain = ct_image(seed=1, study_instance_uid=STUDY)
    report = structured_report(study_instance_uid=STUDY)
    await store(server, [plain, report])
    sink = Memory()
    async with receiving(server, [plain]) as association:
        result = await get(association, sink, {"StudyInstanceUID": STUDY})
    assert told(result) == (0xB000, 1, 1, 0)
    assert result.failed_sop_instance_uids == (report.sop_instance_uid,)
    async with Requestor(
        *server.address, contexts=[*RETRIEVES, (plain.sop_class_uid, [plain.transfer_syntax_uid])]
    ) as association:
        with pytest.raises(RetrieveFailed) as failure:
            await get(association, sink, {"StudyInstanceUID": STUDY})
    assert failure.value.status == 0xA702


async def test_a_cancelled_get_ends_after_the_object_in_hand(start_server: StartServer) -> None:
    server = await start_server(retrieve={"pending_seconds": 0.05})
    objects = [ct_image(seed=n, study_instance_uid=STUDY) for n in range(20)]
    await store(server, objects)
    sink, go_on = Memory(), asyncio.Event()

    async def hold_the_third() -> None:
        if len(sink.received) == 2:
            await go_on.wait()

    sink.before_commit = hold_the_third
    async with receiving(server, objects) as association:
        getting = association.get({"StudyInstanceUID": STUDY}, receive=sink)
        async for progress in getting:
            assert progress.total == 20
            if progress.completed == 2:
                break
        asyncio.get_running_loop().call_soon(go_on.set)
        await getting.aclose()
        assert getting.result is not None
        assert told(getting.result) == (0xFE00, 3, 0, 0)
        assert getting.result.counters.remaining == 17
        assert await association.echo() == 0x0000
    assert [uid for uid, _, _ in sink.received] == [each.sop_instance_uid for each in objects[:3]]


async def test_everything_arrives_at_another_server_byte_for_byte(
    start_server: StartServer, tmp_path: Path
) -> None:
    """PS3.4 C.4.2.3.1."""
    first, second = two_section_ct()
    slices = [
        ct_image(seed=n, study_instance_uid=first.study_instance_uid, transfer_syntax=syntax)
        for n, syntax in enumerate(TransferSyntax)
    ]
    objects = [first, second, dicos_dx(), dicos_tdr(first), *slices]
    destination = await start_server(data_dir=tmp_path / "destination", listen={"ae_title": "DEST"})
    host, port = destination.address
    remote = {"ae_title": "DEST", "host": host, "port": port}
    server = await start_server(remotes=[remote], retrieve={"associations": 3})
    await store(server, objects)
    contexts = [(STUDY_MOVE, [EXPLICIT])]
    async with Requestor(*server.address, contexts=contexts) as association:
        moving = association.move({"StudyInstanceUID": first.study_instance_uid}, destination="DEST")
        async for _ in moving:
            pass
    assert moving.result is not None
    assert told(moving.result) == (0x0000, len(objects), 0, 0)
    kept = [path.read_bytes() for path in (tmp_path / "destination" / "objects").rglob("*.dcm")]
    datasets = sorted(data[read_file_meta(data).dataset_offset_bytes :] for data in kept)
    assert datasets == sorted(each.dataset for each in objects)


async def test_an_unknown_destination_is_a801(server: Server) -> None:
    contexts = [(STUDY_MOVE, [EXPLICIT])]
    async with Requestor(*server.address, contexts=contexts) as association:
        moving = association.move({"StudyInstanceUID": STUDY}, destination="NOBODY")
        with pytest.raises(RetrieveFailed) as failure:
            async for _ in moving:
                pass
    assert failure.value.status == 0xA801


async def test_a_file_that_is_gone_costs_only_its_own_sub_operation(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(index={"compare_at_start": False})
    objects = [ct_image(seed=n, study_instance_uid=STUDY) for n in range(3)]
    await store(server, objects)
    (part,) = await server._index.parts(objects[1].sop_instance_uid)
    (tmp_path / "data" / part.location).unlink()
    sink = Memory()
    async with receiving(server, objects) as association:
        result = await get(association, sink, {"StudyInstanceUID": STUDY})
        assert await association.echo() == 0x0000
    assert told(result) == (0xB000, 2, 1, 0)
    assert result.failed_sop_instance_uids == (objects[1].sop_instance_uid,)


async def test_objects_of_several_pieces_come_back_between_small_ones(server: Server) -> None:
    objects = [
        ct_image(seed=n, rows=side, columns=side, study_instance_uid=STUDY)
        for n, side in enumerate((1024, 8, 1500, 8))
    ]
    await store(server, objects)
    sink = Memory()
    async with receiving(server, objects) as association:
        result = await get(association, sink, {"StudyInstanceUID": STUDY})
    assert told(result) == (0x0000, 4, 0, 0)
    assert [dataset for _, _, dataset in sink.received] == [each.dataset for each in objects]
