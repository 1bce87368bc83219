"""Deleting: all of it or, in the end, nothing is left, wherever a crash comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from scp_server import Server
from scp_server.errors import IndexUnavailable, StorageError
from scp_server.index.base import Index, Level, PartRecord, Scope
from scp_server.observability.logs import captured_logs
from scp_server.runtime.maintenance import carrying_out, deletion_record
from scp_server.runtime.maintenance.carrying_out import Removed, finish_deletions
from scp_server.runtime.maintenance.deletion import Deletions
from scp_server.runtime.maintenance.deletion_record import Extent, measure, pending_deletions
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.runtime.maintenance.rebuild import rebuild
from scp_server.services.storage import StorageService, StorageServiceConfig
from scp_server.testing.archive import Archive
from scp_server.testing.dicos_objects import two_section_ct
from scp_server.testing.fake_operation import store_operation
from scp_server.testing.objects import ct_image
from scp_server.testing.watched_backends import Steps, WatchedIndex, WatchedStorage

STUDY = "1.2.3.4"
GONE = Scope(Level.STUDY, STUDY)


async def _fill(archive: Archive) -> None:
    """Three instances in the study that goes, one and a DICOS CT of two parts elsewhere."""
    objects = [
        ct_image(seed=n, study_instance_uid=STUDY, series_instance_uid=f"1.2.3.4.{n % 2}") for n in range(3)
    ]
    assert await archive.store([*objects, ct_image(seed=9), *two_section_ct()]) == [0] * 6


async def _locations(index: Index, scope: Scope) -> set[str]:
    return {part.location async for page in index.parts_below(scope) for part in page}


@pytest.mark.parametrize(
    ("scope", "extent"),
    [
        (GONE, (1, 2, 3, 3)),
        (Scope(Level.SERIES, "1.2.3.4.0"), (1, 1, 2, 2)),
        (Scope(Level.INSTANCE, two_section_ct()[0].sop_instance_uid), (1, 1, 1, 2)),
        (Scope(Level.INSTANCE, STUDY), (0, 0, 0, 0)),
    ],
)
async def test_rows_and_files_of_a_scope_go_and_no_others(
    archive: Archive, scope: Scope, extent: tuple[int, int, int, int]
) -> None:
    await _fill(archive)
    before = archive.files()
    async with archive.opened() as (storage, index):
        measured = await measure(index, scope)
        assert (measured.studies, measured.series, measured.instances, measured.parts) == extent
        gone = await _locations(index, scope)
        assert measured.bytes == sum(len(before[location]) for location in gone)
        removed = await Deletions(archive.data_dir, storage, index).delete(scope)
        assert (removed.parts, removed.files, removed.failures) == (extent[3], extent[3], 0)
        assert await measure(index, scope) == Extent()
    assert archive.files() == {name: data for name, data in before.items() if name not in gone}
    assert {row[4] for row in archive.rows()["parts"]} == set(archive.files())
    assert pending_deletions(archive.data_dir) == []
    assert not list((archive.data_dir / "deletions").glob("*"))


async def test_a_deletion_is_logged_with_its_uid_and_counts(archive: Archive) -> None:
    await _fill(archive)
    async with archive.opened() as (storage, index):
        with captured_logs() as logs:
            await Deletions(archive.data_dir, storage, index).delete(GONE)
    (record,) = [record for record in logs if record["event"] == "archive.deleted"]
    assert (record["scope"], record["uid"]) == ("study", STUDY)
    assert (record["parts"], record["files"], record["failed"]) == (3, 3, 0)


@pytest.mark.parametrize("step", ["remove", "delete_many", "after"])
@pytest.mark.parametrize("finisher", ["start", "again", "rebuild"])
async def test_killed_at_any_step_a_decided_deletion_is_finished(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, step: str, finisher: str
) -> None:
    await _fill(archive)
    killed = RuntimeError("killed here")
    async with archive.opened() as (storage, index):
        steps = Steps()
        if step == "after":

            def die(_record: Path) -> None:
                raise killed

            monkeypatch.setattr(carrying_out, "drop_record", die)
        else:
            steps.fail_at(step, killed)
        watched = WatchedStorage(storage, steps), WatchedIndex(index, steps)
        with pytest.raises(RuntimeError):
            await Deletions(archive.data_dir, *watched).delete(GONE)
        monkeypatch.undo()
    assert len(pending_deletions(archive.data_dir)) == 1
    if finisher == "start":
        settings = Archive.at(archive.data_dir, listen={"port": 0}, http={"port": 0}).settings
        with captured_logs() as logs:
            async with Server(settings) as server:
                assert (await server.index.totals()).parts == 3
                resuming = [each for each in asyncio.all_tasks() if "resume" in each.get_name()]
                await asyncio.gather(*resuming)
        assert [record["event"] for record in logs].count("deletion.finished") == 1
    elif finisher == "again":
        async with archive.opened() as (storage, index):
            assert await finish_deletions(archive.data_dir, storage, index) == 1
    else:
        await rebuild(archive.settings, lambda _finding: None, NoProgress())
    assert len(archive.files()) == 3
    assert {row[4] for row in archive.rows()["parts"]} == set(archive.files())
    assert pending_deletions(archive.data_dir) == []


async def test_a_killed_deletion_does_not_take_what_was_sent_anew(archive: Archive) -> None:
    await _fill(archive)
    async with archive.opened() as (storage, index):
        steps = Steps()
        steps.fail_at("delete_many", RuntimeError("killed here"))
        with pytest.raises(RuntimeError):
            await Deletions(archive.data_dir, WatchedStorage(storage, steps), index).delete(GONE)
    anew = ct_image(seed=0, study_instance_uid=STUDY, series_instance_uid="1.2.3.4.0")
    assert await archive.store([anew]) == [0]
    async with archive.opened() as (storage, index):
        await finish_deletions(archive.data_dir, storage, index)
        assert (await measure(index, GONE)).parts == 1
    assert archive.location_of(anew) in archive.files()
    assert len(archive.files()) == 4


async def test_an_index_that_fails_leaves_everything_for_the_next_start(archive: Archive) -> None:
    await _fill(archive)
    files, rows = archive.files(), archive.rows()
    async with archive.opened() as (storage, index):
        steps = Steps()
        steps.fail_at("remove", IndexUnavailable("locked"))
        with pytest.raises(IndexUnavailable):
            await Deletions(archive.data_dir, storage, WatchedIndex(index, steps)).delete(GONE)
    assert (archive.files(), archive.rows()) == (files, rows)
    assert len(pending_deletions(archive.data_dir)) == 1


async def test_a_file_that_cannot_be_removed_is_named_and_tried_again(archive: Archive) -> None:
    await _fill(archive)
    async with archive.opened() as (storage, index):
        steps = Steps()
        steps.fail_at("delete_many", StorageError("busy"))
        removed = await Deletions(archive.data_dir, WatchedStorage(storage, steps), index).delete(GONE)
        assert (removed.parts, removed.files, removed.failures) == (3, 0, 3)
        assert set(removed.failed.values()) == {"busy"}
        assert len(archive.files()) == 6
        assert await finish_deletions(archive.data_dir, storage, index) == 1
    assert len(archive.files()) == 3
    assert pending_deletions(archive.data_dir) == []


async def test_more_than_one_transaction_of_parts_goes(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying_out, "ROWS_TOGETHER", 2)
    monkeypatch.setattr(carrying_out, "FILES_TOGETHER", 2)
    monkeypatch.setattr(deletion_record, "PAGE", 2)
    monkeypatch.setattr(carrying_out, "MAX_FAILURES", 1)
    await _fill(archive)
    async with archive.opened() as (storage, index):
        steps = Steps()
        steps.fail_at("delete_many", StorageError("busy"))
        watched = WatchedIndex(index, steps)
        removed = await Deletions(archive.data_dir, WatchedStorage(storage, steps), watched).delete(GONE)
    assert steps.log.count("remove") == 2
    assert (removed.parts, removed.failures, len(removed.failed)) == (3, 3, 1)


async def test_a_disk_that_takes_no_record_lets_nothing_be_deleted(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(archive)
    files, rows = archive.files(), archive.rows()

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    async with archive.opened() as (storage, index):
        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(StorageError, match="No space left"):
            await Deletions(archive.data_dir, storage, index).delete(GONE)
        monkeypatch.undo()
    assert (archive.files(), archive.rows()) == (files, rows)
    assert pending_deletions(archive.data_dir) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json\n",
        json.dumps({"format": 2, "kind": "scp-server deletion"}) + "\n",
        json.dumps({"format": 1, "kind": "scp-server deletion"}) + "\n../../etc/passwd\n",
    ],
)
async def test_what_is_no_record_is_logged_and_does_no_harm(archive: Archive, text: str) -> None:
    await _fill(archive)
    files = archive.files()
    folder = archive.data_dir / "deletions"
    folder.mkdir()
    (folder / "1.deletion").write_text(text)
    async with archive.opened() as (storage, index):
        with captured_logs() as logs:
            await finish_deletions(archive.data_dir, storage, index)
    assert [record["event"] for record in logs].count("deletion.failed") == 1
    assert archive.files() == files
    assert (folder / "1.deletion").exists()


async def test_nothing_to_delete_leaves_no_record(archive: Archive) -> None:
    await _fill(archive)
    async with archive.opened() as (storage, index):
        nothing = Scope(Level.STUDY, "9.9")
        assert await Deletions(archive.data_dir, storage, index).delete(nothing) == Removed()
    assert list((archive.data_dir / "deletions").iterdir()) == []


# --- while others work


async def _cancelled_at(archive: Archive, step: str) -> list[str]:
    """Whoever asked for a deletion goes away at a step; returns what was logged once all has ended."""
    await _fill(archive)
    async with archive.opened() as (storage, index):
        reached, go_on = asyncio.Event(), asyncio.Event()

        class Standing(WatchedIndex):
            async def stand(self, name: str) -> None:
                if name == step and not reached.is_set():
                    reached.set()
                    await go_on.wait()

            async def parts_below(self, scope: Scope, *, limit: int = 500) -> AsyncIterator[list[PartRecord]]:
                await self.stand("list")
                async for page in super().parts_below(scope, limit=limit):
                    yield page

            async def remove(self, locations: Sequence[str]) -> int:
                await self.stand("remove")
                return await super().remove(locations)

        deletions = Deletions(archive.data_dir, storage, Standing(index, Steps()))
        with captured_logs() as logs:
            asked = asyncio.create_task(deletions.delete(GONE))
            await reached.wait()
            asked.cancel()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await asked
            (running,) = [each for each in asyncio.all_tasks() if each.get_name() == "maintenance.delete"]
            await running
    return [record["event"] for record in logs]


async def test_a_decided_deletion_ends_whether_or_not_anybody_waits_for_it(archive: Archive) -> None:
    assert await _cancelled_at(archive, "remove") == ["archive.deleted"]
    assert len(archive.files()) == len(archive.rows()["parts"]) == 3
    assert list((archive.data_dir / "deletions").iterdir()) == []


async def test_a_deletion_that_is_not_decided_ends_with_whoever_asked(archive: Archive) -> None:
    assert await _cancelled_at(archive, "list") == []
    assert len(archive.files()) == len(archive.rows()["parts"]) == 6
    assert list((archive.data_dir / "deletions").iterdir()) == []


async def test_a_server_that_stops_leaves_a_decided_deletion_to_the_next_start(archive: Archive) -> None:
    await _fill(archive)
    async with archive.opened() as (storage, index):
        steps = Steps()
        reached = steps.stop_at("delete_many")
        deletions = Deletions(archive.data_dir, WatchedStorage(storage, steps), index)
        asked = asyncio.create_task(deletions.delete(GONE))
        await reached.wait()
        await deletions.stop()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert len(pending_deletions(archive.data_dir)) == 1
        assert await finish_deletions(archive.data_dir, storage, index) == 1
    assert len(archive.files()) == 3


async def test_deletions_that_overlap_are_carried_out_one_after_the_other(archive: Archive) -> None:
    await _fill(archive)
    scopes = [GONE, Scope(Level.SERIES, "1.2.3.4.0"), GONE, Scope(Level.SERIES, "1.2.3.4.1")]
    async with archive.opened() as (storage, index):
        deletions = Deletions(archive.data_dir, storage, index)
        removed = await asyncio.gather(*(deletions.delete(scope) for scope in scopes))
    assert [each.extent.parts for each in removed] == [3, 0, 0, 0]
    assert len(archive.files()) == len(archive.rows()["parts"]) == 3


async def test_objects_that_arrive_are_indexed_between_the_transactions_of_a_big_deletion(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying_out, "ROWS_TOGETHER", 1)
    await _fill(archive)
    async with archive.opened() as (storage, index):
        steps = Steps()
        watched = WatchedIndex(index, steps)
        service = StorageService(storage, watched, StorageServiceConfig())
        stores: list[asyncio.Task[Any]] = []

        class Storing(WatchedIndex):
            async def remove(self, locations: Sequence[str]) -> int:
                stores.append(asyncio.create_task(service.store(store_operation(ct_image(seed=50)))))
                await asyncio.wait(stores)
                return await super().remove(locations)

        deletions = Deletions(archive.data_dir, storage, Storing(index, steps))
        assert (await deletions.delete(GONE)).parts == 3
    # The first of the same bytes is indexed before even one row has gone.
    assert steps.log[:3] == ["parts_below", "add", "add.done"]
    assert steps.log.count("remove") == len(stores) == 3


async def test_while_it_is_carried_out_exactly_what_its_record_names_is_doomed(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying_out, "FILES_TOGETHER", 1)
    await _fill(archive)
    async with archive.opened() as (storage, index):
        going = await _locations(index, GONE)
        every = list(archive.files())
        seen: list[set[str]] = []

        class Asking(WatchedStorage):
            async def delete_many(self, locations: Sequence[str]) -> Mapping[str, str]:
                seen.append(await deletions.doomed([*every, "", "objects", "zzz"]))
                return await super().delete_many(locations)

        deletions = Deletions(archive.data_dir, Asking(storage, Steps()), index)
        assert await deletions.doomed(every) == set()
        await deletions.delete(GONE)
        assert seen == [going] * 3
        assert await deletions.doomed(every) == set()


async def test_every_line_of_a_record_is_found_and_nothing_between_them(tmp_path: Path) -> None:
    lines = sorted(f"objects/{'ab' * (number % 5)}{number}.dcm" for number in range(0, 200, 2))
    record = tmp_path / "1.deletion"
    for count in (0, 1, 2, 3, 100):
        names = lines[:count]
        record.write_text("".join(f"{line}\n" for line in ['{"format": 1}', *names]))
        others = [name[:-1] for name in lines] + [name + "x" for name in lines] + lines[count:]
        assert deletion_record.named([record, tmp_path / "gone"], [*lines, *others]) == set(names)


async def test_a_draft_that_a_crash_left_is_swept(archive: Archive) -> None:
    await _fill(archive)
    draft = archive.data_dir / "deletions" / "1.tmp"
    draft.parent.mkdir()
    draft.write_text("half a line")
    async with archive.opened() as (storage, index):
        assert await Deletions(archive.data_dir, storage, index).finish() == 0
    assert not draft.exists()
    assert len(archive.files()) == 6
