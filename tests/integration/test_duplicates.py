"""Many senders of one SOP Instance UID at once: one outcome that the policy allows, everybody answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from scp_server import Server
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts

StartServer = Callable[..., Awaitable[Server]]
Datasets = Callable[[], dict[str, list[bytes]]]
SENDERS = 8
STATUSES = {
    "keep_first": {0x0000, 0xC111},
    "reject": {0x0000, 0xC112},
    "parts": {0x0000},
    "replace": {0x0000},
}


def _newcomers(count: int) -> list[EncodedObject]:
    first = ct_image(seed=0, rows=256, columns=256)
    return [
        ct_image(seed=seed, rows=256, columns=256, sop_instance_uid=first.sop_instance_uid)
        for seed in range(count)
    ]


async def _send(server: Server, stored: EncodedObject, calling_ae_title: str = "SCRIPTED") -> int:
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(storage_contexts(stored), calling_ae_title=calling_ae_title)
        return await peer.store(stored)


async def _agrees(server: Server, datasets: dict[str, list[bytes]]) -> None:
    """The index knows every file, and nothing else, and no file waits to be deleted or was cut."""
    ((uid, kept),) = datasets.items()
    parts = await server.index.parts(uid)
    assert len(parts) == len(kept)
    assert len(set(kept)) == len(kept)
    assert {len(dataset) for dataset in kept} == {
        part.size_bytes - part.dataset_offset_bytes for part in parts
    }
    totals = await server.index.totals()
    assert (totals.studies, totals.series, totals.instances, totals.parts) == (1, 1, 1, len(parts))


@pytest.mark.parametrize("policy", [*STATUSES])
async def test_eight_senders_of_other_bytes_leave_what_the_policy_allows(
    start_server: StartServer, stored_datasets: Datasets, tmp_path: Path, policy: str
) -> None:
    server = await start_server(storage={"duplicates": policy})
    objects = _newcomers(SENDERS)
    statuses = await asyncio.gather(*(_send(server, stored) for stored in objects))
    assert set(statuses) == STATUSES[policy]
    sent = [stored.dataset for stored in objects]
    ((uid, kept),) = stored_datasets().items()
    assert uid == objects[0].sop_instance_uid
    if policy == "parts":
        assert Counter(kept) == Counter(sent)
    else:
        assert len(kept) == 1
        assert kept[0] in sent
    if policy in ("keep_first", "reject"):
        assert statuses.count(0x0000) == 1
        assert kept == [sent[statuses.index(0x0000)]], "what was acknowledged is what is kept"
    await _agrees(server, stored_datasets())
    assert list((tmp_path / "data" / "incoming").glob("*.part")) == []


@pytest.mark.parametrize("policy", [*STATUSES])
async def test_eight_senders_of_the_same_bytes_all_succeed_and_leave_one(
    start_server: StartServer, stored_datasets: Datasets, policy: str
) -> None:
    server = await start_server(storage={"duplicates": policy})
    stored = ct_image(rows=256, columns=256)
    assert await asyncio.gather(*(_send(server, stored) for _ in range(SENDERS))) == [0x0000] * SENDERS
    assert stored_datasets() == {stored.sop_instance_uid: [stored.dataset]}
    await _agrees(server, stored_datasets())


@pytest.mark.parametrize("policy", ["replace", "keep_first"])
async def test_two_kinds_of_bytes_in_turn_end_as_the_policy_says(
    start_server: StartServer, stored_datasets: Datasets, policy: str
) -> None:
    server = await start_server(storage={"duplicates": policy})
    first, second = _newcomers(2)
    statuses = [await _send(server, stored) for stored in (first, second, first, second, second)]
    refused = 0x0000 if policy == "replace" else 0xC111
    assert statuses == [0x0000, refused, 0x0000, refused, refused]
    kept = second if policy == "replace" else first
    assert stored_datasets() == {first.sop_instance_uid: [kept.dataset]}
    await _agrees(server, stored_datasets())


async def test_senders_of_different_policies_meet_and_nothing_is_mixed(
    start_server: StartServer, stored_datasets: Datasets
) -> None:
    server = await start_server(
        peers=[{"ae_title": policy.upper(), "duplicates": policy} for policy in STATUSES]
    )
    objects = _newcomers(2 * len(STATUSES))
    titles = [policy.upper() for policy in STATUSES] * 2
    statuses = await asyncio.gather(
        *(_send(server, stored, title) for stored, title in zip(objects, titles, strict=True))
    )
    for status, title in zip(statuses, titles, strict=True):
        assert status in STATUSES[title.lower()]
    ((_, kept),) = stored_datasets().items()
    assert set(kept) <= {stored.dataset for stored in objects}
    await _agrees(server, stored_datasets())


async def test_what_was_replaced_before_a_restart_stays_away(
    start_server: StartServer, stored_datasets: Datasets
) -> None:
    first, second = _newcomers(2)
    server = await start_server(storage={"duplicates": "replace"})
    assert [await _send(server, stored) for stored in (first, second)] == [0x0000] * 2
    await server.stop()
    server = await start_server(storage={"duplicates": "parts"})
    assert stored_datasets() == {first.sop_instance_uid: [second.dataset]}
    assert await _send(server, first) == 0x0000
    assert stored_datasets() == {first.sop_instance_uid: [second.dataset, first.dataset]}
