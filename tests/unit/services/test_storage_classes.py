"""Which SOP classes are stored, and that no setting makes a service one of them."""

from __future__ import annotations

from typing import Any

import pydicom.uid
import pynetdicom.sop_class
import pytest

from scp_server.interfaces import AcceptedContext
from scp_server.protocol.items import ContextResult, PresentationContextRQ, UserInformation
from scp_server.protocol.message import VERIFICATION_SOP_CLASS_UID, CStoreRQ
from scp_server.protocol.negotiation import negotiate
from scp_server.protocol.pdu import AssociateRQ
from scp_server.runtime.build import build_policy
from scp_server.services.registry import ServiceRegistry
from scp_server.services.storage import StorageService
from scp_server.services.storage_classes import StorageSOPClasses, standard_storage_sop_classes
from scp_server.services.verification import VerificationService
from scp_server.settings import Settings
from scp_server.settings.models import NegotiationSettings
from scp_server.testing.storage_bench import StorageBench

PRIVATE = "1.2.826.0.1.3680043.9.9999.1"
DICOS = "1.2.840.10008.5.1.4.1.1.501"
DICONDE = "1.2.840.10008.5.1.4.1.1.601"
SERVICES = sorted(
    str(uid)
    for name, uid in vars(pynetdicom.sop_class).items()
    if isinstance(uid, pydicom.uid.UID) and uid.type in ("SOP Class", "Meta SOP Class")
    if "Storage" not in name or name.startswith(("StorageCommitment", "MediaStorage"))
)
"""Every SOP class that pynetdicom has a name for and that is no storage."""


def _classes(**negotiation: Any) -> StorageSOPClasses:
    return StorageSOPClasses(build_policy(Settings(negotiation=NegotiationSettings(**negotiation))))


def test_all_of_pynetdicoms_catalogue_is_stored() -> None:
    catalogue = set(pynetdicom.sop_class._STORAGE_CLASSES.values())
    assert len(catalogue) > 150
    classes = _classes()
    assert [uid for uid in catalogue if uid not in classes] == []


@pytest.mark.parametrize("uid", ["1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.12.3"])
def test_retired_classes_that_only_pydicom_names_are_stored(uid: str) -> None:
    assert pydicom.uid.UID(uid).is_retired
    assert uid in _classes()


@pytest.mark.parametrize("below", ["", ".1", ".2.1", ".2.2", ".3", ".99.1.2"])
@pytest.mark.parametrize("prefix", [DICOS, DICONDE])
def test_every_class_below_the_prefixes_of_dicos_and_diconde_is_stored(prefix: str, below: str) -> None:
    assert prefix + below in _classes()


@pytest.mark.parametrize("uid", [f"{DICOS}1", f"{DICOS}x.1", f"{DICOS}.x", f"{DICOS}.1\n", f"{DICOS}..1"])
def test_what_only_begins_like_the_dicos_prefix_is_not_stored(uid: str) -> None:
    assert uid not in _classes()


@pytest.mark.parametrize(
    "uid", [None, 7, b"1.2.840.10008.5.1.4.1.1.2", "", "CT", "1.2.840.10008.5.1.4.1.1.2 "]
)
@pytest.mark.parametrize("sop_classes", ["standard", "any"])
def test_what_is_no_uid_is_not_stored(uid: object, sop_classes: str) -> None:
    assert uid not in _classes(sop_classes=sop_classes)


def test_a_private_class_is_stored_only_when_named_or_when_any_is() -> None:
    assert PRIVATE not in _classes()
    assert PRIVATE in _classes(additional_sop_classes=[PRIVATE])
    assert f"{PRIVATE}.1" not in _classes(additional_sop_classes=[PRIVATE])
    assert PRIVATE in _classes(sop_classes="any")


@pytest.mark.parametrize("uid", SERVICES)
@pytest.mark.parametrize("sop_classes", ["standard", "any"])
def test_no_class_of_another_service_is_stored(uid: str, sop_classes: str) -> None:
    assert uid not in _classes(sop_classes=sop_classes)


def test_the_catalogue_of_services_is_worth_looking_at() -> None:
    assert {VERIFICATION_SOP_CLASS_UID, "1.2.840.10008.1.20.1", "1.2.840.10008.5.1.4.31"} <= set(SERVICES)
    assert len(SERVICES) > 60


def test_nothing_of_the_standard_catalogue_belongs_to_another_service() -> None:
    assert standard_storage_sop_classes().isdisjoint(SERVICES)


@pytest.mark.parametrize(
    "negotiation",
    [{}, {"sop_classes": "any"}, {"additional_sop_classes": [VERIFICATION_SOP_CLASS_UID]}],
    ids=["standard", "any", "named"],
)
async def test_a_c_store_over_verification_is_never_performed(
    bench: StorageBench, negotiation: dict[str, Any]
) -> None:
    services = ServiceRegistry()
    services.register(VerificationService(), {VERIFICATION_SOP_CLASS_UID})
    services.register(bench.service, _classes(**negotiation))
    context = AcceptedContext(1, VERIFICATION_SOP_CLASS_UID, "1.2.840.10008.1.2")
    request = CStoreRQ(
        message_id=1, affected_sop_class_uid=VERIFICATION_SOP_CLASS_UID, affected_sop_instance_uid="1.2.3"
    )
    found = services.find(request, context)
    assert getattr(found, "__self__", None) is not bench.service


@pytest.mark.parametrize("sop_classes", [{}, {"sop_classes": "any"}], ids=["standard", "any"])
async def test_what_is_negotiated_for_storage_is_what_the_registry_finds(
    bench: StorageBench, sop_classes: dict[str, Any]
) -> None:
    """A context that is accepted and then answered 0x0122 would be a trap; so would the opposite."""
    policy = build_policy(Settings(negotiation=NegotiationSettings(**sop_classes)))
    services = ServiceRegistry()
    services.register(bench.service, StorageSOPClasses(policy))
    proposed = [*sorted(standard_storage_sop_classes()), *SERVICES, PRIVATE, DICOS, f"{DICONDE}.1", "CT"]
    for uid in proposed:
        context = PresentationContextRQ(1, uid, ("1.2.840.10008.1.2.1",))
        request = AssociateRQ("A", "B", "1.2.840.10008.3.1.1.1", (context,), UserInformation(0, "1.2", ""))
        (answer,) = negotiate(request, policy).answer.presentation_contexts
        store = CStoreRQ(message_id=1, affected_sop_class_uid=uid, affected_sop_instance_uid="1.2.3")
        found = services.find(store, AcceptedContext(1, uid, answer.transfer_syntax))
        stored = getattr(found, "__func__", None) is StorageService.store
        accepted = answer.result == ContextResult.ACCEPTANCE and uid not in policy.service_sop_classes
        assert stored == accepted, uid
