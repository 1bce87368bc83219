"""One match of a query: the identifier of a pending C-FIND-RSP (PS3.4 C.4.1.1.3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scp_server.errors import UnreadableDataset
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.uids import transfer_syntax

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Match:
    """A match as it came; it is decoded when asked. What cannot be read raises UnreadableDataset then."""

    data: bytes
    """The data set's bytes, in `transfer_syntax_uid`."""
    transfer_syntax_uid: str
    all_keys_supported: bool = True
    """False where the peer's status was 0xFF01: it did not support or match all optional keys."""
    is_dicos: bool = False
    """The association is a DICOS association, whose dictionary implicit VR is read with."""

    def attributes(self) -> RawHeader:
        """The elements, to be looked up by tag."""
        syntax = transfer_syntax(self.transfer_syntax_uid)
        try:
            header = RawHeader(syntax, self.data)
        except ValueError as error:
            raise UnreadableDataset(f"a match cannot be read: {error}") from error
        header.is_dicos = header.is_dicos or self.is_dicos
        return header

    def to_dataset(self) -> Dataset:
        """A pydicom data set; its values are converted by pydicom when they are asked for."""
        return self.attributes().to_pydicom()

    def to_json(self) -> dict[str, Any]:
        """The DICOM JSON Model (PS3.18 F)."""
        from scp_server.objects.dicom_json import to_json

        return to_json(self.attributes())
