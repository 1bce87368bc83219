"""Who may associate, and what for: the `[[peers]]` of the settings, compiled.

Pure: nothing here is changed by a request. An association matches the first entry whose AE title, where it
has one, is the calling AE title, and whose network, where it has one, holds the peer's address. A calling AE
title is what the peer says of itself; only the address is hard to forge, and only where answers must arrive.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from scp_server.interfaces import DicosMode, PeerRules
from scp_server.protocol.message import VERIFICATION_SOP_CLASS_UID
from scp_server.protocol.negotiation import DICOM_APPLICATION_CONTEXT, NegotiationPolicy

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
"""IPv4 addresses as a dual-stack socket shows them (RFC 4291 2.5.5.2)."""


class PeerService(StrEnum):
    """What a peer may be allowed to ask for."""

    ECHO = "echo"
    STORE = "store"
    FIND = "find"
    GET = "get"
    MOVE = "move"


EVERY_SERVICE: Final = frozenset(PeerService)

SERVICE_SOP_CLASSES: Final[Mapping[PeerService, frozenset[str]]] = {
    PeerService.ECHO: frozenset({VERIFICATION_SOP_CLASS_UID}),
    PeerService.STORE: frozenset(),
    PeerService.FIND: frozenset(
        {
            "1.2.840.10008.5.1.4.1.2.1.1",
            "1.2.840.10008.5.1.4.1.2.2.1",
            "1.2.840.10008.5.1.4.1.2.3.1",
            "1.2.840.10008.5.1.4.31",
        }
    ),
    PeerService.MOVE: frozenset(
        {
            "1.2.840.10008.5.1.4.1.2.1.2",
            "1.2.840.10008.5.1.4.1.2.2.2",
            "1.2.840.10008.5.1.4.1.2.3.2",
            "1.2.840.10008.5.1.4.1.2.4.2",
        }
    ),
    PeerService.GET: frozenset(
        {
            "1.2.840.10008.5.1.4.1.2.1.3",
            "1.2.840.10008.5.1.4.1.2.2.3",
            "1.2.840.10008.5.1.4.1.2.3.3",
            "1.2.840.10008.5.1.4.1.2.4.3",
            "1.2.840.10008.5.1.4.1.2.5.3",
        }
    ),
}
"""By service: the patient root, study root and patient/study only models (PS3.4 C.6), composite instances
(PS3.4 Y.4, Z.4) and the modality worklist (PS3.4 K.5). Storage is every class that objects are stored by."""


def parse_network(text: str) -> Network:
    """A network from `10.1.0.0/16`, or from a single address. An IPv4 one written in IPv6 is the IPv4 one.

    Raises ValueError, also where bits are set behind the prefix.
    """
    network = ipaddress.ip_network(text)
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return IPv4Network((int(mapped or 0), network.prefixlen - _MAPPED.prefixlen))
    return network


def parse_address(host: str) -> Address | None:
    """The address of a peer, IPv4 where it is one; None for what is no address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """One entry of `[[peers]]`: whom it matches, and what holds for them."""

    rules: PeerRules
    ae_title: str | None = None
    """None matches every calling AE title."""
    network: Network | None = None
    """None matches every address."""
    allow: frozenset[PeerService] = EVERY_SERVICE
    idle_seconds: float | None = None
    """In place of both idle timers; 0 is never. None leaves them."""

    def matches(self, calling_ae_title: str, address: Address | None) -> bool:
        """Whether this entry is about such a caller."""
        if self.ae_title is not None and self.ae_title != calling_ae_title:
            return False
        return self.network is None or (address is not None and address in self.network)

    def policy(self, policy: NegotiationPolicy) -> NegotiationPolicy:
        """What is accepted from this peer, where `policy` is what is accepted from all."""
        refused = EVERY_SERVICE - self.allow
        if refused:
            classes = frozenset[str]().union(*(SERVICE_SOP_CLASSES[service] for service in refused))
            policy = dataclasses.replace(
                policy,
                refused_sop_classes=policy.refused_sop_classes | classes,
                refuses_storage=policy.refuses_storage or PeerService.STORE in refused,
                grants_storage_scp_role=policy.grants_storage_scp_role and PeerService.GET not in refused,
            )
        relational = self.rules.relational
        if relational is not None:
            policy = dataclasses.replace(
                policy,
                extended_negotiations={
                    uid: bytes([relational]) + information[1:]
                    for uid, information in policy.extended_negotiations.items()
                },
            )
        if self.rules.dicos is DicosMode.NEVER:
            names = policy.application_context_names & {DICOM_APPLICATION_CONTEXT}
            policy = dataclasses.replace(policy, application_context_names=names)
        return policy

    def idle_override(self, idle_seconds: float, dicos_idle_seconds: float) -> float | None:
        """The idle timer of this peer's associations, where it does not follow from the association.

        The arguments are those of DICOM and of DICOS associations. 0 is never.
        """
        if self.idle_seconds is not None:
            return self.idle_seconds
        by_mode = {DicosMode.ALWAYS: dicos_idle_seconds, DicosMode.NEVER: idle_seconds}
        return by_mode.get(self.rules.dicos)


@dataclass(frozen=True, slots=True)
class AccessRules:
    """All entries. A caller is compared with those of its AE title and those without one, in their order."""

    entries: tuple[PeerEntry, ...] = ()
    known_peers_only: bool = False
    """Reject who matches no entry, with 1/1/3."""
    _by_title: Mapping[str, tuple[PeerEntry, ...]] = field(init=False, repr=False, compare=False)
    _untitled: tuple[PeerEntry, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        titles = {entry.ae_title for entry in self.entries if entry.ae_title is not None}
        by_title = {
            title: tuple(entry for entry in self.entries if entry.ae_title in (None, title))
            for title in titles
        }
        object.__setattr__(self, "_by_title", by_title)
        object.__setattr__(self, "_untitled", tuple(e for e in self.entries if e.ae_title is None))

    @property
    def names(self) -> tuple[str, ...]:
        """What the entries are called."""
        return tuple(entry.rules.name for entry in self.entries)

    def find(self, calling_ae_title: str, host: str) -> PeerEntry | None:
        """The entry that a caller matches, or None."""
        candidates = self._by_title.get(calling_ae_title, self._untitled)
        if not candidates:
            return None
        address = parse_address(host)
        return next((entry for entry in candidates if entry.matches(calling_ae_title, address)), None)
