"""A report that is finished: its data set, and what names it."""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scp_server.objects.part10 import file_meta

TDR_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.501.3"
_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"


@dataclass(frozen=True, slots=True)
class ThreatReport:
    """A TDR in explicit VR little endian."""

    sop_instance_uid: str
    study_instance_uid: str
    decision: str
    """`ALARM`, `CLEAR` or `UNKNOWN`."""
    total_objects: int
    alarm_objects: int
    dicos_version: str
    dataset: bytes = field(repr=False)
    sop_class_uid: str = TDR_STORAGE
    transfer_syntax_uid: str = _EXPLICIT_VR_LITTLE_ENDIAN

    def part10(self) -> bytes:
        """The content of its file (PS3.10 7.1)."""
        meta = file_meta(
            sop_class_uid=self.sop_class_uid,
            sop_instance_uid=self.sop_instance_uid,
            transfer_syntax_uid=self.transfer_syntax_uid,
            dicos_version=self.dicos_version,
        )
        return meta.data + self.dataset

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, which must not exist yet. Raises OSError."""
        with Path(path).open("xb") as file:
            file.write(self.part10())


def made_uid(*names: str) -> str:
    """A UID that follows from these names (PS3.5 B.2)."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"
