"""The settings of what is kept aside, and of the socket that an administrator's commands speak to."""

from __future__ import annotations

from pydantic import Field

from scp_server.settings.limits import GIB, KIB, MIB, Count, Seconds
from scp_server.settings.section import Section


class QuarantineSettings(Section):
    """What becomes of data sets that are refused for what they are."""

    max_bytes: int = Field(
        default=GIB,
        ge=0,
        description="Bytes that refused data sets may take in the folder quarantine; 0 keeps none. When it "
        "is full a newcomer is not kept, which is logged; nothing is dropped to make room.",
    )
    max_objects: Count = Field(
        default=10_000, le=1_000_000, description="Refused data sets that are kept at most."
    )


class ControlSettings(Section):
    """The socket control.sock in the data folder, for the commands on a running server."""

    max_connections: Count = Field(
        default=16, description="Commands that may be connected at once; a further one is closed at once."
    )
    max_request_bytes: int = Field(
        default=64 * KIB,
        ge=KIB,
        le=16 * MIB,
        description="Longest request; a longer one ends its connection.",
    )
    request_seconds: Seconds = Field(
        default=30.0,
        description="How long a connection may take for its next request, or to read an answer.",
    )
    command_seconds: Seconds = Field(
        default=600.0,
        description="How long one command may run, or a long one not move, before it is given up.",
    )
