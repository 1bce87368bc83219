"""One object on its way in: what is held of it, when its file is begun, and what File Meta says."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_server.objects.part10 import read_file_meta
from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.testing.dicos_objects import dicos_ct, dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_operation import PRESSURE, cut, store_operation
from scp_server.testing.objects import ct_image, encapsulated_pdf
from scp_server.testing.storage_bench import StorageBench

HEADER_BUFFER_BYTES = 4_096
WRITE_BUFFER_BYTES = 16_384


def _on_disk(folder: Path) -> StorageBench:
    storage = FilesystemStorage(
        FilesystemStorageConfig(
            folder, Durability.PROCESS, reserve_bytes=0, write_buffer_bytes=WRITE_BUFFER_BYTES
        )
    )
    return StorageBench(folder, storage, header_buffer_bytes=HEADER_BUFFER_BYTES)


def _with_large_header(stored: EncodedObject, size_bytes: int) -> EncodedObject:
    """The same object with a private value before its patient, as masks and documents are."""
    value = struct.pack("<HH2sxxI", 0x0009, 0x1001, b"OB", size_bytes) + bytes(size_bytes)
    at = stored.dataset.index(b"\x10\x00\x20\x00LO")
    return dataclasses.replace(stored, dataset=stored.dataset[:at] + value + stored.dataset[at:])


@pytest.mark.parametrize("step_bytes", [1_000, 5_000, 40_000, 10_000_000])
@pytest.mark.parametrize(
    "stored",
    [ct_image(rows=256, columns=256), encapsulated_pdf(document_bytes=100_000), dicos_ct(), dicos_tdr()],
    ids=lambda stored: stored.sop_class_uid.rpartition("1.1.")[2],
)
async def test_everything_received_is_released_once_and_little_is_held(
    tmp_path: Path, stored: EncodedObject, step_bytes: int
) -> None:
    operation = store_operation(stored, cut(stored.dataset, step_bytes))
    async with _on_disk(tmp_path) as bench:
        assert await bench.status(operation) == 0x0000
    dataset = operation.dataset
    assert dataset.received_bytes == dataset.released_bytes == len(stored.dataset)
    assert dataset.peak_bytes <= HEADER_BUFFER_BYTES + WRITE_BUFFER_BYTES + dataset.largest_step_bytes


@settings(max_examples=25)
@given(st.data())
async def test_pressure_anywhere_and_any_cuts_change_nothing_of_what_is_kept(data: st.DataObject) -> None:
    stored = _with_large_header(dicos_tdr(), data.draw(st.sampled_from([10, 6_000])))
    places = data.draw(st.lists(st.integers(0, len(stored.dataset)), max_size=8).map(sorted))
    steps: list[list[bytes] | tuple[()]] = []
    for start, end in zip([0, *places], [*places, len(stored.dataset)], strict=True):
        steps.append([stored.dataset[start:end]])
        if data.draw(st.booleans()):
            steps.append(PRESSURE)
    operation = store_operation(stored, steps)
    with TemporaryDirectory() as folder:
        async with StorageBench(Path(folder), header_buffer_bytes=HEADER_BUFFER_BYTES) as bench:
            assert await bench.status(operation) == 0x0000
            ((location, kept),) = bench.place.objects.items()
            (part,) = await bench.index.parts(stored.sop_instance_uid)
    meta = read_file_meta(kept)
    assert kept[meta.dataset_offset_bytes :] == stored.dataset
    assert (meta.dicos_version, part.location) == ("V03", location)
    assert operation.dataset.held_bytes == 0


async def test_a_small_header_is_waited_for_before_anything_is_begun(bench: StorageBench) -> None:
    stored = ct_image()
    at = stored.dataset.index(b"\xe0\x7f\x10\x00")
    steps = [[stored.dataset[:100]], [stored.dataset[100:at]], [stored.dataset[at:]]]
    operation = store_operation(stored, steps)
    begun: list[int] = []
    operation.dataset.before_step = lambda: begun.append(len(bench.steps.log))
    assert await bench.status(operation) == 0x0000
    assert begun == [0, 0, 0]
    assert bench.steps.log[:2] == ["begin", "write"]


async def test_under_pressure_a_file_is_begun_without_the_header_and_nothing_is_held(tmp_path: Path) -> None:
    stored = dicos_tdr()
    operation = store_operation(stored, [[stored.dataset[:300]], PRESSURE, [stored.dataset[300:]]])
    dataset = operation.dataset
    held: list[int] = []
    dataset.before_step = lambda: held.append(dataset.held_bytes)
    async with _on_disk(tmp_path) as bench:
        assert await bench.status(operation) == 0x0000
        assert bench.steps.log[:3] == ["begin", "write", "flush"]
        assert bench.steps.log[3:6] == ["write", "patch", "commit"]
    assert held == [0, 300, 0]


async def test_pressure_before_the_first_byte_does_no_harm(bench: StorageBench) -> None:
    stored = ct_image()
    assert await bench.status(store_operation(stored, [PRESSURE, [stored.dataset], PRESSURE])) == 0x0000


async def test_a_header_larger_than_its_buffer_is_staged_and_its_version_patched(tmp_path: Path) -> None:
    stored = _with_large_header(dicos_tdr(), 50_000)
    async with _on_disk(tmp_path) as bench:
        assert await bench.status(store_operation(stored, cut(stored.dataset, 3_000))) == 0x0000
        assert bench.steps.log[-6:-4] == ["patch", "commit"]
        (part,) = await bench.index.parts(stored.sop_instance_uid)
    file = (tmp_path / part.location).read_bytes()
    meta = read_file_meta(file)
    assert meta.dicos_version == "V03"
    assert file[meta.dataset_offset_bytes :] == stored.dataset


async def test_an_object_that_is_not_dicos_is_staged_without_a_version(tmp_path: Path) -> None:
    stored = _with_large_header(ct_image(), 50_000)
    async with _on_disk(tmp_path) as bench:
        assert await bench.status(store_operation(stored, cut(stored.dataset, 3_000))) == 0x0000
        assert "patch" not in bench.steps.log
        (part,) = await bench.index.parts(stored.sop_instance_uid)
    file = (tmp_path / part.location).read_bytes()
    assert b"\x02\x00\x04\x00CS" not in file[:1_000]
    assert file.endswith(stored.dataset)


async def test_staged_or_not_the_identity_of_the_bytes_is_the_same(tmp_path: Path) -> None:
    stored = dicos_tdr()
    async with StorageBench(tmp_path) as bench:
        assert await bench.status(store_operation(stored)) == 0x0000
        staged = store_operation(stored, [[stored.dataset[:300]], PRESSURE, [stored.dataset[300:]]])
        assert await bench.status(staged) == 0x0000
        assert len(await bench.index.parts(stored.sop_instance_uid)) == 1
        assert len(bench.place.objects) == 1


@pytest.mark.parametrize(("surplus", "status"), [(None, 0x0000), (-1, 0xA700), (0, 0x0000)])
async def test_the_largest_object_is_the_configured_one(
    tmp_path: Path, surplus: int | None, status: int
) -> None:
    stored = ct_image()
    limit = 0 if surplus is None else len(stored.dataset) + surplus
    async with StorageBench(tmp_path, max_object_bytes=limit) as bench:
        assert await bench.status(store_operation(stored, cut(stored.dataset, 999))) == status
        if status:
            await bench.nothing_is_left()


async def test_a_refusal_is_known_as_soon_as_the_header_is(bench: StorageBench) -> None:
    stored = dataclasses.replace(ct_image(rows=512, columns=512), sop_instance_uid="1.2.3")
    operation = store_operation(stored, cut(stored.dataset, 10_000))
    assert (await bench.refusal(operation)).status == 0xA900
    assert operation.dataset.received_bytes == 10_000
    assert "begin" not in bench.steps.log
