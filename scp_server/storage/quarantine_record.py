"""What is known of one refused data set, beside its bytes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

RECORD_VERSION = 1
MAX_RECORD_BYTES = 16_384
"""Longest record that is read; ours have about one KiB, since every text of a peer is cut."""
MAX_TEXT_CHARACTERS = 128
"""Longest text of a peer in a record: an AE title needs 16, a UID 64."""


@dataclass(frozen=True, slots=True)
class QuarantineRecord:
    """Whose data set it is, why it was refused, and how to read it again.

    Texts are the peer's own, cut but not escaped: escape them where they are shown. `status` is the one the
    peer was told. The UIDs are the command's, not the data set's.
    """

    id: str
    """The arrival id: unique, hexadecimal, in the order of arrival."""
    reason: str
    status: int
    received_at_ns: int
    calling_ae_title: str
    called_ae_title: str
    peer_host: str
    peer_port: int
    application_context_name: str
    sop_class_uid: str
    sop_instance_uid: str
    abstract_syntax_uid: str
    transfer_syntax_uid: str
    dataset_offset_bytes: int
    """Where the data set begins in the file; before it lie preamble and File Meta (PS3.10 7.1)."""
    dataset_bytes: int
    digest_algorithm: str
    digest: str
    """Over the data set as it was received, hexadecimal."""
    release_attempts: int = 0

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_json(self) -> bytes:
        """The record as it lies beside the bytes: ASCII, one line."""
        return json.dumps({"version": RECORD_VERSION, **self.to_mapping()}).encode("ascii") + b"\n"


def cut_text(text: str) -> str:
    """A peer's text as a record holds it."""
    return text[:MAX_TEXT_CHARACTERS]


def record_from_json(data: bytes) -> QuarantineRecord:
    """Read a record. Raises ValueError when it is none of this version's, or damaged."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("the record is no JSON that we write") from error
    if not isinstance(document, dict) or document.pop("version", None) != RECORD_VERSION:
        raise ValueError("the record has another version")
    return record_from_mapping(document)


def record_from_mapping(document: dict[str, Any]) -> QuarantineRecord:
    """Plain values as a record. Raises ValueError when a field is missing, unknown or of another type."""
    kinds = {each.name: int if each.type == "int" else str for each in fields(QuarantineRecord)}
    if set(document) != set(kinds):
        raise ValueError("the record has other fields")
    for name, kind in kinds.items():
        if type(document[name]) is not kind or (kind is int and document[name] < 0):
            raise ValueError(f"the record's {name} is damaged")
    return QuarantineRecord(**document)
