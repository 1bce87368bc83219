"""Our codec beside pynetdicom's: the same PDUs, the same command sets, the same kinds of SOP classes."""

from __future__ import annotations

from dataclasses import fields
from io import BytesIO
from typing import Any

import pytest
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pynetdicom import dimse_messages, dsutils, pdu, sop_class, status

from scp_server.protocol import message as m
from scp_server.protocol.command import ELEMENTS, VR, decode_command, encode_command
from scp_server.protocol.items import (
    AsynchronousOperationsWindow,
    PresentationContextAC,
    PresentationContextRQ,
    RoleSelection,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityAC,
    UserIdentityRQ,
    UserInformation,
)
from scp_server.protocol.negotiation import SERVICE_CLASS_PREFIXES, NegotiationPolicy, negotiate
from scp_server.protocol.pdu import (
    PDU,
    Abort,
    AssociateAC,
    AssociateRJ,
    AssociateRQ,
    ReleaseRP,
    ReleaseRQ,
    decode_pdu,
    encode_pdu,
)
from scp_server.protocol.status import status_class

CT = "1.2.840.10008.5.1.4.1.1.2"
REQUEST = AssociateRQ(
    called_ae_title="CALLED",
    calling_ae_title="CALLING",
    application_context_name="1.2.840.10008.3.1.1.1",
    presentation_contexts=(
        PresentationContextRQ(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",)),
        PresentationContextRQ(3, CT, ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70")),
    ),
    user_information=UserInformation(
        maximum_length=16382,
        implementation_class_uid="1.2.826.0.1.3680043",
        implementation_version_name="VERSION",
        asynchronous_operations_window=AsynchronousOperationsWindow(2, 3),
        role_selections=(RoleSelection(CT, True, True), RoleSelection("1.2.840.10008.1.1", True, False)),
        extended_negotiations=(SOPClassExtendedNegotiation(CT, b"\2\0\3"),),
        common_extended_negotiations=(
            SOPClassCommonExtendedNegotiation(CT, "1.2.840.10008.4.2", ("1.2.840.10008.5.1.4.1.1.22",)),
        ),
        user_identity=UserIdentityRQ(2, True, b"user", b"passcode"),
    ),
)
ANSWER = AssociateAC(
    called_ae_title="CALLED",
    calling_ae_title="CALLING",
    application_context_name="1.2.840.10008.3.1.1.1",
    presentation_contexts=(
        PresentationContextAC(1, 0, "1.2.840.10008.1.2"),
        PresentationContextAC(3, 4, "1.2.840.10008.1.2.1"),
    ),
    user_information=UserInformation(
        maximum_length=0,
        implementation_class_uid="1.2.826.0.1.3680043",
        implementation_version_name="VERSION",
        asynchronous_operations_window=AsynchronousOperationsWindow(1, 1),
        role_selections=(RoleSelection(CT, True, False),),
        extended_negotiations=(SOPClassExtendedNegotiation(CT, b"\2\0\3"),),
        user_identity_response=UserIdentityAC(b"ticket"),
    ),
)
PDUS: list[tuple[PDU, Any]] = [
    (REQUEST, pdu.A_ASSOCIATE_RQ),
    (ANSWER, pdu.A_ASSOCIATE_AC),
    (AssociateRJ(1, 1, 7), pdu.A_ASSOCIATE_RJ),
    (ReleaseRQ(), pdu.A_RELEASE_RQ),
    (ReleaseRP(), pdu.A_RELEASE_RP),
    (Abort(2, 6), pdu.A_ABORT_RQ),
]


@pytest.mark.parametrize(("ours", "their_type"), PDUS, ids=lambda value: type(value).__name__)
def test_pynetdicom_reads_our_pdu_and_writes_the_same_bytes(ours: PDU, their_type: Any) -> None:
    theirs = their_type()
    theirs.decode(encode_pdu(ours))
    assert theirs.encode() == encode_pdu(ours)
    written = theirs.encode()
    assert decode_pdu(written[0], written[6:]) == ours


def test_pynetdicom_understands_our_request_as_we_do() -> None:
    theirs = pdu.A_ASSOCIATE_RQ()
    theirs.decode(encode_pdu(REQUEST))
    primitive = theirs.to_primitive()
    assert primitive.called_ae_title == REQUEST.called_ae_title
    assert primitive.calling_ae_title == REQUEST.calling_ae_title
    assert primitive.application_context_name == REQUEST.application_context_name
    assert [
        (context.context_id, context.abstract_syntax, tuple(context.transfer_syntax))
        for context in primitive.presentation_context_definition_list
    ] == [(c.context_id, c.abstract_syntax, c.transfer_syntaxes) for c in REQUEST.presentation_contexts]
    items: dict[str, Any] = {type(item).__name__: item for item in primitive.user_information}
    assert items["MaximumLengthNotification"].maximum_length_received == 16382
    assert items["AsynchronousOperationsWindowNegotiation"].maximum_number_operations_performed == 3
    assert items["SOPClassExtendedNegotiation"].service_class_application_information == b"\2\0\3"
    common = items["SOPClassCommonExtendedNegotiation"]
    assert common.related_general_sop_class_identification == ["1.2.840.10008.5.1.4.1.1.22"]
    assert items["UserIdentityNegotiation"].secondary_field == b"passcode"


def test_pynetdicom_understands_our_answer_as_we_do() -> None:
    theirs = pdu.A_ASSOCIATE_AC()
    theirs.decode(encode_pdu(ANSWER))
    primitive = theirs.to_primitive()
    assert [
        (context.context_id, context.result, context.transfer_syntax[0])
        for context in primitive.presentation_context_definition_results_list
    ] == [(c.context_id, c.result, c.transfer_syntax) for c in ANSWER.presentation_contexts]


# --- command sets ---------------------------------------------------------------------------------------

_SAMPLES: dict[VR, Any] = {
    VR.UI: "1.2.840.10008.5.1.4.1.1.2",
    VR.AE: "DESTINATION",
    VR.LO: "a comment",
    VR.US: 0x0102,
    VR.AT: (0x00080018, 0x00100020),
}
_KEYWORDS = {
    "affected_sop_class_uid": "AffectedSOPClassUID",
    "requested_sop_class_uid": "RequestedSOPClassUID",
    "command_field": "CommandField",
    "message_id": "MessageID",
    "message_id_being_responded_to": "MessageIDBeingRespondedTo",
    "move_destination": "MoveDestination",
    "priority": "Priority",
    "has_dataset": "CommandDataSetType",
    "status": "Status",
    "offending_elements": "OffendingElement",
    "error_comment": "ErrorComment",
    "error_id": "ErrorID",
    "affected_sop_instance_uid": "AffectedSOPInstanceUID",
    "requested_sop_instance_uid": "RequestedSOPInstanceUID",
    "event_type_id": "EventTypeID",
    "attribute_identifier_list": "AttributeIdentifierList",
    "action_type_id": "ActionTypeID",
    "number_of_remaining_suboperations": "NumberOfRemainingSuboperations",
    "number_of_completed_suboperations": "NumberOfCompletedSuboperations",
    "number_of_failed_suboperations": "NumberOfFailedSuboperations",
    "number_of_warning_suboperations": "NumberOfWarningSuboperations",
    "move_originator_application_entity_title": "MoveOriginatorApplicationEntityTitle",
    "move_originator_message_id": "MoveOriginatorMessageID",
}
_VRS = {name: vr for _, vr, name in ELEMENTS}
_MESSAGE_TYPES: dict[str, type[m.Message]] = {
    "C-STORE-RQ": m.CStoreRQ,
    "C-STORE-RSP": m.CStoreRSP,
    "C-FIND-RQ": m.CFindRQ,
    "C-FIND-RSP": m.CFindRSP,
    "C-GET-RQ": m.CGetRQ,
    "C-GET-RSP": m.CGetRSP,
    "C-MOVE-RQ": m.CMoveRQ,
    "C-MOVE-RSP": m.CMoveRSP,
    "C-ECHO-RQ": m.CEchoRQ,
    "C-ECHO-RSP": m.CEchoRSP,
    "C-CANCEL-RQ": m.CCancelRQ,
    "N-EVENT-REPORT-RQ": m.NEventReportRQ,
    "N-EVENT-REPORT-RSP": m.NEventReportRSP,
    "N-GET-RQ": m.NGetRQ,
    "N-GET-RSP": m.NGetRSP,
    "N-SET-RQ": m.NSetRQ,
    "N-SET-RSP": m.NSetRSP,
    "N-ACTION-RQ": m.NActionRQ,
    "N-ACTION-RSP": m.NActionRSP,
    "N-CREATE-RQ": m.NCreateRQ,
    "N-CREATE-RSP": m.NCreateRSP,
    "N-DELETE-RQ": m.NDeleteRQ,
    "N-DELETE-RSP": m.NDeleteRSP,
}


def filled(message_type: type[m.Message]) -> m.Message:
    """A message with every field that it has, the data set included."""
    values = {field.name: _SAMPLES[_VRS[field.name]] for field in fields(message_type)}
    return message_type(**(values | {"has_dataset": True}))


def as_dataset(message: m.Message) -> Dataset:
    """The command set as pydicom would have it, made without our codec."""
    dataset = Dataset()
    dataset.CommandField = int(message.command_field)
    for field in fields(message):
        value = getattr(message, field.name)
        if field.name == "has_dataset":
            value = 0x0001 if value else 0x0101
        setattr(dataset, _KEYWORDS[field.name], list(value) if isinstance(value, tuple) else value)
    return dataset


def test_the_table_of_elements_is_pydicoms() -> None:
    assert [number for number, _, _ in ELEMENTS] == [tag_for_keyword(_KEYWORDS[n]) for _, _, n in ELEMENTS]
    assert [vr.value for _, vr, _ in ELEMENTS] == [dictionary_VR(number) for number, _, _ in ELEMENTS]


def test_every_message_of_pynetdicom_is_one_of_ours_with_all_its_elements() -> None:
    theirs = dimse_messages._COMMAND_SET_KEYWORDS
    assert set(theirs) == set(_MESSAGE_TYPES)
    for name, message_type in _MESSAGE_TYPES.items():
        ours = {_KEYWORDS[field.name] for field in fields(message_type)} | {"CommandField"}
        assert set(theirs[name]) - {"CommandGroupLength"} <= ours, name


@pytest.mark.parametrize("message_type", _MESSAGE_TYPES.values(), ids=_MESSAGE_TYPES.keys())
def test_pynetdicom_writes_the_same_command_set(message_type: type[m.Message]) -> None:
    message = filled(message_type)
    ours = encode_command(message)
    theirs = dsutils.encode(as_dataset(message), True, True)
    assert theirs is not None
    assert ours[12:] == theirs
    assert decode_command(theirs) == message


@pytest.mark.parametrize("message_type", _MESSAGE_TYPES.values(), ids=_MESSAGE_TYPES.keys())
def test_pynetdicom_reads_our_command_set(message_type: type[m.Message]) -> None:
    message = filled(message_type)
    encoded = encode_command(message)
    theirs = dsutils.decode(BytesIO(encoded), True, True)
    assert theirs.CommandGroupLength == len(encoded) - 12
    del theirs.CommandGroupLength
    assert theirs == as_dataset(message)


# --- catalogues -----------------------------------------------------------------------------------------


def _catalogue() -> dict[str, list[str]]:
    """The UIDs of pynetdicom's SOP classes, storage and others."""
    storage = sorted(sop_class._STORAGE_CLASSES.values()) + sorted(
        sop_class._NON_PATIENT_OBJECT_CLASSES.values()
    )
    services = [
        uid
        for name, classes in vars(sop_class).items()
        if name.startswith("_") and name.endswith("_CLASSES") and isinstance(classes, dict)
        for uid in classes.values()
        if isinstance(uid, str) and uid not in storage
    ]
    return {"storage": storage, "services": sorted(set(services))}


def _results(uids: list[str]) -> dict[str, int]:
    policy = NegotiationPolicy(any_sop_class=True, service_sop_classes=frozenset())
    results = {}
    for uid in uids:
        context = PresentationContextRQ(1, uid, ("1.2.840.10008.1.2",))
        request = AssociateRQ("A", "B", "1.2.840.10008.3.1.1.1", (context,), UserInformation(0))
        results[uid] = negotiate(request, policy).answer.presentation_contexts[0].result
    return results


def test_any_sop_class_takes_every_storage_class_and_no_service_of_the_catalogue() -> None:
    catalogue = _catalogue()
    assert len(catalogue["storage"]) > 150
    assert len(catalogue["services"]) > 50
    assert [uid for uid, result in _results(catalogue["storage"]).items() if result != 0] == []
    assert [uid for uid, result in _results(catalogue["services"]).items() if result != 3] == []
    assert len(set(SERVICE_CLASS_PREFIXES)) == len(SERVICE_CLASS_PREFIXES)


def test_statuses_have_the_classes_of_pynetdicom() -> None:
    for code in range(0x10000):
        theirs = status.code_to_category(code)
        if theirs != status.STATUS_UNKNOWN:
            assert status_class(code).value == theirs.lower(), hex(code)
