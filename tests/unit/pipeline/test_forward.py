"""A rule that forwards: what it sends, what answers mean, and whom a failure is blamed on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import (
    AssociationAborted,
    AssociationError,
    AssociationLost,
    AssociationRejected,
    ConnectFailed,
    IndexUnavailable,
)
from scp_server.index.store import SqlIndex
from scp_server.interfaces import StoreOutcome
from scp_server.observability.rule_measures import ForwardMeasures
from scp_server.pipeline.builtin.forward import ForwardRule, ForwardSubscriber
from scp_server.pipeline.deliveries import EventKind, LoggedEvent
from scp_server.pipeline.filters import ObjectFilter
from scp_server.pipeline.sending import Source
from scp_server.pipeline.verdicts import DestinationDown, NotDelivered, Undeliverable
from scp_server.protocol.message import Priority
from scp_server.services.query_retrieve.frame_decoders import DecodingConfig
from scp_server.services.query_retrieve.transcoding import Transcoder
from scp_server.storage.filesystem import FilesystemStorage
from scp_server.testing.archive import Archive
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_sender import FakeDestinations, FakeRemote
from scp_server.testing.objects import ct_image
from tests.unit.pipeline.events import delivery, of_association, settled, stored

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
VERIFICATION = "1.2.840.10008.1.1"
CT = ct_image(rows=4, columns=4)
SECTIONS = two_section_ct()
DEFLATED = ct_image(seed=2, rows=4, transfer_syntax=TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
OBJECTS: list[EncodedObject] = [CT, *SECTIONS, DEFLATED]


@dataclass(slots=True)
class Bench:
    """An archive, a remote and a rule between them."""

    storage: FilesystemStorage
    index: SqlIndex
    archive: Archive
    remote: FakeRemote = field(default_factory=FakeRemote)
    measures: ForwardMeasures = field(default_factory=ForwardMeasures)
    transcoder: Transcoder | None = None
    _destinations: FakeDestinations = field(init=False)

    def __post_init__(self) -> None:
        self._destinations = FakeDestinations({"PACS": self.remote})

    def subscriber(self, **rule: Any) -> ForwardSubscriber:
        return ForwardSubscriber(
            ForwardRule("all", "PACS", **rule),
            Source(self.storage, self.transcoder),
            self.index,
            self._destinations,
            self.measures,
        )

    def event(self, one: EncodedObject, **facts: Any) -> LoggedEvent:
        return stored(one, self.archive.location_of(one), **facts)

    @property
    def asked(self) -> list[tuple[str, tuple[str, ...]]]:
        """The contexts of each association that was asked for; each had one SOP class."""
        return [contexts[0] for _, contexts in self._destinations.asked]

    @property
    def results(self) -> dict[str, int]:
        counts = self.measures.of("all", "PACS").results
        return {str(name): count for name, count in counts.items() if count}


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Bench]:
    archive = Archive.at(folder)
    assert await archive.store(OBJECTS) == [0] * len(OBJECTS)
    async with archive.opened() as (storage, index):
        yield Bench(storage, index, archive)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with opened(tmp_path) as bench:
        yield bench


# -- what is sent ------------------------------------------------------------------------------------------


async def test_an_object_goes_to_the_remote_as_it_is_stored(bench: Bench) -> None:
    subscriber = bench.subscriber(priority=Priority.HIGH)
    await subscriber.deliver(delivery(bench.event(CT)))
    (sent,) = bench.remote.sent
    assert (sent.sop_class_uid, sent.sop_instance_uid) == (CT.sop_class_uid, CT.sop_instance_uid)
    assert (sent.dataset, sent.context.transfer_syntax) == (CT.dataset, EXPLICIT)
    assert (sent.priority, sent.move_originator) == (Priority.HIGH, None)
    assert (bench.remote.ends, bench.results) == (["clean"], {"sent": 1})
    assert bench.measures.of("all", "PACS").sent_bytes == len(CT.dataset)


async def test_each_part_of_an_instance_is_sent_by_its_own_event(bench: Bench) -> None:
    subscriber = bench.subscriber()
    for section in SECTIONS:
        await subscriber.deliver(delivery(bench.event(section)))
    assert [sent.dataset for sent in bench.remote.sent] == [section.dataset for section in SECTIONS]


async def test_what_the_remote_does_not_take_as_it_is_stored_is_re_encoded(bench: Bench) -> None:
    bench.transcoder = Transcoder(DecodingConfig())
    bench.remote.accepts = lambda _sop_class, syntax: syntax == IMPLICIT
    await bench.subscriber().deliver(delivery(bench.event(DEFLATED)))
    (sent,) = bench.remote.sent
    assert sent.context.transfer_syntax == IMPLICIT
    assert sent.dataset != DEFLATED.dataset
    await bench.transcoder.close()


async def test_only_what_the_remotes_entry_allows_is_proposed(bench: Bench) -> None:
    bench.transcoder = Transcoder(DecodingConfig())
    bench.remote.transfer_syntaxes = (IMPLICIT,)
    await bench.subscriber().deliver(delivery(bench.event(CT)))
    assert bench.asked == [(CT.sop_class_uid, (IMPLICIT,))]
    bench.remote.transfer_syntaxes = ("1.2.840.10008.1.2.4.70",)
    with pytest.raises(Undeliverable, match=r"1\.2\.840\.10008\.1\.2\.1 can be given none that it takes"):
        await bench.subscriber().deliver(delivery(bench.event(CT)))
    assert len(bench.asked) == 1
    await bench.transcoder.close()


async def test_an_object_that_was_deleted_meanwhile_is_done_with_and_counted(bench: Bench) -> None:
    event = bench.event(CT)
    await bench.index.remove([str(event.location)])
    await bench.subscriber().deliver(delivery(event))
    assert (bench.asked, bench.results) == ([], {"gone": 1})


async def test_a_file_that_is_missing_though_the_index_knows_it_is_tried_again(bench: Bench) -> None:
    """It may lie on a disk that is not there at the moment: nobody deleted it."""
    event = bench.event(CT)
    await bench.storage.delete(str(event.location))
    with pytest.raises(NotDelivered, match="the object cannot be read"):
        await bench.subscriber().deliver(delivery(event))
    assert (bench.remote.sent, bench.results) == ([], {"failed": 1})
    assert bench.remote.ends == ["clean"]


async def test_an_object_that_ends_early_costs_the_association_and_is_tried_again(bench: Bench) -> None:
    event = bench.event(CT)
    path = bench.archive.data_dir / str(event.location)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(NotDelivered, match="ends 10 bytes early"):
        await bench.subscriber().deliver(delivery(event))
    assert bench.remote.sent == []
    assert not bench.remote.senders[0].alive


async def test_damage_that_re_encoding_meets_makes_a_dead_letter(bench: Bench) -> None:
    bench.transcoder = Transcoder(DecodingConfig())
    event = bench.event(DEFLATED)
    path = bench.archive.data_dir / str(event.location)
    data = bytearray(path.read_bytes())
    data[-60:] = b"\xff" * 60
    path.write_bytes(data)
    bench.remote.accepts = lambda _sop_class, syntax: syntax == EXPLICIT
    with pytest.raises(Undeliverable, match="cannot be given a transfer syntax"):
        await bench.subscriber().deliver(delivery(event))
    assert bench.results == {"refused": 1}
    await bench.transcoder.close()


async def test_an_index_that_cannot_be_read_is_no_verdict_on_the_object(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_location: str) -> None:
        raise IndexUnavailable("locked")

    event = bench.event(CT)
    monkeypatch.setattr(bench.index, "part", fail)
    with pytest.raises(NotDelivered, match="the index cannot be read: locked"):
        await bench.subscriber().deliver(delivery(event))


# -- what answers mean -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "result"),
    [(0x0000, "sent"), (0x0001, "warning"), (0x0107, "warning"), (0xB000, "warning"), (0xB007, "warning")],
)
async def test_success_and_warnings_are_deliveries(bench: Bench, status: int, result: str) -> None:
    bench.remote.answers = [status]
    await bench.subscriber().deliver(delivery(bench.event(CT)))
    assert bench.results == {result: 1}


@pytest.mark.parametrize("status", [0xA700, 0xA7FF, 0x0110, 0x0213])
async def test_failures_of_the_moment_are_tried_again(bench: Bench, status: int) -> None:
    """PS3.4 B.2.3: out of resources; PS3.7 C.5.12 and C.5.17."""
    bench.remote.answers = [StoreOutcome(status, "disk\nfull")]
    with pytest.raises(NotDelivered, match=rf"status 0x{status:04X} \(disk\\x0afull\)"):
        await bench.subscriber().deliver(delivery(bench.event(CT)))
    assert (bench.results, bench.remote.ends) == ({"failed": 1}, ["clean"])


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0xC111, 0x0122, 0x0124, 0x0117, 0xFE00, 0xFF00, 0x1234])
async def test_other_failures_are_dead_letters(bench: Bench, status: int) -> None:
    bench.remote.answers = [status]
    with pytest.raises(Undeliverable, match=f"status 0x{status:04X}"):
        await bench.subscriber().deliver(delivery(bench.event(CT)))
    assert (bench.results, bench.remote.ends) == ({"refused": 1}, ["clean"])


async def test_a_class_that_the_remote_does_not_take_is_a_dead_letter(bench: Bench) -> None:
    bench.remote.accepts = lambda _sop_class, _syntax: False
    with pytest.raises(Undeliverable, match=f"no presentation context .* class {CT.sop_class_uid}"):
        await bench.subscriber().deliver(delivery(bench.event(CT)))
    assert bench.remote.ends == ["clean"]


async def test_a_duplicate_is_a_failure_unless_it_may_be_our_own(bench: Bench) -> None:
    """0x0111 (PS3.7 C.5.6): after a crash, after another try, or where the settings say so."""
    subscriber, event = bench.subscriber(), bench.event(CT)
    bench.remote.answers = [0x0111, 0x0111, 0x0111, StoreOutcome(0x0111, counts_as_warning=True)]
    with pytest.raises(Undeliverable, match="status 0x0111"):
        await subscriber.deliver(delivery(event))
    await subscriber.deliver(delivery(event, may_be_repeated=True))
    await subscriber.deliver(delivery(event, attempt=2))
    await subscriber.deliver(delivery(event))
    assert bench.results == {"refused": 1, "known": 3}


async def test_an_association_that_ends_inside_an_object_is_tried_again(bench: Bench) -> None:
    bench.remote.answers = [AssociationLost("gone")]
    with pytest.raises(NotDelivered, match="no answer from the destination: gone") as raised:
        await bench.subscriber().deliver(delivery(bench.event(CT)))
    assert not isinstance(raised.value, DestinationDown)


# -- whom a failure is blamed on ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal", [ConnectFailed("nobody"), AssociationRejected(1, 1, 7), AssociationAborted(2, 0)], ids=repr
)
async def test_a_remote_that_grants_no_association_is_down(bench: Bench, refusal: AssociationError) -> None:
    """However often it is asked: neither is a try of the object."""
    subscriber, event = bench.subscriber(), bench.event(CT)
    bench.remote.refusal = refusal
    for _ in range(3):
        with pytest.raises(DestinationDown):
            await subscriber.deliver(delivery(event))
    assert [sop_class for sop_class, _ in bench.asked] == [CT.sop_class_uid, VERIFICATION, VERIFICATION]
    assert bench.results == {}
    bench.remote.refusal = None
    await subscriber.deliver(delivery(event))
    await subscriber.deliver(delivery(event))
    assert [sop_class for sop_class, _ in bench.asked[3:]] == [
        VERIFICATION,
        CT.sop_class_uid,
        CT.sop_class_uid,
    ]


async def test_a_remote_that_grants_associations_but_none_for_a_class_does_not_hold_up_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the DICOS toolkit's server, which never answers a request that has no class of its own."""
    send_to = FakeDestinations.send_to

    def only_dicos(self: FakeDestinations, title: str, contexts: Any) -> Any:
        bench.remote.refusal = ConnectFailed("silence") if contexts[0][0] == CT.sop_class_uid else None
        return send_to(self, title, contexts)

    monkeypatch.setattr(FakeDestinations, "send_to", only_dicos)
    subscriber = bench.subscriber()
    with pytest.raises(DestinationDown):
        await subscriber.deliver(delivery(bench.event(CT)))
    with pytest.raises(NotDelivered, match="none for this SOP class: silence") as raised:
        await subscriber.deliver(delivery(bench.event(CT)))
    assert not isinstance(raised.value, DestinationDown)
    await subscriber.deliver(delivery(bench.event(SECTIONS[0])))
    assert bench.results == {"failed": 1, "sent": 1}


# -- what it is about --------------------------------------------------------------------------------------


def test_it_wants_objects_that_its_filter_means_and_nothing_else(bench: Bench) -> None:
    everything = bench.subscriber()
    assert (everything.name, everything.concurrency) == ("forward:all:PACS", 4)
    assert everything.wants(stored(CT, "x"))
    assert not everything.wants(of_association(EventKind.ASSOCIATION_ENDED))
    assert not everything.wants(settled(CT.study_instance_uid))
    scanners = bench.subscriber(filter=ObjectFilter(sop_classes=("medical",), calling_ae_titles=("SCAN*",)))
    assert scanners.wants(stored(CT, "x"))
    assert not scanners.wants(stored(SECTIONS[0], "x"))
    assert not scanners.wants(stored(CT, "x", calling_ae_title="OTHER"))


async def test_several_series_go_side_by_side(bench: Bench) -> None:
    together = asyncio.Barrier(2)
    bench.remote.before_answer = together.wait
    subscriber = bench.subscriber()
    async with asyncio.timeout(10):
        await asyncio.gather(
            subscriber.deliver(delivery(bench.event(CT))),
            subscriber.deliver(delivery(bench.event(SECTIONS[0]))),
        )
    assert bench.results == {"sent": 2}
