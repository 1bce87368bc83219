"""How long it takes to answer an A-ASSOCIATE-RQ of 128 contexts with four transfer syntaxes each.

From the request's bytes to the answer's, beside pynetdicom's own negotiation, in one run; then the command
sets of one C-STORE. Times are the best of several rounds, in one thread.

    python benchmarks/negotiation.py
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

from pynetdicom import pdu as their_pdu
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context, negotiate_as_acceptor
from pynetdicom.sop_class import _STORAGE_CLASSES

from scp_server.protocol.command import decode_command, encode_command
from scp_server.protocol.items import PresentationContextRQ, UserInformation
from scp_server.protocol.message import CStoreRQ, response_to
from scp_server.protocol.negotiation import (
    DICOM_APPLICATION_CONTEXT,
    IMPLEMENTATION_CLASS_UID,
    NegotiationPolicy,
    negotiate,
    rejection,
)
from scp_server.protocol.pdu import AssociateRQ, decode_pdu, encode_pdu

ROUNDS = 7
TRANSFER_SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.5",
)
SOP_CLASSES = sorted(_STORAGE_CLASSES.values())[:128]


def request_bytes() -> bytes:
    """An A-ASSOCIATE-RQ as large as one usually gets."""
    contexts = tuple(
        PresentationContextRQ(2 * number + 1, uid, TRANSFER_SYNTAXES)
        for number, uid in enumerate(SOP_CLASSES)
    )
    information = UserInformation(16382, IMPLEMENTATION_CLASS_UID, "BENCHMARK")
    return encode_pdu(AssociateRQ("CALLED", "CALLING", DICOM_APPLICATION_CONTEXT, contexts, information))


def best_microseconds(function: Callable[[], object], number: int) -> float:
    """Return the time of one call in the best round."""
    return min(timeit.repeat(function, number=number, repeat=ROUNDS)) / number * 1e6


def answer(data: bytes, policy: NegotiationPolicy) -> bytes:
    """Ours: request in, answer out."""
    request = decode_pdu(data[0], data[6:])
    if not isinstance(request, AssociateRQ) or rejection(request, policy) is not None:
        raise AssertionError("the benchmark's own request must be answered")
    return encode_pdu(negotiate(request, policy).answer)


def answer_with_pynetdicom(data: bytes) -> bytes:
    """The same with pynetdicom's classes, without its threads and sockets."""
    rq = their_pdu.A_ASSOCIATE_RQ()
    rq.decode(data)
    request = rq.to_primitive()
    supported = [build_context(uid, list(TRANSFER_SYNTAXES)) for uid in SOP_CLASSES]
    accepted, _ = negotiate_as_acceptor(request.presentation_context_definition_list, supported)
    response = A_ASSOCIATE()
    response.application_context_name = DICOM_APPLICATION_CONTEXT
    response.calling_ae_title = request.calling_ae_title
    response.called_ae_title = request.called_ae_title
    response.result = 0
    response.result_source = 1
    response.presentation_context_definition_results_list = accepted
    maximum = MaximumLengthNotification()
    maximum.maximum_length_received = 131072
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    response.user_information = [maximum, implementation]
    ac = their_pdu.A_ASSOCIATE_AC()
    ac.from_primitive(response)
    encoded: bytes = ac.encode()
    return encoded


def main() -> None:
    """Print the table."""
    data = request_bytes()
    policy = NegotiationPolicy(storage_sop_classes=frozenset(SOP_CLASSES))
    store = CStoreRQ(
        message_id=1,
        affected_sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        affected_sop_instance_uid="1.2.826.0.1.3680043.8.498.40161236571203948703918",
        has_dataset=True,
    )
    stored = response_to(store, 0)
    encoded = encode_command(store)
    ours = best_microseconds(lambda: answer(data, policy), 50)
    theirs = best_microseconds(lambda: answer_with_pynetdicom(data), 5)
    print(f"128 contexts x 4 transfer syntaxes, {len(data)} bytes")
    print(f"  scp_server   {ours:10.1f} us")
    print(f"  pynetdicom   {theirs:10.1f} us   {theirs / ours:.1f} x")
    print(f"decode a C-STORE-RQ   {best_microseconds(lambda: decode_command(encoded), 10000):6.2f} us")
    print(f"encode a C-STORE-RSP  {best_microseconds(lambda: encode_command(stored), 10000):6.2f} us")


if __name__ == "__main__":
    main()
