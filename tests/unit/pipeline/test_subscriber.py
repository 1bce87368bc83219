"""Callbacks of durable stages, as the outbox sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scp_server import Reject, callback
from scp_server.errors import StorageError
from scp_server.observability.logs import captured_logs
from scp_server.pipeline.callbacks import ActiveCallbacks
from scp_server.pipeline.deliveries import Delivery, EventKind, LoggedEvent
from scp_server.pipeline.instances import Archive, StoredFiles, StoredInstance, StoredInstances
from scp_server.pipeline.registry import CallbackSources, load_callbacks
from scp_server.pipeline.running import CallbackLimits
from scp_server.pipeline.settled import AssociationComplete, StoredParts, StudySettled
from scp_server.pipeline.subscriber import CallbackSubscriber
from scp_server.pipeline.verdicts import DestinationDown, NotDelivered, Undeliverable
from scp_server.testing.dicos_objects import dicos_tdr
from scp_server.testing.objects import ct_image

CT = ct_image()
ASSOCIATION = {
    "calling_ae_title": "CT1",
    "called_ae_title": "ARCHIVE",
    "peer_host": "192.0.2.7",
    "peer_name": "ct",
    "is_dicos": False,
}
OBJECT: Mapping[str, object] = {
    **ASSOCIATION,
    "study_instance_uid": "1.2.1",
    "series_instance_uid": "1.2.2",
    "sop_instance_uid": CT.sop_instance_uid,
    "sop_class_uid": CT.sop_class_uid,
    "modality": "CT",
    "transfer_syntax_uid": CT.transfer_syntax_uid,
    "size_bytes": 77,
    "part_number": 2,
    "digest": "ab",
    "receive_began_at_ns": 1,
    "receive_ended_at_ns": 2,
    "stored_at_ns": 3,
}


def event(kind: EventKind = EventKind.OBJECT_STORED, number: int = 1, **changed: object) -> LoggedEvent:
    location = "objects/a.dcm" if kind is EventKind.OBJECT_STORED else None
    return LoggedEvent(number, kind, 99, "k", location, "a-1", {**OBJECT, **changed})


def delivery(of: LoggedEvent) -> Delivery:
    return Delivery(of, 1, True, "archive:1:callback:x")


class Events:
    """Two parts that one association brought."""

    async def stored_by(self, association_id: str) -> AsyncIterator[LoggedEvent]:
        assert association_id == "a-1"
        for number in (1, 2):
            yield event(number=number, part_number=number)


def subscriber(function: Any, archive: Archive) -> CallbackSubscriber:
    registry = load_callbacks(CallbackSources([function], entry_points=False))
    callbacks = ActiveCallbacks(registry, CallbackLimits(blocking_seconds=60.0))
    (found,) = callbacks.subscribers(archive, Events())
    assert isinstance(found, CallbackSubscriber)
    return found


def test_objects_of_one_association_share_what_is_known_of_it_and_those_of_none_do_not() -> None:
    instances = StoredInstances(Archive(StoredFiles(Path("/nowhere"))))
    first, second = (instances.of(event(number=number)) for number in (1, 2))
    assert first.association is second.association
    found = [
        instances.of(replace(event(number=number, peer_host=host), association_id=""))
        for number, host in ((3, "192.0.2.3"), (4, "192.0.2.4"))
    ]
    assert [each.association.peer_host for each in found] == ["192.0.2.3", "192.0.2.4"]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects/a.dcm").write_bytes(CT.part10())
    files = StoredFiles(tmp_path)
    return Archive(files, files)


async def test_a_stored_callback_gets_the_instance_and_the_delivery_where_it_wants(archive: Archive) -> None:
    got: list[tuple[StoredInstance, Any]] = []

    @callback("stored")
    async def look(instance: StoredInstance, delivery: Any) -> None:
        got.append((instance, delivery))

    found = subscriber(look, archive)
    assert (found.name, found.concurrency) == ("callback:look", 8)
    sent = delivery(event())
    await found.deliver(sent)
    ((instance, its_delivery),) = got
    assert its_delivery is sent
    assert instance.association.association_id == "a-1"
    assert instance.association.peer_name == "ct"
    times = instance.times
    assert (times.receive_began_at_ns, times.receive_ended_at_ns, times.stored_at_ns) == (1, 2, 3)
    assert (instance.part_number, instance.modality, instance.digest) == (2, "CT", "ab")


async def test_the_bytes_of_an_instance_are_read_from_where_they_lie(archive: Archive) -> None:
    instance = StoredInstance.of(event(), archive)
    assert b"".join([piece async for piece in instance.open()]) == CT.part10()
    assert b"".join([piece async for piece in instance.open(128, 4)]) == b"DICM"
    assert instance.path.read_bytes() == CT.part10()
    dataset = await instance.dataset()
    assert dataset.SOPInstanceUID == instance.read_dataset().SOPInstanceUID == CT.sop_instance_uid
    assert "PixelData" not in dataset
    without_files = StoredInstance.of(event(), Archive(archive.storage))
    assert (await without_files.dataset()).SOPInstanceUID == CT.sop_instance_uid
    with pytest.raises(StorageError, match="no files"):
        _ = without_files.path


async def test_a_dicos_object_is_read_as_any_other(archive: Archive, tmp_path: Path) -> None:
    tdr = dicos_tdr()
    (tmp_path / "objects/a.dcm").write_bytes(tdr.part10())
    of = event(sop_class_uid=tdr.sop_class_uid, transfer_syntax_uid=tdr.transfer_syntax_uid)
    assert (await StoredInstance.of(of, archive).header()).text(0x00080018) == tdr.sop_instance_uid


async def test_an_event_is_wanted_by_its_kind_and_the_filter(archive: Archive) -> None:
    @callback("stored", modalities=["CT"], called_ae_titles=["ARCHIVE"])
    async def of_ct(instance: Any) -> None: ...

    @callback("association_complete", calling_ae_titles=["CT*"])
    async def complete(association: Any) -> None: ...

    chosen = subscriber(of_ct, archive)
    assert chosen.wants(event())
    assert not chosen.wants(event(modality="MR"))
    assert not chosen.wants(event(called_ae_title="X"))
    assert not chosen.wants(event(EventKind.ASSOCIATION_ENDED))
    whole = subscriber(complete, archive)
    assert whole.wants(event(EventKind.ASSOCIATION_ENDED))
    assert not whole.wants(event(EventKind.ASSOCIATION_ENDED, calling_ae_title="MR1"))
    assert not whole.wants(event())


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_complete_association_has_all_its_parts(archive: Archive, kind: str) -> None:
    got: list[tuple[AssociationComplete, list[int]]] = []

    @callback("association_complete")
    async def complete(association: AssociationComplete) -> None:
        assert isinstance(association.parts, StoredParts)
        with pytest.raises(RuntimeError, match="async for"):
            list(association.parts)
        got.append((association, [part.part_number async for part in association.parts]))

    @callback("association_complete")
    def plain(association: AssociationComplete) -> None:
        got.append((association, [part.part_number for part in association.parts]))

    await subscriber(complete if kind == "async" else plain, archive).deliver(
        delivery(event(EventKind.ASSOCIATION_ENDED, outcome="aborted"))
    )
    ((association, parts),) = got
    assert (association.outcome, association.ended_at_ns) == ("aborted", 99)
    assert parts == [1, 2]


async def test_a_settled_study_is_named(archive: Archive) -> None:
    got: list[StudySettled] = []

    @callback("study_settled")
    async def settled(study: StudySettled) -> None:
        got.append(study)

    await subscriber(settled, archive).deliver(delivery(event(EventKind.STUDY_SETTLED)))
    assert got == [StudySettled("1.2.1", 99)]


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (RuntimeError("x"), NotDelivered),
        (NotDelivered("later"), NotDelivered),
        (DestinationDown("down"), DestinationDown),
        (Undeliverable("never"), Undeliverable),
        (Reject(), Undeliverable),
    ],
)
async def test_what_it_raises_says_what_becomes_of_the_delivery(
    archive: Archive, error: Exception, becomes: type[Exception]
) -> None:
    @callback("stored")
    async def failing(instance: Any) -> None:
        raise error

    with captured_logs(), pytest.raises(becomes) as caught:
        await subscriber(failing, archive).deliver(delivery(event()))
    assert type(caught.value) is becomes


async def test_what_it_returns_is_said_and_does_not_repeat_it(archive: Archive) -> None:
    @callback("stored")
    async def chatty(instance: Any) -> str:
        return "done"

    with captured_logs() as lines:
        await subscriber(chatty, archive).deliver(delivery(event()))
    assert [line["outcome"] for line in lines] == ["nonsense"]


async def test_the_process_of_a_callback_reads_the_file_itself(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "reading_plugin.py").write_text(
        "from scp_server import callback\n"
        "@callback('stored', run_in='process')\n"
        "def read(instance, delivery):\n"
        "    with open(__file__ + '.read', 'w') as file:\n"
        "        file.write(f'{instance.read_dataset().SOPInstanceUID} {delivery.idempotency_key}')\n"
        "@callback('association_complete', run_in='process')\n"
        "def count(association):\n"
        "    with open(__file__ + '.read', 'a') as file:\n"
        "        file.write(f' {[part.part_number for part in association.parts]}')\n"
    )
    callbacks = ActiveCallbacks(
        load_callbacks(CallbackSources(plugins=["reading_plugin"], entry_points=False))
    )
    found = {each.name: each for each in callbacks.subscribers(archive, Events())}
    await found["callback:read"].deliver(delivery(event()))
    await found["callback:count"].deliver(delivery(event(EventKind.ASSOCIATION_ENDED)))
    await callbacks.close()
    text = (tmp_path / "reading_plugin.py.read").read_text()
    assert text == f"{CT.sop_instance_uid} archive:1:callback:x [1, 2]"
