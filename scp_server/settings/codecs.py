"""The settings of decoding compressed pixel data."""

from __future__ import annotations

from pydantic import Field

from scp_server.settings.limits import MIB, Count, Seconds
from scp_server.settings.section import Section


class CodecsSettings(Section):
    """How compressed objects are decoded for who cannot take them as they are stored; docs/retrieve.md."""

    processes: Count = Field(
        default=1,
        le=256,
        description="Processes that decode at once. Each is started when it is needed, and replaced when it "
        "crashes or takes too long.",
    )
    frame_seconds: Seconds = Field(
        default=60.0,
        description="Longest that decoding one frame may take; then its process is killed and its object is "
        "a failed sub-operation.",
    )
    process_memory_bytes: int = Field(
        default=2_048 * MIB,
        ge=512 * MIB,
        description="Address space of one such process: decoder, encoded and decoded frame. Python, numpy "
        "and the decoders take 300 MiB of it.",
    )
    max_objects: Count = Field(
        default=4,
        le=1_024,
        description="Compressed objects that are decoded and sent at once; further ones wait. Each holds up "
        "to four times max_frame_bytes.",
    )
    max_frame_bytes: int = Field(
        default=128 * MIB,
        ge=MIB,
        le=1_024 * MIB,
        description="Longest frame, encoded or decoded; objects with longer ones are sent only as they are "
        "stored.",
    )
