"""The settings that bound what a peer can make the server spend: memory, sockets and time."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from scp_server.settings.section import Section

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SMALLEST_MAX_PDU_BYTES = 4_096

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrNever = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LimitsSettings(Section):
    """What peers may use. Sizes are in bytes."""

    max_associations: Count = Field(
        default=2_000,
        description="Associations at once; a further one is rejected with 2/3/2 (local limit exceeded).",
    )
    max_associations_per_peer: Count = Field(
        default=1_000,
        description="Associations at once of one calling AE title, so that one peer cannot take all; "
        "never more than max_associations.",
    )
    max_associations_per_address: Count = Field(
        default=1_000, description="Associations at once from one address; never more than max_associations."
    )
    max_connections: Count = Field(
        default=4_096,
        description="All DICOM sockets, also those without an association. Must be at least "
        "max_associations; when not set and that is larger, twice max_associations.",
    )
    max_outbound_associations: Count = Field(
        default=64,
        description="Associations to all remotes together, idle ones too; what needs more waits.",
    )
    max_pdu_bytes: int = Field(
        default=131_072,
        ge=0,
        le=0xFFFF_FFFF,
        description="Longest P-DATA-TF we announce (PS3.8 D.1): 0 is unlimited, otherwise at least 4096. "
        "Nothing is allocated by it.",
    )
    max_associate_pdu_bytes: int = Field(
        default=MIB,
        ge=8 * KIB,
        description="Longest A-ASSOCIATE-RQ that is read; a longer one is aborted before its body.",
    )
    max_command_bytes: int = Field(default=64 * KIB, ge=KIB, description="Longest command set (PS3.7 6.3).")
    max_empty_fragments: Count = Field(
        default=1_000, description="Empty fragments in one message before it is aborted."
    )
    max_association_items: Count = Field(
        default=16_384,
        description="Items and sub-items of one A-ASSOCIATE-RQ, so that one of nothing but empty items takes "
        "no time; 128 presentation contexts of a hundred transfer syntaxes each fit.",
    )
    max_user_information_items: Count = Field(
        default=1_024, description="Sub-items of one user information item."
    )
    max_pending_operations: Count = Field(
        default=16,
        description="Requests of one association that may wait or run at once; reading stops beyond it.",
    )
    association_buffer_bytes: int = Field(
        default=2 * MIB,
        ge=128 * KIB,
        description="Bytes of one association that are received but not yet written; reading stops beyond "
        "it.",
    )
    process_buffer_bytes: int = Field(
        default=256 * MIB,
        ge=MIB,
        description="The same for all associations together: the bound of the server's memory.",
    )
    half_open_buffer_bytes: int = Field(
        default=16 * MIB,
        ge=8 * KIB,
        description="Bytes of A-ASSOCIATE-RQs that are not whole yet, of all connections together; above "
        "it, or above one of the longest, the oldest such connection is reset.",
    )
    send_buffer_bytes: int = Field(
        default=64 * KIB,
        ge=4 * KIB,
        description="Bytes that may wait for a peer that does not read its answers.",
    )
    header_buffer_bytes: int = Field(
        default=MIB,
        ge=4 * KIB,
        description="Bytes of a data set that wait in memory for the end of its header.",
    )
    max_header_bytes: int = Field(
        default=4 * MIB,
        ge=4 * KIB,
        description="Longest header that is kept for the index, without its large values.",
    )
    max_header_value_bytes: int = Field(
        default=64 * KIB,
        ge=256,
        description="Longest value of a header that is kept for the index; of longer ones only offset and "
        "length.",
    )
    max_header_elements: Count = Field(
        default=1_000_000, description="Elements before the pixel data, nested ones included."
    )
    max_indexed_elements: int = Field(
        default=8_192,
        ge=256,
        description="Elements of a header's first level whose places are remembered, at 200 bytes of memory "
        "each; those behind are as if they were absent. Usual headers have hundreds.",
    )
    max_references: Count = Field(
        default=1_000, description="Referenced SOP instances that are indexed for one object."
    )
    max_reference_items: Count = Field(
        default=5_000, description="Sequence items that are looked at to find them."
    )
    max_changed_objects: Count = Field(
        default=8,
        description="Objects that are written anew at once, because rules or callbacks change them; further "
        "ones wait.",
    )
    max_sequence_depth: int = Field(
        default=64,
        ge=1,
        le=10_000,
        description="Deepest nesting of sequences; a deeper data set is refused with 0xC000.",
    )
    max_object_bytes: int = Field(
        default=0, ge=0, description="Longest data set, 0 is unlimited; a longer one is refused with 0xA700."
    )
    max_inflate_ratio: Count = Field(
        default=200, description="Largest ratio of inflated to received bytes of a deflated data set."
    )
    inflate_grace_bytes: int = Field(
        default=MIB,
        ge=0,
        description="Inflated bytes before which that ratio is not looked at: short runs of zeros deflate a "
        "thousandfold.",
    )
    max_inflated_bytes: int = Field(
        default=64 * GIB,
        ge=0,
        description="Most bytes that a deflated data set may inflate to, 0 is unlimited; they are walked, "
        "never held.",
    )

    @model_validator(mode="before")
    @classmethod
    def _follow_max_associations(cls, values: Any) -> Any:
        """Caps that are not set follow max_associations, so that changing it alone is enough."""
        associations = values.get("max_associations") if isinstance(values, dict) else None
        if not isinstance(associations, int) or isinstance(associations, bool) or associations < 1:
            return values
        fields = cls.model_fields
        followed = {
            "max_associations_per_peer": min(associations, fields["max_associations_per_peer"].default),
            "max_associations_per_address": min(associations, fields["max_associations_per_address"].default),
        }
        if associations > fields["max_connections"].default:
            followed["max_connections"] = 2 * associations
        return followed | values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if 0 < self.max_pdu_bytes < SMALLEST_MAX_PDU_BYTES:
            raise ValueError(f"max_pdu_bytes must be 0 (unlimited) or at least {SMALLEST_MAX_PDU_BYTES}")
        for smaller, larger in _AT_MOST:
            if getattr(self, smaller) > getattr(self, larger):
                raise ValueError(f"{smaller} must not exceed {larger} ({getattr(self, larger)})")
        return self


_AT_MOST = (
    ("max_associations_per_peer", "max_associations"),
    ("max_associations_per_address", "max_associations"),
    ("max_associations", "max_connections"),
    ("header_buffer_bytes", "association_buffer_bytes"),
    ("association_buffer_bytes", "process_buffer_bytes"),
    ("max_header_value_bytes", "max_header_bytes"),
)


class TimeoutsSettings(Section):
    """How long the server waits, in seconds."""

    artim_seconds: Annotated[float, Field(gt=0, le=30, allow_inf_nan=False)] = Field(
        default=10.0,
        description="ARTIM (PS3.8 9.1.5), at most 30: from the connection to a whole A-ASSOCIATE-RQ, and "
        "from an abort to the end of the connection.",
    )
    response_seconds: Seconds = Field(
        default=30.0, description="Until a peer has answered our A-ASSOCIATE-RQ or A-RELEASE-RQ."
    )
    store_response_seconds: Seconds = Field(
        default=60.0,
        description="Until a peer has answered a C-STORE of ours, once its data set is sent; then the "
        "association is aborted and the sub-operation of the C-MOVE or C-GET has failed.",
    )
    idle_seconds: SecondsOrNever = Field(
        default=300.0,
        description="Longest silence between messages before an association is aborted; 0 is never.",
    )
    outbound_idle_seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = Field(
        default=10.0,
        description="How long an association to a remote that nobody uses is kept for the next one; 0 is "
        "not at all.",
    )
    remote_retry_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=5.0,
        description="After a remote could not be reached: how long others who want it are told so at once, "
        "and it is left in peace; 0 is not at all.",
    )
    dicos_idle_seconds: SecondsOrNever = Field(
        default=0.0,
        description="The same on a DICOS association, whose client does not reconnect; 0 is never.",
    )
    dimse_seconds: Seconds = Field(
        default=60.0, description="Longest silence inside a message; it bounds no transfer's total time."
    )
    write_seconds: Seconds = Field(
        default=30.0, description="Longest time that a peer may leave our answers unread."
    )
    minimum_bytes_per_second: int = Field(
        default=1_024,
        ge=0,
        description="Slowest average rate of a message once it has taken dimse_seconds, in bytes per "
        "second; 0 switches it off.",
    )
