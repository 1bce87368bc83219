"""What an acceptor answers to an A-ASSOCIATE-RQ (PS3.8 7.1, PS3.7 D.3)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_server.errors import ProtocolError
from scp_server.protocol import negotiation
from scp_server.protocol.items import (
    AsynchronousOperationsWindow,
    ContextResult,
    PresentationContextAC,
    PresentationContextRQ,
    RoleSelection,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityAC,
    UserIdentityRQ,
    UserInformation,
)
from scp_server.protocol.negotiation import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    NegotiationPolicy,
    ae_title_error,
    is_dicos_application_context,
    is_uid,
    negotiate,
    rejection,
)
from scp_server.protocol.pdu import AssociateRQ, RejectReason, decode_pdu, encode_pdu

ELE, ILE, BE = EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN
JPEG, LONG = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.1.64"
CT = "1.2.840.10008.5.1.4.1.1.2"
DICOS_CT = "1.2.840.10008.5.1.4.1.1.501.1"
VERIFICATION = "1.2.840.10008.1.1"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
POLICY = NegotiationPolicy(storage_sop_classes=frozenset({CT}))
REQUEST = AssociateRQ(
    called_ae_title="CALLED",
    calling_ae_title="CALLING",
    application_context_name=negotiation.DICOM_APPLICATION_CONTEXT,
    presentation_contexts=(PresentationContextRQ(1, CT, (ILE,)),),
    user_information=UserInformation(16384),
)


def answer_to(
    abstract_syntax: str, *transfer_syntaxes: str, policy: NegotiationPolicy = POLICY
) -> tuple[int, str]:
    context = PresentationContextRQ(1, abstract_syntax, transfer_syntaxes or (ELE,))
    request = replace(REQUEST, presentation_contexts=(context,))
    (answer,) = negotiate(request, policy).answer.presentation_contexts
    return answer.result, answer.transfer_syntax


def information_answered(
    offered: UserInformation, policy: NegotiationPolicy = POLICY, request: AssociateRQ = REQUEST
) -> UserInformation:
    return negotiate(replace(request, user_information=offered), policy).answer.user_information


# --- presentation contexts ------------------------------------------------------------------------------


def test_a_request_is_accepted_although_no_context_of_it_is_ps3_8_9_3_3() -> None:
    contexts = (PresentationContextRQ(1, FIND, (ILE,)), PresentationContextRQ(3, VERIFICATION, (JPEG,)))
    request = replace(REQUEST, presentation_contexts=contexts)
    assert rejection(request, POLICY) is None
    negotiated = negotiate(request, POLICY)
    assert [context.result for context in negotiated.answer.presentation_contexts] == [3, 4]
    assert negotiated.accepted == {}


def test_every_context_is_answered_under_its_id_in_the_order_proposed() -> None:
    """PS3.8 7.1.1, PS3.8 9.3.3.2."""
    request = replace(
        REQUEST,
        presentation_contexts=(
            PresentationContextRQ(9, CT, (ILE, ELE)),
            PresentationContextRQ(3, FIND, (JPEG, ILE)),
            PresentationContextRQ(1, VERIFICATION, (JPEG,)),
            PresentationContextRQ(255, CT, (JPEG,)),
        ),
    )
    negotiated = negotiate(request, POLICY)
    assert negotiated.answer.presentation_contexts == (
        PresentationContextAC(9, 0, ELE),
        PresentationContextAC(3, 3, JPEG),
        PresentationContextAC(1, 4, JPEG),
        PresentationContextAC(255, 0, JPEG),
    )
    assert negotiated.accepted == {9: (CT, ELE), 255: (CT, JPEG)}


@pytest.mark.parametrize(
    ("proposed", "chosen"),
    [
        ((ILE, ELE), ELE),
        ((JPEG, ELE, LONG, ILE), ELE),
        ((JPEG, LONG, ILE), JPEG),
        ((ILE, LONG, JPEG), LONG),
        ((ILE, BE), BE),
        ((ILE,), ILE),
        (("1.2.3.4", ILE), "1.2.3.4"),
    ],
)
def test_explicit_comes_first_then_the_peers_order_and_implicit_last(
    proposed: tuple[str, ...], chosen: str
) -> None:
    assert answer_to(CT, *proposed) == (0, chosen)


def test_a_preference_without_star_accepts_nothing_else() -> None:
    policy = replace(POLICY, transfer_syntaxes=(JPEG, ILE))
    assert answer_to(CT, ELE, ILE, policy=policy) == (0, ILE)
    assert answer_to(CT, ELE, LONG, policy=policy) == (4, ELE)


@pytest.mark.parametrize(
    ("proposed", "answer"),
    [
        ((ILE, ELE), (0, ELE)),
        ((BE, ILE), (0, ILE)),
        ((BE,), (0, BE)),
        ((JPEG, LONG), (4, JPEG)),
        ((LONG, ILE), (0, ILE)),
    ],
)
def test_a_service_takes_only_uncompressed_transfer_syntaxes(
    proposed: tuple[str, ...], answer: tuple[int, str]
) -> None:
    assert answer_to(VERIFICATION, *proposed) == answer


@pytest.mark.parametrize(
    ("uid", "accepted"),
    [
        ("1.2.840.10008.5.1.4.1.1.501", True),
        (DICOS_CT, True),
        ("1.2.840.10008.5.1.4.1.1.501.99.1", True),
        ("1.2.840.10008.5.1.4.1.1.601.1", True),
        ("1.2.840.10008.5.1.4.1.1.5011", False),
        ("1.2.840.10008.5.1.4.1.1.501..x", False),
        ("1.2.840.10008.5.1.4.1.1.50", False),
        ("1.2.826.0.1.3680043.1", False),
        ("", False),
    ],
)
def test_a_storage_prefix_means_itself_and_what_is_below_it(uid: str, accepted: bool) -> None:
    assert answer_to(uid)[0] == (0 if accepted else 3)


@pytest.mark.parametrize(
    ("uid", "result"),
    [
        ("1.2.826.0.1.3680043.1", 0),
        ("1.2.840.10008.5.1.4.1.1.999", 0),
        (CT, 0),
        (VERIFICATION, 0),
        (FIND, 3),
        ("1.2.840.10008.1.20.1", 3),
        ("1.2.840.10008.3.1.2.3.3", 3),
        ("1.2.840.10008.5.1.4.31", 3),
        ("1.2.840.10008.5.1.1.9", 3),
        ("no.uid", 3),
    ],
)
def test_any_sop_class_is_stored_unless_it_is_a_service(uid: str, result: int) -> None:
    assert answer_to(uid, policy=replace(POLICY, any_sop_class=True))[0] == result


def test_a_storage_class_that_is_named_wins_over_the_services() -> None:
    stored_print = "1.2.840.10008.5.1.1.27"
    policy = replace(POLICY, storage_sop_classes=frozenset({stored_print}), any_sop_class=True)
    assert answer_to(stored_print, JPEG, policy=policy) == (0, JPEG)


def test_a_refused_class_gets_user_rejection() -> None:
    policy = replace(POLICY, refused_sop_classes=frozenset({CT, VERIFICATION}))
    assert answer_to(CT, ELE, policy=policy) == (1, ELE)
    assert answer_to(VERIFICATION, ELE, policy=policy) == (1, ELE)


def test_where_storage_is_refused_what_is_no_storage_is_answered_as_ever() -> None:
    policy = replace(POLICY, refuses_storage=True)
    assert answer_to(CT, ELE, policy=policy) == (1, ELE)
    assert answer_to("1.2.840.10008.5.1.4.1.1.501.1", "1.2.3", policy=policy) == (1, "1.2.3")
    assert answer_to(VERIFICATION, ELE, policy=policy) == (0, ELE)
    assert answer_to("1.2.840.10008.5.1.4.1.2.2.1", ELE, policy=policy) == (3, ELE)


@pytest.mark.parametrize("bad", ["*", "", "1..2", "1.2.", "abc", "1" * 65, "1.2\n", "\u0661.2"])
def test_a_transfer_syntax_that_is_no_uid_is_never_accepted_or_echoed(bad: str) -> None:
    assert answer_to(CT, bad) == (4, ILE)
    assert answer_to(CT, bad, ILE) == (0, ILE)
    assert answer_to("1.2.3", bad, ELE) == (3, ILE)


# --- user information -----------------------------------------------------------------------------------


def test_the_answer_says_who_we_are_and_what_we_take() -> None:
    information = information_answered(UserInformation(None), replace(POLICY, maximum_length=0))
    assert information == UserInformation(0, negotiation.IMPLEMENTATION_CLASS_UID, "SCP_SERVER_0_1")
    assert information_answered(UserInformation(None)).maximum_length == 131072


def test_our_implementation_class_uid_is_one() -> None:
    root, number = negotiation.IMPLEMENTATION_CLASS_UID.rsplit(".", 1)
    assert root == "2.25"
    assert 0 < int(number) < 1 << 128
    assert is_uid(negotiation.IMPLEMENTATION_CLASS_UID)
    assert len(negotiation.IMPLEMENTATION_VERSION_NAME) <= 16


@pytest.mark.parametrize("window", [(0, 0), (1, 1), (5, 3)])
def test_an_asynchronous_operations_window_is_answered_1_1_only_when_offered(window: tuple[int, int]) -> None:
    """PS3.7 D.3.3.3."""
    offered = UserInformation(0, asynchronous_operations_window=AsynchronousOperationsWindow(*window))
    answered = information_answered(offered)
    assert answered.asynchronous_operations_window == AsynchronousOperationsWindow(1, 1)
    assert information_answered(UserInformation(0)).asynchronous_operations_window is None


@pytest.mark.parametrize("offered", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("granted", [True, False])
def test_a_role_is_granted_only_where_offered(offered: tuple[bool, bool], granted: bool) -> None:
    """PS3.7 D.3.3.4."""
    policy = replace(POLICY, grants_storage_scp_role=granted)
    scu, scp = offered
    answered = information_answered(
        UserInformation(0, role_selections=(RoleSelection(CT, scu, scp),)), policy
    )
    assert answered.role_selections == (RoleSelection(CT, scu, scp and granted),)


def test_the_scp_role_of_a_service_is_never_granted() -> None:
    policy = replace(POLICY, grants_storage_scp_role=True)
    offered = UserInformation(0, role_selections=(RoleSelection(VERIFICATION, True, True),))
    contexts = (PresentationContextRQ(1, VERIFICATION, (ILE,)),)
    answered = information_answered(offered, policy, replace(REQUEST, presentation_contexts=contexts))
    assert answered.role_selections == (RoleSelection(VERIFICATION, True, False),)


@pytest.mark.parametrize(
    ("offered", "result", "answered"),
    [
        ((True, True), ContextResult.ACCEPTANCE, (False, True)),
        ((False, True), ContextResult.ACCEPTANCE, (False, True)),
        ((True, False), ContextResult.USER_REJECTION, None),
        (None, ContextResult.USER_REJECTION, None),
    ],
)
def test_who_may_fetch_and_not_store_gets_the_scp_role_alone(
    offered: tuple[bool, bool] | None, result: ContextResult, answered: tuple[bool, bool] | None
) -> None:
    policy = replace(POLICY, grants_storage_scp_role=True, refuses_storage=True)
    roles = () if offered is None else (RoleSelection(CT, *offered),)
    information = UserInformation(0, role_selections=roles)
    answer = negotiate(replace(REQUEST, user_information=information), policy).answer
    assert answer.presentation_contexts[0].result == result
    expected = () if answered is None else (RoleSelection(CT, *answered),)
    assert answer.user_information.role_selections == expected


def test_roles_of_classes_without_accepted_context_are_not_answered() -> None:
    offered = UserInformation(
        0, role_selections=(RoleSelection(FIND, True, True), RoleSelection("\xff", True, True))
    )
    assert information_answered(offered).role_selections == ()
    assert information_answered(UserInformation(0)).role_selections == ()


@pytest.mark.parametrize("requested", [True, False])
def test_user_identity_is_answered_only_when_asked_for(requested: bool) -> None:
    """PS3.7 D.3.3.7."""
    offered = UserInformation(0, user_identity=UserIdentityRQ(2, requested, b"name", b"passcode"))
    assert information_answered(offered).user_identity_response == (UserIdentityAC() if requested else None)
    assert information_answered(offered).user_identity is None
    assert information_answered(UserInformation(0)).user_identity_response is None


def test_extended_negotiation_is_answered_only_where_supported_and_never_beyond_the_offer() -> None:
    """PS3.7 D.3.3.5."""
    offered = UserInformation(
        0,
        extended_negotiations=(
            SOPClassExtendedNegotiation(CT, b"\1\0\1\1"),
            SOPClassExtendedNegotiation(VERIFICATION, b"\1"),
            SOPClassExtendedNegotiation(FIND, b"\1"),
        ),
    )
    policy = replace(POLICY, extended_negotiations={CT: b"\1\1\0", FIND: b"\1"})
    assert information_answered(offered, policy).extended_negotiations == (
        SOPClassExtendedNegotiation(CT, b"\1\0\0"),
    )
    assert information_answered(offered).extended_negotiations == ()


def test_common_extended_negotiation_is_never_answered() -> None:
    offered = UserInformation(
        0, common_extended_negotiations=(SOPClassCommonExtendedNegotiation(CT, "1.2", ("1.3",)),)
    )
    assert information_answered(offered).common_extended_negotiations == ()


@pytest.mark.parametrize("name", sorted(POLICY.application_context_names))
def test_the_application_context_and_the_addresses_are_echoed(name: str) -> None:
    addresses = bytes(range(64))
    request = replace(REQUEST, application_context_name=name, address_fields=addresses)
    answer = negotiate(request, POLICY).answer
    assert rejection(request, POLICY) is None
    assert answer.application_context_name == name
    assert answer.address_fields == addresses
    assert (answer.called_ae_title, answer.calling_ae_title) == ("CALLED", "CALLING")


# --- rejection ------------------------------------------------------------------------------------------


def test_dicos_application_contexts_are_known() -> None:
    names = {"1.2.840.10008.3.1.1.1.3", "1.2.840.10008.3.1.1.1.211", "1.2.840.10008.3.1.1.1.2"}
    assert {name for name in POLICY.application_context_names if is_dicos_application_context(name)} == names
    assert not is_dicos_application_context("1.2.840.10008.3.1.1.1")


WRONG = {
    "protocol_version": 2,
    "application_context_name": "1.2.3",
    "called_ae_title": "",
    "calling_ae_title": "",
}
REASONS = [(1, 2, 2), (1, 1, 2), (1, 1, 7), (1, 1, 3)]


@pytest.mark.parametrize("first", range(4))
def test_the_first_reason_is_told_of_version_then_context_then_called_then_calling(first: int) -> None:
    """PS3.8 9.3.4."""
    wrong = dict(list(WRONG.items())[first:])
    reason = rejection(replace(REQUEST, **wrong), POLICY)  # type: ignore[arg-type]
    assert reason is not None
    assert (reason.result, reason.source, reason.reason) == REASONS[first]


@pytest.mark.parametrize("version", [1, 3, 0xFFFF])
def test_only_bit_0_of_the_protocol_version_counts(version: int) -> None:
    """PS3.8 9.3.2."""
    assert rejection(replace(REQUEST, protocol_version=version), POLICY) is None


def test_a_listener_may_answer_to_certain_called_titles_only() -> None:
    policy = replace(POLICY, required_called_ae_titles=frozenset({"ARCHIVE"}))
    assert rejection(REQUEST, policy) is RejectReason.CALLED_AE_TITLE_NOT_RECOGNIZED
    assert rejection(replace(REQUEST, called_ae_title="ARCHIVE"), policy) is None


def test_a_listener_may_leave_out_an_application_context() -> None:
    policy = replace(POLICY, application_context_names=negotiation.DICOS_APPLICATION_CONTEXTS)
    assert rejection(REQUEST, policy) is RejectReason.APPLICATION_CONTEXT_NOT_SUPPORTED


@pytest.mark.parametrize("title", ["A", "A B", "X" * 16, "a.b-c_d!", "1"])
def test_a_good_ae_title_has_no_error(title: str) -> None:
    assert ae_title_error(title) is None


@pytest.mark.parametrize(
    ("title", "error"),
    [
        ("", "blank"),
        ("   ", "blank"),
        ("A\\B", "backslash"),
        ("A\nB", "control"),
        ("A\x1b", "control"),
        ("A\x7f", "control"),
        ("\xc9", "ASCII"),
        ("X" * 17, "16"),
    ],
)
def test_a_bad_ae_title_is_told_why(title: str, error: str) -> None:
    assert error in (ae_title_error(title) or "")


@pytest.mark.parametrize("title", ["   ", "A\\B", "A\nB", "A\x1b", "A\x7f", "\xc9"])
def test_a_bad_ae_title_is_not_recognized(title: str) -> None:
    assert rejection(replace(REQUEST, called_ae_title=title), POLICY) is (
        RejectReason.CALLED_AE_TITLE_NOT_RECOGNIZED
    )
    assert rejection(replace(REQUEST, calling_ae_title=title), POLICY) is (
        RejectReason.CALLING_AE_TITLE_NOT_RECOGNIZED
    )


# --- whatever a peer sends ------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(max_codepoint=0xFF), max_size=80) | st.sampled_from(
    [CT, VERIFICATION, FIND, DICOS_CT, ILE, ELE, JPEG, "*"]
)
PROPOSALS = st.tuples(ANY_TEXT, st.lists(ANY_TEXT, min_size=1, max_size=4))


@settings(max_examples=300)
@given(
    contexts=st.lists(
        st.tuples(ANY_TEXT, st.lists(ANY_TEXT, min_size=1, max_size=4)), min_size=1, max_size=9
    ),
    roles=st.lists(st.builds(RoleSelection, ANY_TEXT, st.booleans(), st.booleans()), max_size=4),
    extended=st.lists(st.builds(SOPClassExtendedNegotiation, ANY_TEXT, st.binary(max_size=8)), max_size=4),
    any_sop_class=st.booleans(),
)
def test_whatever_is_proposed_the_answer_can_be_sent_and_answers_each_context(
    contexts: list[tuple[str, list[str]]],
    roles: list[RoleSelection],
    extended: list[SOPClassExtendedNegotiation],
    any_sop_class: bool,
) -> None:
    request = replace(
        REQUEST,
        presentation_contexts=tuple(
            PresentationContextRQ(2 * number + 1, abstract, tuple(transfer))
            for number, (abstract, transfer) in enumerate(contexts)
        ),
        user_information=UserInformation(
            0, role_selections=tuple(roles), extended_negotiations=tuple(extended)
        ),
    )
    policy = replace(POLICY, any_sop_class=any_sop_class, extended_negotiations={CT: b"\1\1"})
    negotiated = negotiate(request, policy)
    encoded = encode_pdu(negotiated.answer)
    assert decode_pdu(encoded[0], encoded[6:]) == negotiated.answer
    answers = negotiated.answer.presentation_contexts
    assert [context.context_id for context in answers] == [
        c.context_id for c in request.presentation_contexts
    ]
    for proposed, answer in zip(request.presentation_contexts, answers, strict=True):
        assert answer.context_id == proposed.context_id
        assert answer.result in (0, 3, 4)
        if answer.result == 0:
            assert answer.transfer_syntax in proposed.transfer_syntaxes
            assert negotiated.accepted[answer.context_id] == (
                proposed.abstract_syntax,
                answer.transfer_syntax,
            )


@settings(max_examples=200)
@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_a_damaged_request_is_refused_rejected_or_answered(position: int, value: int) -> None:
    information = UserInformation(
        16384,
        "1.2",
        "V",
        role_selections=(RoleSelection(CT, True, True),),
        user_identity=UserIdentityRQ(2, True, b"a", b"b"),
    )
    body = bytearray(encode_pdu(replace(REQUEST, user_information=information))[6:])
    body[position % len(body)] = value
    try:
        request = decode_pdu(1, body)
    except ProtocolError:
        return
    assert isinstance(request, AssociateRQ)
    if rejection(request, POLICY) is None:
        assert encode_pdu(negotiate(request, POLICY).answer)[:1] == b"\2"
