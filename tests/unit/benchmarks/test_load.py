"""The load generator sends what it says, and counts what was answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.load import AssociateWork, EchoWork, LargeWork, StoreWork, Until, Work, apply_load
from benchmarks.peers import start_ours, start_sink
from benchmarks.sent_objects import CONTEXT_ID, OBJECTS, StoreMessage, names
from benchmarks.sink import SinkAssociation
from scp_server.testing.wire import (
    PDV,
    Control,
    ProposedContext,
    Tag,
    associate_rq,
    c_echo_rq,
    p_data_tf,
    read_answer,
    read_command_set,
    read_pdvs,
    release_rp,
    release_rq,
)

PIECES = (1, 7, 1_000, 1 << 20)
MAXIMUM_LENGTH = 16_384


def pdus(data: bytes) -> list[tuple[int, bytes]]:
    """Type and body of each."""
    found, position = [], 0
    while position < len(data):
        end = position + 6 + int.from_bytes(data[position + 2 : position + 6], "big")
        found.append((data[position], data[position + 6 : end]))
        position = end
    return found


def fed(data: bytes, piece: int) -> bytes:
    """What the sink answers to bytes that arrive in pieces."""
    association = SinkAssociation()
    return b"".join(
        association.feed(memoryview(data)[start : start + piece]) for start in range(0, len(data), piece)
    )


@pytest.mark.parametrize("name", OBJECTS)
def test_a_message_is_the_object_under_other_names(name: str) -> None:
    template = OBJECTS[name]()
    message = StoreMessage(template, MAXIMUM_LENGTH)
    message.name(7, 1_234)

    old, new = names(0, 0), names(7, 1_234)
    expected = template.dataset
    for before, after in (
        (old.sop_instance_uid, new.sop_instance_uid),
        (old.series_instance_uid, new.series_instance_uid),
        (old.study_instance_uid, new.study_instance_uid),
        (old.patient_id, new.patient_id),
    ):
        expected = expected.replace(before.encode(), after.encode())
    sent = pdus(bytes(message.encoded))
    assert all(len(body) <= MAXIMUM_LENGTH for _, body in sent)
    command, *fragments = [pdv for _, body in sent for pdv in read_pdvs(body)]
    assert b"".join(each.fragment for each in fragments) == expected != template.dataset
    assert [each.control for each in fragments] == [Control.DATASET] * (len(fragments) - 1) + [Control.LAST]
    instance = read_command_set(command.fragment)[Tag.AFFECTED_SOP_INSTANCE_UID]
    assert instance.decode("ascii").rstrip("\0") == new.sop_instance_uid


def test_names_are_of_one_length_and_never_the_same() -> None:
    found = [names(sender, number) for sender in (0, 1, 31) for number in (0, 1, 199, 200, 999_999)]
    assert len({each.sop_instance_uid for each in found}) == len(found)
    for each in (
        {len(one.sop_instance_uid) for one in found},
        {len(one.study_instance_uid) for one in found},
        {len(one.patient_id) for one in found},
    ):
        assert len(each) == 1


def test_200_instances_make_a_study() -> None:
    assert names(0, 0).study_instance_uid == names(0, 199).study_instance_uid
    assert names(0, 199).study_instance_uid != names(0, 200).study_instance_uid


@pytest.mark.parametrize("piece", PIECES)
def test_the_sink_answers_each_request_once_however_it_arrives(piece: int) -> None:
    message = StoreMessage(OBJECTS["small"](), 4_096)
    echo = p_data_tf(PDV(CONTEXT_ID, Control.COMMAND | Control.LAST, c_echo_rq(1)))
    contexts = [ProposedContext(CONTEXT_ID, "1.2.3", ["1.2.840.10008.1.2"])]
    answers = pdus(fed(associate_rq(contexts) + 2 * bytes(message.encoded) + echo + release_rq(), piece))

    assert read_answer(answers[0][1]).accepted() == {CONTEXT_ID: "1.2.840.10008.1.2"}
    commands = [read_command_set(read_pdvs(body)[0].fragment) for _, body in answers[1:-1]]
    assert [each[Tag.COMMAND_FIELD] for each in commands] == [b"\x01\x80", b"\x01\x80", b"\x30\x80"]
    assert {each[Tag.STATUS] for each in commands} == {b"\0\0"}
    assert pdus(release_rp()) == answers[-1:]


@pytest.mark.parametrize(
    "work",
    [StoreWork("small"), StoreWork("ct"), LargeWork(1 << 20), EchoWork(), AssociateWork()],
    ids=["small", "ct", "large", "echo", "associate"],
)
def test_every_operation_is_counted(work: Work, tmp_path: Path) -> None:
    with start_sink(tmp_path) as peer:
        load = apply_load(peer, work, senders=2, until=Until(operations=3))
    assert (load.senders, load.successes, load.refused, load.problems) == (2, 6, {}, [])
    assert load.per_second > 0
    assert [len(each.latencies_seconds) for each in load.told] == [3, 3]


def test_a_server_that_refuses_or_takes_no_association_is_not_counted_as_fast(tmp_path: Path) -> None:
    settings = {
        "SCP_SERVER_LIMITS__MAX_ASSOCIATIONS": "1",
        "SCP_SERVER_LIMITS__MAX_OBJECT_BYTES": "5000",
    }
    with start_ours(tmp_path, settings) as peer:
        load = apply_load(peer, StoreWork("small"), senders=2, until=Until(operations=3))
    assert load.senders == 1
    assert load.problems == ["the association was not accepted: PDU 3"]
    assert (load.successes, load.per_second, load.refused) == (0, 0, {0xA700: 3})
