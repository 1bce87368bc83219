"""Which entry of the rules a caller matches, and what is accepted of it."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest

from scp_server.interfaces import DicosMode, PeerRules
from scp_server.net.access import (
    EVERY_SERVICE,
    SERVICE_SOP_CLASSES,
    AccessRules,
    PeerEntry,
    PeerService,
    parse_address,
    parse_network,
)
from scp_server.protocol.negotiation import (
    DICOM_APPLICATION_CONTEXT,
    DICOS_V03_APPLICATION_CONTEXT,
    NegotiationPolicy,
)

BASE = NegotiationPolicy()


def entry(ae_title: str | None = None, address: str | None = None, **fields: object) -> PeerEntry:
    network = None if address is None else parse_network(address)
    return PeerEntry(PeerRules(f"{ae_title}@{address}"), ae_title, network, **fields)  # type: ignore[arg-type]


RULES = AccessRules(
    (
        entry("CT1", "10.0.0.1"),
        entry(None, "10.0.0.0/24"),
        entry("CT1"),
        entry("CT2", "10.0.0.0/8"),
        entry("MR", "fd00::/8"),
        entry(None, "fe80::/10"),
    )
)


@pytest.mark.parametrize(
    ("calling_ae_title", "host", "matched"),
    [
        ("CT1", "10.0.0.1", "CT1@10.0.0.1"),
        ("CT1", "10.0.0.2", "None@10.0.0.0/24"),
        ("CT1", "192.0.2.1", "CT1@None"),
        ("CT1", "not an address", "CT1@None"),
        ("ct1", "192.0.2.1", None),
        ("CT2", "10.0.0.9", "None@10.0.0.0/24"),
        ("CT2", "10.9.9.9", "CT2@10.0.0.0/8"),
        ("CT2", "11.0.0.1", None),
        ("OTHER", "10.0.0.255", "None@10.0.0.0/24"),
        ("OTHER", "10.0.1.0", None),
        ("OTHER", "", None),
        ("CT2", "::ffff:10.9.9.9", "CT2@10.0.0.0/8"),
        ("CT2", "::ffff:0a09:0909", "CT2@10.0.0.0/8"),
        ("CT2", "::10.9.9.9", None),
        ("MR", "fd12::1", "MR@fd00::/8"),
        ("MR", "fc00::1", None),
        ("MR", "fe80::1%eth0", "None@fe80::/10"),
    ],
)
def test_the_first_entry_whose_title_and_network_fit_is_the_one(
    calling_ae_title: str, host: str, matched: str | None
) -> None:
    found = RULES.find(calling_ae_title, host)
    assert (found.rules.name if found else None) == matched
    address = parse_address(host)
    assert found == next((e for e in RULES.entries if e.matches(calling_ae_title, address)), None)


def test_without_entries_nobody_matches() -> None:
    assert AccessRules().find("CT1", "10.0.0.1") is None


def test_only_entries_of_the_title_and_those_without_one_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that an association costs the same with a thousand peers as with one."""
    rules = AccessRules((*(entry(f"CT{number}", "10.0.0.1") for number in range(1_000)), entry(None, "::1")))
    looked_at: list[PeerEntry] = []
    matches = PeerEntry.matches

    def watched(self: PeerEntry, calling_ae_title: str, address: ipaddress.IPv4Address) -> bool:
        looked_at.append(self)
        return matches(self, calling_ae_title, address)

    monkeypatch.setattr(PeerEntry, "matches", watched)
    assert rules.find("CT999", "10.0.0.1") is rules.entries[999]
    assert rules.find("CT998", "10.0.0.2") is None
    assert rules.find("OTHER", "10.0.0.1") is None
    assert len(looked_at) == 4


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.0.0/16", "10.1.0.0/16"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::/8", "fd00::/8"),
        ("::ffff:10.1.0.0/112", "10.1.0.0/16"),
        ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ("::/0", "::/0"),
    ],
)
def test_a_network_written_in_ipv6_is_the_ipv4_one(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize("text", ["10.1.2.3/16", "10.1.2", "host", "", "10.0.0.0/33", "fe80::1%eth0/10"])
def test_what_is_no_network_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_network(text)


def test_an_entry_that_allows_everything_changes_no_policy() -> None:
    assert entry("CT1").policy(BASE) is BASE


@pytest.mark.parametrize("service", [*PeerService])
def test_what_is_not_allowed_is_refused_and_the_rest_is_not(service: PeerService) -> None:
    policy = entry("CT1", allow=EVERY_SERVICE - {service}).policy(BASE)
    assert policy.refused_sop_classes == SERVICE_SOP_CLASSES[service]
    assert policy.refuses_storage is (service is PeerService.STORE)
    only = entry("CT1", allow=frozenset({service})).policy(BASE)
    others = frozenset[str]().union(*(SERVICE_SOP_CLASSES[other] for other in EVERY_SERVICE - {service}))
    assert only.refused_sop_classes == others
    assert only.refuses_storage is (service is not PeerService.STORE)


def test_no_class_belongs_to_two_services() -> None:
    classes = [uid for uids in SERVICE_SOP_CLASSES.values() for uid in uids]
    assert len(set(classes)) == len(classes)


def test_what_all_are_refused_stays_refused() -> None:
    strict = dataclasses.replace(BASE, refused_sop_classes=frozenset({"1.2.3"}), refuses_storage=True)
    policy = entry("CT1", allow=frozenset({PeerService.STORE})).policy(strict)
    assert "1.2.3" in policy.refused_sop_classes
    assert policy.refuses_storage


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        (DicosMode.AUTO, BASE.application_context_names),
        (DicosMode.ALWAYS, BASE.application_context_names),
        (DicosMode.NEVER, {DICOM_APPLICATION_CONTEXT}),
    ],
)
def test_never_dicos_leaves_dicoms_application_context_alone(mode: DicosMode, names: set[str]) -> None:
    peer = PeerEntry(PeerRules("A", dicos=mode))
    assert peer.policy(BASE).application_context_names == names
    only_dicos = dataclasses.replace(
        BASE, application_context_names=frozenset({DICOS_V03_APPLICATION_CONTEXT})
    )
    if mode is DicosMode.NEVER:
        assert peer.policy(only_dicos).application_context_names == frozenset()


@pytest.mark.parametrize(
    ("mode", "idle_seconds", "expected"),
    [
        (DicosMode.AUTO, None, None),
        (DicosMode.ALWAYS, None, 7.0),
        (DicosMode.NEVER, None, 300.0),
        (DicosMode.AUTO, 5.0, 5.0),
        (DicosMode.ALWAYS, 5.0, 5.0),
        (DicosMode.NEVER, 0.0, 0.0),
    ],
)
def test_the_idle_time_is_the_peers_own_or_that_of_its_mode(
    mode: DicosMode, idle_seconds: float | None, expected: float | None
) -> None:
    peer = PeerEntry(PeerRules("A", dicos=mode), idle_seconds=idle_seconds)
    assert peer.idle_override(300.0, 7.0) == expected


@pytest.mark.parametrize(
    ("relational", "answered"), [(None, b"\1\1\0"), (True, b"\1\1\0"), (False, b"\0\1\0")]
)
def test_a_peers_relational_is_what_it_is_answered_and_no_other_byte(
    relational: bool | None, answered: bytes
) -> None:
    find = "1.2.840.10008.5.1.4.1.2.2.1"
    policy = dataclasses.replace(BASE, extended_negotiations={find: b"\1\1\0"})
    peer = PeerEntry(PeerRules("A", relational=relational))
    assert peer.policy(policy).extended_negotiations == {find: answered}
    never = dataclasses.replace(BASE, extended_negotiations={find: b"\0\1\0"})
    expected = b"\1\1\0" if relational else b"\0\1\0"
    assert peer.policy(never).extended_negotiations == {find: expected}
