"""Refused data sets, against the whole server: kept byte for byte, bounded, released, dropped."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from scp_server import Server
from scp_server.observability.logs import captured_logs
from scp_server.testing import wire
from scp_server.testing.daemon import DaemonProcess, read_stored_file
from scp_server.testing.dicos_objects import dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image, large_ct, structured_report
from scp_server.testing.process_usage import ProcessUsage
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from scp_server.testing.wire import PDV, Control

StartServer = Callable[..., Awaitable[Server]]
Datasets = Callable[[], dict[str, list[bytes]]]
MIB = 1 << 20


def _with_dataset(stored: EncodedObject, dataset: bytes) -> EncodedObject:
    return dataclasses.replace(stored, dataset=dataset)


def _other_bytes(stored: EncodedObject) -> EncodedObject:
    return _with_dataset(stored, stored.dataset[:-2] + b"\xaa\xbb")


async def _send(server: Server, *objects: EncodedObject) -> list[int]:
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(
            storage_contexts(*objects), calling_ae_title="SCANNER7", called_ae_title="ARCHIVE"
        )
        return [await peer.store(stored, message_id=2 * number) for number, stored in enumerate(objects)]


def _names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "data" / "quarantine").iterdir())


def _kept(tmp_path: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Record and data set of every object in quarantine, in order of arrival, read without the product."""
    found = []
    for path in sorted((tmp_path / "data" / "quarantine").glob("*.quarantine")):
        record = json.loads(path.with_suffix(".json").read_bytes())
        assert read_stored_file(path).dataset == path.read_bytes()[record["dataset_offset_bytes"] :]
        found.append((record, read_stored_file(path).dataset))
    return found


def _strays(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "data").rglob("*.part")]


async def _ask(server: Server, command: str, **arguments: Any) -> Any:
    """One command over the control socket, written by hand."""
    reader, writer = await asyncio.open_unix_connection(server.settings.data_dir / "control.sock")
    try:
        request = {"version": 1, "command": command, "arguments": arguments}
        writer.write(json.dumps(request).encode() + b"\n")
        answer = json.loads(await reader.readline())
    finally:
        writer.close()
        await writer.wait_closed()
    assert answer["version"] == 1
    return answer


def _without_study(stored: EncodedObject) -> bytes:
    uid = stored.study_instance_uid.encode()
    at = stored.dataset.index(b"\x20\x00\x0d\x00UI")
    return stored.dataset[:at] + stored.dataset[at + 8 + len(uid) + len(uid) % 2 :]


REFUSALS = [
    pytest.param(lambda s: s.dataset[:-1], 0xC000, id="cut in the pixels"),
    pytest.param(lambda s: s.dataset[:100], 0xC000, id="cut in the header"),
    pytest.param(lambda s: s.dataset + b"\xe0\x7f\x10", 0xC000, id="a tag without an end"),
    pytest.param(lambda _: b"\xff" * 3_000_001, 0xC000, id="garbage"),
    pytest.param(lambda _: b"", 0xC000, id="nothing"),
    pytest.param(lambda s: b"\x02\0\x10\0UI\x02\x001\0" + s.dataset, 0xC000, id="group 0002"),
    pytest.param(_without_study, 0xC000, id="no study"),
    pytest.param(lambda _: ct_image(rows=1024, columns=1024, seed=9).dataset, 0xA900, id="another instance"),
    pytest.param(lambda _: structured_report().dataset, 0xA900, id="another class"),
]


@pytest.mark.parametrize("durability", ["full", "process"])
@pytest.mark.parametrize(("make", "status"), REFUSALS)
async def test_a_refused_data_set_is_kept_byte_for_byte_with_its_sender_and_the_reason(
    start_server: StartServer,
    tmp_path: Path,
    make: Callable[[EncodedObject], bytes],
    status: int,
    durability: str,
) -> None:
    server = await start_server(storage={"durability": durability})
    stored = ct_image()
    refused = _with_dataset(stored, make(stored))
    assert await _send(server, refused, stored) == [status, 0x0000]
    [(record, dataset)] = _kept(tmp_path)
    assert dataset == refused.dataset
    assert record["status"] == status
    assert record["reason"]
    assert (record["calling_ae_title"], record["called_ae_title"]) == ("SCANNER7", "ARCHIVE")
    assert (record["peer_host"], record["sop_class_uid"]) == ("127.0.0.1", stored.sop_class_uid)
    assert record["sop_instance_uid"] == stored.sop_instance_uid
    assert record["transfer_syntax_uid"] == stored.transfer_syntax_uid
    assert record["dataset_bytes"] == len(refused.dataset)
    assert (record["digest_algorithm"], record["digest"]) == ("blake3", blake3(refused.dataset).hexdigest())
    assert len(_names(tmp_path)) == 2
    assert _strays(tmp_path) == []


async def test_a_newcomer_that_keep_first_refuses_is_quarantined(
    start_server: StartServer, tmp_path: Path, stored_datasets: Datasets
) -> None:
    server = await start_server()
    first = ct_image(rows=512, columns=512)
    other = _other_bytes(first)
    assert await _send(server, first, other, first) == [0x0000, 0xC111, 0x0000]
    [(record, dataset)] = _kept(tmp_path)
    assert (dataset, record["status"]) == (other.dataset, 0xC111)
    assert record["digest"] == blake3(other.dataset).hexdigest()
    assert stored_datasets() == {first.sop_instance_uid: [first.dataset]}
    totals = await server.index.totals()
    assert totals.parts == 1


async def test_a_data_set_under_a_uid_that_is_none_is_quarantined(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server()
    stored = dataclasses.replace(ct_image(), sop_instance_uid="1.2.x")
    assert await _send(server, stored) == [0x0117]
    [(record, dataset)] = _kept(tmp_path)
    assert (dataset, record["status"]) == (stored.dataset, 0x0117)


async def test_what_no_service_takes_is_not_quarantined(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server()
    stored, other = ct_image(), structured_report()
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(storage_contexts(stored))
        assert await peer.store(other, context_id=3) == 0x0122
    assert _names(tmp_path) == []


async def test_what_is_too_large_is_not_quarantined_whatever_else_is_wrong_with_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(limits={"max_object_bytes": 50_000})
    stored = ct_image(rows=256, columns=256)
    assert await _send(server, stored) == [0xA700]
    assert await _send(server, _with_dataset(stored, b"\xff" * 100_000)) in ([0xA700], [0xC000])
    assert _names(tmp_path) == []
    assert _strays(tmp_path) == []


async def test_an_aborted_refused_transfer_leaves_nothing(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server()
    refused = _with_dataset(ct_image(), b"\xff" * 500_000)
    with captured_logs() as logs:
        async with await ScriptedPeer.connect(*server.address) as peer:
            await peer.associate(storage_contexts(refused))
            await _send_beginning(peer, refused, 400_000)
            await peer.abort()
            await peer.wait_eof()
        await _until(lambda: any(line["event"] == "operation.unanswered" for line in logs))
    assert _names(tmp_path) == []
    assert _strays(tmp_path) == []


async def _send_beginning(peer: ScriptedPeer, stored: EncodedObject, size_bytes: int) -> None:
    """A C-STORE-RQ and the first bytes of its data set; more would follow."""
    command = wire.c_store_rq(1, stored.sop_class_uid, stored.sop_instance_uid)
    await peer.send(wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, command)))
    for start in range(0, size_bytes, 65_536):
        await peer.send(wire.p_data_tf(PDV(3, Control.DATASET, stored.dataset[start : start + 65_536])))


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "bounds", [{"max_bytes": 40_000}, {"max_objects": 1}], ids=["max_bytes", "max_objects"]
)
async def test_a_full_quarantine_keeps_the_oldest_answers_the_same_and_says_so(
    start_server: StartServer, tmp_path: Path, bounds: dict[str, int]
) -> None:
    server = await start_server(quarantine=bounds)
    first, second = (_with_dataset(ct_image(), bytes([0xFF, number]) * 15_000) for number in (1, 2))
    with captured_logs() as logs:
        assert await _send(server, first, second, ct_image()) == [0xC000, 0xC000, 0x0000]
        assert await _send(server, _other_bytes(ct_image(rows=256, columns=256))) == [0xC111]
    assert [dataset for _, dataset in _kept(tmp_path)] == [first.dataset]
    assert [line["level"] for line in logs if line["event"] == "quarantine.not_kept"] == ["warning"] * 2
    assert _strays(tmp_path) == []
    totals = await server.index.totals()
    assert totals.parts == len(list((tmp_path / "data" / "objects").rglob("*.dcm"))) == 1


async def test_max_bytes_0_keeps_nothing(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(quarantine={"max_bytes": 0})
    with captured_logs() as logs:
        assert await _send(server, _with_dataset(ct_image(), b"\xff" * 5_000)) == [0xC000]
    assert _names(tmp_path) == []
    assert not [line for line in logs if str(line["event"]).startswith("quarantine.")]


@pytest.mark.parametrize("fails", ["record", "rename"])
async def test_a_quarantine_that_fails_changes_no_answer_and_leaves_nothing(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    server = await start_server()
    stored = ct_image()
    assert await _send(server, stored) == [0x0000]
    if fails == "record":
        (tmp_path / "data" / "quarantine").rmdir()
    else:
        monkeypatch.setattr("scp_server.storage.quarantine.sync_directory", _fail)
        server._quarantine._config = dataclasses.replace(server._quarantine._config, durable=True)
    with captured_logs() as logs:
        refused = _with_dataset(stored, b"\xff" * 70_000)
        assert await _send(server, refused, _other_bytes(stored)) == [0xC000, 0xC111]
    assert sum(line["event"] == "quarantine.not_kept" for line in logs) == 2
    (tmp_path / "data" / "quarantine").mkdir(exist_ok=True)
    assert _names(tmp_path) == []
    assert _strays(tmp_path) == []
    assert len(list((tmp_path / "data" / "objects").rglob("*.dcm"))) == 1
    assert (await _ask(server, "status"))["result"]["quarantine"]["objects"] == 0


def _fail(_path: str) -> None:
    raise OSError(5, "Input/output error")


async def test_released_under_another_policy_it_is_kept_as_its_senders_with_a_new_arrival(
    start_server: StartServer, tmp_path: Path, stored_datasets: Datasets
) -> None:
    first = ct_image(rows=512, columns=512)
    other = _other_bytes(first)
    server = await start_server()
    assert await _send(server, first, other) == [0x0000, 0xC111]
    [(record, _)] = _kept(tmp_path)

    answer = await _ask(server, "quarantine.release", id=record["id"])
    assert answer["result"]["released"] is False
    assert answer["result"]["status"] == 0xC111
    [(again, dataset)] = _kept(tmp_path)
    assert (again["release_attempts"], again["status"], dataset) == (1, 0xC111, other.dataset)
    await server.stop()

    server = await start_server(storage={"duplicates": "parts"})
    answer = await _ask(server, "quarantine.release", id=record["id"])
    assert answer["result"] == {"id": record["id"], "released": True, "status": 0, "reason": ""}
    assert _names(tmp_path) == []
    assert stored_datasets() == {first.sop_instance_uid: [first.dataset, other.dataset]}
    parts = await server.index.parts(first.sop_instance_uid)
    assert [part.calling_ae_title for part in parts] == ["SCANNER7", "SCANNER7"]
    assert parts[1].arrival_id > record["id"]
    answer = await _ask(server, "quarantine.release", id=record["id"])
    assert (answer["ok"], answer["code"]) == (False, "not_found")


async def test_a_failed_release_notes_the_new_reason(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(limits={"max_sequence_depth": 1})
    stored = ct_image(sequences=True)
    [status] = await _send(server, stored)
    assert status == 0xC000, "deeper than the limit"
    [(record, _)] = _kept(tmp_path)
    await server.stop()

    server = await start_server(limits={"max_object_bytes": 1_000})
    answer = await _ask(server, "quarantine.release", id=record["id"])
    assert answer["result"]["status"] == 0xA700
    [(again, dataset)] = _kept(tmp_path)
    assert "larger" in again["reason"]
    assert again["reason"] != record["reason"]
    assert dataset == stored.dataset
    await server.stop()

    server = await start_server()
    assert (await _ask(server, "quarantine.release", id=record["id"]))["result"]["released"] is True
    assert (await server.index.totals()).parts == 1


async def test_list_show_and_drop_over_the_socket(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server()
    refused = [_with_dataset(ct_image(seed=seed), b"\xff" * (1_000 + seed)) for seed in range(3)]
    await _send(server, *refused)
    listed = (await _ask(server, "quarantine.list"))["result"]
    assert [each["dataset_bytes"] for each in listed["objects"]] == [1_000, 1_001, 1_002]
    assert (listed["next"], listed["totals"]["objects"]) == ("", 3)
    ids = [each["id"] for each in listed["objects"]]
    assert [
        each["id"] for each in (await _ask(server, "quarantine.list", after=ids[0]))["result"]["objects"]
    ] == (ids[1:])
    shown = (await _ask(server, "quarantine.show", id=ids[1]))["result"]
    assert (tmp_path / "data" / shown["file"]).stat().st_size == shown["file_bytes"]
    assert (await _ask(server, "quarantine.drop", id=ids[1]))["ok"] is True
    assert [record["id"] for record, _ in _kept(tmp_path)] == [ids[0], ids[2]]
    assert len(_names(tmp_path)) == 4
    left = (await _ask(server, "status"))["result"]["quarantine"]
    assert (left["objects"], left["bytes"]) == (
        2,
        sum(path.stat().st_size for path in (tmp_path / "data" / "quarantine").glob("*.quarantine")),
    )


async def test_the_pressure_of_the_process_budget_keeps_every_byte_of_a_refused_object(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(
        limits={
            "header_buffer_bytes": 65_536,
            "association_buffer_bytes": 131_072,
            "process_buffer_bytes": MIB,
        }
    )
    refused = [_with_dataset(ct_image(seed=seed), bytes([0xFF, seed]) * 2 * MIB) for seed in range(6)]
    answers = await asyncio.gather(*(_send(server, each) for each in refused))
    assert answers == [[0xC000]] * 6
    assert sorted(dataset for _, dataset in _kept(tmp_path)) == sorted(each.dataset for each in refused)
    assert server._manager.budget.held_bytes == 0


@pytest.mark.slow
async def test_killed_while_a_refused_object_comes_in_a_restart_finds_no_stray(tmp_path: Path) -> None:
    refused = _with_dataset(ct_image(), b"\xff" * 8 * MIB)
    whole = _with_dataset(dicos_tdr(), b"\xff" * 4_000)
    daemon = DaemonProcess(tmp_path / "data")
    port = (await asyncio.to_thread(daemon.start)).dicom_port
    async with await ScriptedPeer.connect("127.0.0.1", port) as first:
        await first.associate(storage_contexts(whole))
        assert await first.store(whole) == 0xC000
    async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
        await peer.associate(storage_contexts(refused))
        await _send_beginning(peer, refused, 7 * MIB)
        await _until(lambda: _strays(tmp_path) != [])
        await asyncio.to_thread(daemon.kill)
    # What a kill between the record and the object's rename leaves, and inside the record's writing.
    (tmp_path / "data" / "quarantine" / "abc.json").write_bytes(b"{}")
    (tmp_path / "data" / "quarantine" / "abd.json.part").write_bytes(b"{")
    await asyncio.to_thread(daemon.start)
    await asyncio.to_thread(daemon.terminate)
    assert _strays(tmp_path) == []
    assert [dataset for _, dataset in _kept(tmp_path)] == [whole.dataset]
    assert len(_names(tmp_path)) == 2


@pytest.mark.slow
async def test_a_large_refused_object_costs_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "data", environment={"SCP_SERVER_STORAGE__DURABILITY": "process"})
    port = (await asyncio.to_thread(daemon.start)).dicom_port
    usage = ProcessUsage(daemon.process.pid)
    try:
        for size_bytes in (MIB, 128 * MIB):
            large = large_ct(size_bytes)
            refused = dataclasses.replace(large, sop_instance_uid="1.2.3")
            if size_bytes > MIB:
                usage.forget_peak()
                before = usage.resident_bytes
            async with await ScriptedPeer.connect("127.0.0.1", port, timeout_seconds=30) as peer:
                await peer.associate(storage_contexts(refused), maximum_length=131_072)
                assert await peer.store(refused) == 0xA900
        grown = usage.peak_bytes - before
    finally:
        await asyncio.to_thread(daemon.terminate)
    sizes = sorted(path.stat().st_size for path in (tmp_path / "data" / "quarantine").glob("*.quarantine"))
    assert sizes[-1] > 128 * MIB
    assert grown <= 32 * MIB, f"grew by {grown / MIB:.1f} MiB"
