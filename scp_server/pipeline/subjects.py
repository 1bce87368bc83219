"""What callbacks are given: connections, associations, instances, studies. Facts only, all of them read-only
but for `ReceivedInstance.change`.

Times are nanoseconds since the epoch, UTC. AE titles and UIDs are the peer's own text.
"""

from __future__ import annotations

from dataclasses import dataclass

from scp_server.interfaces import AssociationInfo
from scp_server.observability.text import peer_text


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """A socket."""

    peer_host: str
    peer_port: int
    connected_at_ns: int

    @property
    def log_fields(self) -> dict[str, object]:
        """What log lines say of it."""
        return {"peer_host": self.peer_host}


@dataclass(frozen=True, slots=True)
class AssociationFacts:
    """An association, as long as it is known. `association_id` is ours, unique over restarts."""

    association_id: str
    calling_ae_title: str
    called_ae_title: str
    peer_host: str
    peer_port: int
    peer_name: str | None
    """Of the `[[peers]]` entry that it matched."""
    is_dicos: bool
    application_context_name: str = ""
    implementation_class_uid: str = ""
    implementation_version_name: str = ""

    @classmethod
    def of(cls, info: AssociationInfo) -> AssociationFacts:
        """What is known of an association now."""
        return cls(
            association_id=info.association_id,
            calling_ae_title=info.calling_ae_title,
            called_ae_title=info.called_ae_title,
            peer_host=info.peer_host,
            peer_port=info.peer_port,
            peer_name=None if info.peer is None else info.peer.name,
            is_dicos=info.is_dicos,
            application_context_name=info.application_context_name,
            implementation_class_uid=info.implementation_class_uid,
            implementation_version_name=info.implementation_version_name,
        )

    @property
    def log_fields(self) -> dict[str, object]:
        """What log lines say of it."""
        return {
            "association_id": self.association_id,
            "calling_ae_title": peer_text(self.calling_ae_title),
        }


@dataclass(frozen=True, slots=True)
class Times:
    """When an object's bytes began to come, had come, and were safe; None for what has not happened yet."""

    receive_began_at_ns: int
    receive_ended_at_ns: int | None = None
    stored_at_ns: int | None = None


@dataclass(frozen=True, slots=True)
class AssociationEnd:
    """An association that is over. `outcome` is `released`, `aborted` or `lost`."""

    association: AssociationFacts
    outcome: str
    ended_at_ns: int
    operations: int
    """DIMSE requests that were received."""
    dataset_bytes: int
    """Bytes of data sets that were received."""

    @property
    def log_fields(self) -> dict[str, object]:
        """What log lines say of it."""
        return self.association.log_fields


@dataclass(frozen=True, slots=True)
class Echo:
    """A C-ECHO that is being answered."""

    association: AssociationFacts
    at_ns: int

    @property
    def log_fields(self) -> dict[str, object]:
        """What log lines say of it."""
        return self.association.log_fields


@dataclass(frozen=True, slots=True)
class InvalidInstance:
    """A data set that was refused. The UIDs are those of the command, as the peer wrote them."""

    association: AssociationFacts
    times: Times
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    status: int
    """What the peer was told (PS3.4 B.2.3)."""
    comment: str
    dataset_bytes: int
    """How much of it was received."""
    arrival_id: str
    """Its id in the quarantine, where that keeps it."""

    @property
    def log_fields(self) -> dict[str, object]:
        """What log lines say of it."""
        return {**self.association.log_fields, "sop_instance_uid": peer_text(self.sop_instance_uid)}
