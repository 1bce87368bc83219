"""The settings of single peers: the `[[peers]]` tables."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from scp_server.net.access import parse_network
from scp_server.settings.limits import SecondsOrNever
from scp_server.settings.section import AETitle, Section
from scp_server.settings.validation import Policy

Duplicates = Literal["keep_first", "parts", "replace", "reject"]
Service = Literal["echo", "store", "find", "get", "move"]


class PeerSettings(Section):
    """One peer, or a network of them. The first table that a caller matches is the one that holds."""

    ae_title: AETitle | None = Field(
        default=None, description="The calling AE title; when not set, any. An AE title is no secret."
    )
    address: str | None = Field(
        default=None,
        description="The peer's address, or a network such as 10.1.0.0/16 or fd00::/8; when not set, any.",
    )
    allow: Annotated[tuple[Service, ...], Field(strict=False)] = Field(
        default=("echo", "store", "find", "get", "move"),
        description="What the peer may ask for. The presentation contexts of everything else are refused "
        "with result 1 (user rejection).",
    )
    duplicates: Duplicates | None = Field(
        default=None,
        description="As storage.duplicates, for everything from this peer, DICOS objects too. When not set, "
        "as for everybody.",
    )
    idle_seconds: SecondsOrNever | None = Field(
        default=None,
        description="In place of timeouts.idle_seconds and timeouts.dicos_idle_seconds; 0 is never.",
    )
    dicos: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="auto tells DICOS associations by their application context name and framing. always "
        "treats all of this peer's as such: dicos_idle_seconds, and dicos_duplicates for every object. never "
        "accepts only DICOM's application context name (else A-ASSOCIATE-RJ 1/1/2), and idle_seconds holds.",
    )

    relational: bool | None = Field(
        default=None,
        description="Whether this peer's queries may leave out the unique keys of higher levels, and match "
        "every key, and its retrieves leave them out, without having negotiated it; when not set, "
        "query.relational holds.",
    )

    validation: Policy | None = Field(
        default=None,
        description="As validation.dicos, for everything from this peer, medical objects too. When not set, "
        "as for everybody.",
    )

    @field_validator("address")
    @classmethod
    def _address(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                parse_network(text)
            except ValueError as error:
                raise ValueError(_address_problem(text)) from error
        return text

    @field_validator("allow")
    @classmethod
    def _allow(cls, services: tuple[Service, ...]) -> tuple[Service, ...]:
        if not services:
            raise ValueError("must not be empty; whom nothing is allowed needs no table")
        if len(set(services)) < len(services):
            raise ValueError("names a service twice")
        return services

    @model_validator(mode="after")
    def _matches_something(self) -> Self:
        if self.ae_title is None and self.address is None:
            raise ValueError("ae_title or address must be given")
        return self

    @property
    def name(self) -> str:
        """What logs and labels call it."""
        return "@".join(part for part in (self.ae_title, self.address) if part is not None)


def check_each_once(peers: Sequence[PeerSettings]) -> None:
    """Raises ValueError for a table that says the same callers as one before it, and would never hold."""
    seen: dict[tuple[str | None, str | None], int] = {}
    for position, peer in enumerate(peers):
        address = None if peer.address is None else str(parse_network(peer.address))
        first = seen.setdefault((peer.ae_title, address), position)
        if first != position:
            raise ValueError(f"peers.{position} has the ae_title and address of peers.{first}")


def _address_problem(text: str) -> str:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return "must be an address or a network, such as 10.1.2.3, 10.1.0.0/16 or fd00::/8"
    return f"has bits set behind its prefix; the network is {network}"
