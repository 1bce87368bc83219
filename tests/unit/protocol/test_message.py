"""The DIMSE messages as values, and the response that belongs to a request."""

from __future__ import annotations

import pytest

from scp_server.protocol import message as m
from scp_server.protocol.message import response_to, safe_comment

STORE = m.CStoreRQ(
    message_id=7, affected_sop_class_uid="1.2.3", affected_sop_instance_uid="4.5.6", has_dataset=True
)

ANSWERED: list[tuple[m.Request, m.Response]] = [
    (
        STORE,
        m.CStoreRSP(
            message_id_being_responded_to=7,
            status=0,
            affected_sop_class_uid="1.2.3",
            affected_sop_instance_uid="4.5.6",
        ),
    ),
    (
        m.CFindRQ(message_id=1, affected_sop_class_uid="1.2", has_dataset=True),
        m.CFindRSP(message_id_being_responded_to=1, status=0, affected_sop_class_uid="1.2"),
    ),
    (
        m.CGetRQ(message_id=1, affected_sop_class_uid="1.2", has_dataset=True),
        m.CGetRSP(message_id_being_responded_to=1, status=0, affected_sop_class_uid="1.2"),
    ),
    (
        m.CMoveRQ(message_id=1, affected_sop_class_uid="1.2", move_destination="X", has_dataset=True),
        m.CMoveRSP(message_id_being_responded_to=1, status=0, affected_sop_class_uid="1.2"),
    ),
    (
        m.CEchoRQ(message_id=0),
        m.CEchoRSP(
            message_id_being_responded_to=0, status=0, affected_sop_class_uid=m.VERIFICATION_SOP_CLASS_UID
        ),
    ),
    (
        m.NEventReportRQ(
            message_id=2, affected_sop_class_uid="1", affected_sop_instance_uid="2", event_type_id=5
        ),
        m.NEventReportRSP(
            message_id_being_responded_to=2,
            status=0,
            affected_sop_class_uid="1",
            affected_sop_instance_uid="2",
            event_type_id=5,
        ),
    ),
    (
        m.NGetRQ(message_id=2, requested_sop_class_uid="1", requested_sop_instance_uid="2"),
        m.NGetRSP(
            message_id_being_responded_to=2,
            status=0,
            affected_sop_class_uid="1",
            affected_sop_instance_uid="2",
        ),
    ),
    (
        m.NSetRQ(message_id=2, requested_sop_class_uid="1", requested_sop_instance_uid="2"),
        m.NSetRSP(
            message_id_being_responded_to=2,
            status=0,
            affected_sop_class_uid="1",
            affected_sop_instance_uid="2",
        ),
    ),
    (
        m.NActionRQ(
            message_id=2, requested_sop_class_uid="1", requested_sop_instance_uid="2", action_type_id=1
        ),
        m.NActionRSP(
            message_id_being_responded_to=2,
            status=0,
            affected_sop_class_uid="1",
            affected_sop_instance_uid="2",
            action_type_id=1,
        ),
    ),
    (
        m.NCreateRQ(message_id=2, affected_sop_class_uid="1"),
        m.NCreateRSP(message_id_being_responded_to=2, status=0, affected_sop_class_uid="1"),
    ),
    (
        m.NDeleteRQ(message_id=2, requested_sop_class_uid="1", requested_sop_instance_uid="2"),
        m.NDeleteRSP(
            message_id_being_responded_to=2,
            status=0,
            affected_sop_class_uid="1",
            affected_sop_instance_uid="2",
        ),
    ),
    (
        m.UnrecognizedCommand(message_id=9, command_field=0x0055, has_dataset=True),
        m.UnrecognizedCommandRSP(message_id_being_responded_to=9, status=0, command_field=0x8055),
    ),
]


@pytest.mark.parametrize(("request_", "response"), ANSWERED, ids=lambda value: type(value).__name__)
def test_a_response_repeats_what_identifies_its_request(request_: m.Request, response: m.Response) -> None:
    assert response_to(request_, 0) == response


@pytest.mark.parametrize(("request_", "response"), ANSWERED, ids=lambda value: type(value).__name__)
def test_a_response_has_its_requests_command_field_with_the_response_bit(
    request_: m.Request, response: m.Response
) -> None:
    assert response.command_field == request_.command_field | m.RESPONSE_BIT


def test_every_request_has_a_response() -> None:
    requests = {member.name for member in m.CommandField if member.name.endswith("_RQ")} - {"C_CANCEL_RQ"}
    assert {m.CommandField(request.command_field).name for request, _ in ANSWERED[:-1]} == requests


@pytest.mark.parametrize("uid", ["", "1" * 65, "1.2\n3", "1.\xe9", "1\\2"])
def test_a_uid_that_cannot_be_sent_is_left_out_of_the_response(uid: str) -> None:
    request = m.CStoreRQ(message_id=1, affected_sop_class_uid=uid, affected_sop_instance_uid=uid)
    response = response_to(request, 0x0117)
    assert isinstance(response, m.CStoreRSP)
    assert response.affected_sop_class_uid is None
    assert response.affected_sop_instance_uid is None


def test_a_response_carries_the_failures_details_and_further_fields() -> None:
    response = response_to(
        m.CMoveRQ(message_id=1, affected_sop_class_uid="1.2", move_destination="X"),
        0xA702,
        comment="no such place",
        offending_elements=iter([0x00000600]),
        has_dataset=True,
        number_of_failed_suboperations=3,
    )
    assert isinstance(response, m.CMoveRSP)
    assert response.has_dataset
    assert response.status == 0xA702
    assert response.error_comment == "no such place"
    assert response.offending_elements == (0x00000600,)
    assert response.number_of_failed_suboperations == 3


def test_a_field_that_the_response_does_not_have_is_an_error() -> None:
    with pytest.raises(TypeError):
        response_to(STORE, 0, number_of_failed_suboperations=3)


@pytest.mark.parametrize(
    ("text", "comment"),
    [
        ("cannot write", "cannot write"),
        ("x" * 65, "x" * 64),
        ("a\\b\nc\x00d\xe9\u20ac", "a?b?c?d??"),
        ("  padded  ", "padded"),
        ("y" * 63 + " z", "y" * 63),
        ("", ""),
    ],
)
def test_a_comment_becomes_at_most_64_printable_ascii_characters(text: str, comment: str) -> None:
    assert safe_comment(text) == comment


def test_only_messages_that_are_answered_are_requests() -> None:
    assert m.is_request(STORE)
    assert m.is_request(m.UnrecognizedCommand(message_id=1, command_field=0x0055))
    assert not m.is_request(m.CCancelRQ(message_id_being_responded_to=1))
    assert not m.is_request(response_to(STORE, 0))


def test_an_unrecognized_command_does_not_exist_without_its_command_field() -> None:
    with pytest.raises(TypeError):
        m.UnrecognizedCommand(message_id=1)  # type: ignore[call-arg]
