"""What callbacks are given: connections, associations, instances, studies. Facts only, all of them read-only
but for `ReceivedInstance.change`.

Times are nanoseconds since the epoch, UTC. AE titles and UIDs are the peer's own text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """A socket."""

    peer_host: str
    peer_port: int
    connected_at_ns: int


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


@dataclass(frozen=True, slots=True)
class Times:
    """When an object's bytes began to come, had come, and were safe; None for what has not happened yet."""

    receive_began_at_ns: int
    receive_ended_at_ns: int | None = None
    stored_at_ns: int | None = None
