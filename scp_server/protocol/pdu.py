"""The seven PDUs of PS3.8 9.3 as values, and their bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from scp_server.protocol.items import PresentationContextAC, PresentationContextRQ, UserInformation


class PDUType(IntEnum):
    """First byte of a PDU (PS3.8 9.3)."""

    A_ASSOCIATE_RQ = 0x01
    A_ASSOCIATE_AC = 0x02
    A_ASSOCIATE_RJ = 0x03
    P_DATA_TF = 0x04
    A_RELEASE_RQ = 0x05
    A_RELEASE_RP = 0x06
    A_ABORT = 0x07


@dataclass(frozen=True, slots=True)
class AssociateRQ:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2). AE titles are stripped of outer spaces.

    `address_fields` are bytes 11-74 as received, which the answer echoes; empty on a request we make.
    """

    called_ae_title: str
    calling_ae_title: str
    application_context_name: str
    presentation_contexts: tuple[PresentationContextRQ, ...]
    user_information: UserInformation
    protocol_version: int = 1
    address_fields: bytes = field(default=b"", repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class AssociateAC:
    """A-ASSOCIATE-AC (PS3.8 9.3.3). Titles are the request's, echoed; `address_fields` as in `AssociateRQ`."""

    called_ae_title: str
    calling_ae_title: str
    application_context_name: str
    presentation_contexts: tuple[PresentationContextAC, ...]
    user_information: UserInformation
    protocol_version: int = 1
    address_fields: bytes = field(default=b"", repr=False, compare=False)


class RejectReason(IntEnum):
    """Why an association is rejected: result, source and reason as one value 0xRRSSDD, so that
    a pair PS3.8 9.3.4 does not know cannot be written."""

    NO_REASON = 0x010101
    APPLICATION_CONTEXT_NOT_SUPPORTED = 0x010102
    CALLING_AE_TITLE_NOT_RECOGNIZED = 0x010103
    CALLED_AE_TITLE_NOT_RECOGNIZED = 0x010107
    ACSE_NO_REASON = 0x010201
    PROTOCOL_VERSION_NOT_SUPPORTED = 0x010202
    TEMPORARY_CONGESTION = 0x020301
    LOCAL_LIMIT_EXCEEDED = 0x020302

    @property
    def result(self) -> int:
        """1 rejected permanent, 2 rejected transient."""
        return self.value >> 16

    @property
    def source(self) -> int:
        """1 service user, 2 provider (ACSE), 3 provider (presentation)."""
        return self.value >> 8 & 0xFF

    @property
    def reason(self) -> int:
        """Reason or diagnostic, to be read with `source`."""
        return self.value & 0xFF


@dataclass(frozen=True, slots=True)
class AssociateRJ:
    """A-ASSOCIATE-RJ (PS3.8 9.3.4); a peer's may carry values the standard does not know."""

    result: int
    source: int
    reason: int


@dataclass(frozen=True, slots=True)
class ReleaseRQ:
    """A-RELEASE-RQ (PS3.8 9.3.6)."""


@dataclass(frozen=True, slots=True)
class ReleaseRP:
    """A-RELEASE-RP (PS3.8 9.3.7)."""


class AbortSource(IntEnum):
    """Who aborted (PS3.8 9.3.8)."""

    SERVICE_USER = 0
    SERVICE_PROVIDER = 2


class AbortReason(IntEnum):
    """Why the provider aborted (PS3.8 9.3.8); not significant when the user did."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PDU_PARAMETER = 4
    UNEXPECTED_PDU_PARAMETER = 5
    INVALID_PDU_PARAMETER_VALUE = 6


@dataclass(frozen=True, slots=True)
class Abort:
    """A-ABORT (PS3.8 9.3.8)."""

    source: int
    reason: int


PDU = AssociateRQ | AssociateAC | AssociateRJ | ReleaseRQ | ReleaseRP | Abort
"""Every PDU that is held whole. P-DATA-TF is not among them: it is never assembled (see `pdata`)."""
