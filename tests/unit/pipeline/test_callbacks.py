"""Who is told and asked at which moment, in which order, and what their answer does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from scp_server import Reject, callback
from scp_server.interfaces import AssociationInfo, AssociationVerdict, PeerRules
from scp_server.objects.differences import differences
from scp_server.observability.logs import captured_logs
from scp_server.observability.measures import CallbackMeasures
from scp_server.pipeline.callbacks import ActiveCallbacks
from scp_server.pipeline.instances import ReceivedInstance
from scp_server.pipeline.registry import CallbackSources, load_callbacks
from scp_server.pipeline.running import CallbackLimits
from scp_server.pipeline.subjects import AssociationFacts
from scp_server.testing.callback_subjects import association, received_instance
from scp_server.testing.dicos_objects import dicos_tdr
from scp_server.testing.objects import Patient, ct_image

INFO = AssociationInfo("a-1", "CT1", "ARCHIVE", "192.0.2.7", 104, "1.2.3", peer=PeerRules("ct"))
Activate = Callable[..., ActiveCallbacks]


@pytest.fixture
async def activate() -> AsyncIterator[Activate]:
    """Makes the callbacks of a server of decorated functions."""
    made: list[ActiveCallbacks] = []

    def activate(*functions: Any, measures: CallbackMeasures | None = None, **limits: Any) -> ActiveCallbacks:
        registry = load_callbacks(CallbackSources(functions, entry_points=False))
        made.append(
            ActiveCallbacks(registry, CallbackLimits(**{"blocking_seconds": 60.0, **limits}), measures)
        )
        return made[-1]

    yield activate
    for each in made:
        await each.close()


# -- objects before they are stored


async def test_an_object_is_shown_in_order_to_those_it_is_meant_for(activate: Activate) -> None:
    seen: list[tuple[str, str]] = []

    def looking(name: str, **chosen: Any) -> Any:
        async def look(instance: ReceivedInstance) -> None:
            seen.append((name, instance.sop_class_uid))

        return callback("received", name=name, **chosen)(look)

    callbacks = activate(
        looking("b"),
        looking("a"),
        looking("first", order=-1),
        looking("dicos", sop_classes=["dicos"]),
        looking("of_mr", modalities=["MR"]),
        looking("of_ct1", calling_ae_titles=["CT?"]),
    )
    assert callbacks.inspects
    ct, tdr = (
        received_instance(ct_image(), association("CT1")),
        received_instance(dicos_tdr(), association("LANE7")),
    )
    await callbacks.inspect(ct)
    await callbacks.inspect(tdr)
    assert [name for name, uid in seen if uid == ct.sop_class_uid] == ["first", "a", "b", "of_ct1"]
    assert [name for name, uid in seen if uid == tdr.sop_class_uid] == ["first", "a", "b", "dicos"]


async def test_the_first_that_rejects_ends_it(activate: Activate) -> None:
    seen = []

    @callback("received", order=1)
    async def no(instance: Any) -> None:
        raise Reject(0xC123, "not this one", quarantine=True)

    @callback("received", order=2)
    async def later(instance: Any) -> None:
        seen.append(instance)

    with captured_logs() as lines, pytest.raises(Reject) as caught:
        await activate(no, later).inspect(received_instance(ct_image()))
    assert (caught.value.status, caught.value.quarantine) == (0xC123, True)
    assert seen == []
    (line,) = lines
    assert (line["event"], line["callback"], line["status"]) == ("callback.rejected", "no", "0xC123")
    assert line["association_id"] == "test-1"


async def test_one_that_fails_refuses_with_a700_unless_it_may_be_ignored(activate: Activate) -> None:
    @callback("received")
    async def careless(instance: Any) -> None:
        raise RuntimeError("patient DOE^JOHN")

    with captured_logs("info"), pytest.raises(Reject) as caught:
        await activate(careless).inspect(received_instance(ct_image()))
    assert (caught.value.status, caught.value.comment) == (0xA700, "a callback failed")
    assert caught.value.quarantine is False
    seen = []

    @callback("received", on_failure="ignore", order=-1)
    async def ignored(instance: ReceivedInstance) -> None:
        instance.change({"PatientID": "half of what it wanted"})
        raise RuntimeError

    @callback("received")
    async def next_one(instance: ReceivedInstance) -> None:
        seen.append(instance.changes)

    with captured_logs() as lines:
        await activate(ignored, next_one).inspect(received_instance(ct_image()))
    assert seen == [None]
    assert [line["event"] for line in lines] == ["callback.raised", "callback.failed"]


async def test_what_an_instance_tells_needs_no_file(activate: Activate) -> None:
    told: dict[str, Any] = {}

    @callback("received")
    def look(instance: ReceivedInstance) -> None:
        told["name"] = instance.attribute("PatientName")
        told["type"] = instance.attribute("ImageType")
        told["by tag"] = instance.attribute(0x00100020)
        told["absent"] = instance.attribute("0029,ACME CT,10")
        told["dataset"] = instance.dataset()
        told["instance"] = instance

    stored = ct_image(patient=Patient("DOE^JANE", "P-7"))
    await activate(look).inspect(received_instance(stored))
    assert str(told["dataset"].PatientName) == told["name"] == "DOE^JANE"
    assert told["by tag"] == told["dataset"].PatientID
    assert isinstance(told["type"], tuple)
    assert told["absent"] is None
    assert "PixelData" not in told["dataset"]
    instance = told["instance"]
    assert instance.sop_instance_uid == stored.sop_instance_uid
    assert instance.size_bytes == len(stored.dataset)


async def test_the_process_of_a_callback_sees_the_object_and_may_change_it(
    activate: Activate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "changing_plugin.py").write_text(
        "from scp_server import callback\n"
        "@callback('received', run_in='process')\n"
        "def rename(instance):\n"
        "    assert instance.dataset().PatientID == 'P-7'\n"
        "    instance.change({'PatientID': instance.attribute('PatientID') + 'X'})\n"
    )
    registry = load_callbacks(CallbackSources(plugins=["changing_plugin"], entry_points=False))
    callbacks = ActiveCallbacks(registry)
    instance = received_instance(ct_image(patient=Patient("DOE^JANE", "P-7")))
    instance.change({"AccessionNumber": "A-1"})
    await callbacks.inspect(instance)
    await callbacks.close()
    assert instance.changes is not None
    assert instance.changes.names == ("AccessionNumber", "PatientID")
    assert "PatientID: 'P-7' -> 'P-7X'" in differences(instance.header, instance.changes)


# -- associations


async def test_an_association_is_asked_about_in_order_until_one_says_no(activate: Activate) -> None:
    asked: list[str] = []

    def asking(name: str, error: Exception | None, **more: Any) -> Any:
        async def ask(association: AssociationFacts) -> None:
            assert association.peer_name == "ct"
            asked.append(name)
            if error is not None:
                raise error

        return callback("associated", name=name, **more)(ask)

    assert not activate(asking("other", None, calling_ae_titles=["MR*"])).judges(INFO)
    callbacks = activate(asking("a", None), asking("b", Reject()), asking("c", None))
    assert callbacks.judges(INFO)
    with captured_logs() as lines:
        assert await callbacks.may_associate(INFO) is AssociationVerdict.NO
    assert [line["event"] for line in lines] == ["callback.rejected"]
    assert asked == ["a", "b"]
    with captured_logs():
        failing = activate(asking("d", KeyError()))
        assert await failing.may_associate(INFO) is AssociationVerdict.CANNOT_SAY
        ignoring = activate(asking("e", KeyError(), on_failure="ignore"))
        assert await ignoring.may_associate(INFO) is AssociationVerdict.YES


async def test_what_happens_to_associations_is_told_in_order(activate: Activate) -> None:
    told: list[tuple[str, Any]] = []

    def telling(stage: str) -> Any:
        async def tell(subject: Any) -> None:
            told.append((stage, subject))

        return callback(stage, name=stage)(tell)

    stages = ["connected", "disconnected", "accepted", "ended", "echo"]
    callbacks = activate(*map(telling, stages))
    assert callbacks.listens
    assert not callbacks.inspects
    callbacks.connected("192.0.2.7", 104)
    callbacks.accepted(INFO)
    callbacks.echoed(INFO)
    callbacks.ended(INFO, "released", 3, 500)
    callbacks.disconnected("192.0.2.7", 104)
    await callbacks.close()
    assert [stage for stage, _ in told] == ["connected", "accepted", "echo", "ended", "disconnected"]
    subjects = dict(told)
    assert subjects["accepted"].association_id == subjects["ended"].association.association_id == "a-1"
    assert (subjects["ended"].outcome, subjects["ended"].operations) == ("released", 3)


async def test_notices_that_nobody_takes_are_dropped_and_counted(activate: Activate) -> None:
    measures, leave = CallbackMeasures(), asyncio.Event()

    @callback("connected", concurrency=1)
    async def slow(connection: Any) -> None:
        await leave.wait()

    callbacks = activate(slow, measures=measures, max_waiting=2)
    callbacks.connected("192.0.2.7", 1)
    await asyncio.sleep(0)
    with captured_logs() as lines:
        for port in range(5):
            callbacks.connected("192.0.2.7", port)
    counts = measures.of("slow")
    assert [line["event"] for line in lines] == ["callback.notices_dropped"]
    assert (counts.running, counts.waiting, counts.outcomes["dropped"]) == (1, 2, 3)
    leave.set()
    await callbacks.close()
    assert (counts.waiting, counts.outcomes["returned"]) == (0, 3)


async def test_a_notice_has_no_verdict(activate: Activate) -> None:
    @callback("connected")
    async def confused(connection: Any) -> None:
        raise Reject

    callbacks = activate(confused)
    with captured_logs() as lines:
        callbacks.connected("192.0.2.7", 1)
        await callbacks.close()
    assert [line["event"] for line in lines] == ["callback.raised", "callback.failed"]
    assert lines[1]["outcome"] == "raised"
