"""`open_instance`: which view a stored object gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Final

from scp_server.objects.uids import DICOS_SOP_CLASS_PREFIX, is_dicos_sop_class
from scp_server.views.fields import text, uid
from scp_server.views.quadrupole import QRView
from scp_server.views.radiographs import DXView
from scp_server.views.stored_file import HasPath, Source, StoredFile
from scp_server.views.threats import TDRView
from scp_server.views.volumes import AITView, CTView

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

View = CTView | DXView | AITView | TDRView | QRView

_SOP_CLASS_UID, _MODALITY = 0x00080016, 0x00080060
_KINDS: Final[dict[str, type[View]]] = {
    "1": CTView,
    "1.1": CTView,
    "1.2": CTView,
    "1.3": CTView,
    "7": CTView,
    "8": CTView,
    "2": DXView,
    "3": TDRView,
    "4": AITView,
    "5": AITView,
    "6": QRView,
}
"""By what follows the prefix of DICOS's SOP classes, or the first number of that (but not of 1.4 to 1.8)."""
_MODALITIES: Final[dict[str, type[View]]] = {
    "CT": CTView,
    "DX": DXView,
    "XRAY": DXView,
    "TDR": TDRView,
    "AIT": AITView,
    "AIT2D": AITView,
    "AIT3D": AITView,
    "HDAIT": AITView,
    "QR": QRView,
}
"""For the SOP classes that no table gives a kind to."""


def open_instance(source: Source | Iterable[Source]) -> View | Dataset:
    """A view of a stored object: a path, anything with a `path`, or all parts of a CT or AIT in their order.

    DICOS objects get the view of their kind, everything else (medical objects, kinds without a view) is the
    pydicom data set: values above 64 KiB come from the file when they are asked for. Of a view nothing but
    the header is read before it is asked for. Raises CannotView where a file is no object or is damaged and
    where several are no parts of one instance, OSError where one cannot be opened.
    """
    files = [StoredFile(one) for one in _sources(source)]
    if not files:
        raise ValueError("no file was given")
    if len(files) == 1 and view_class(files[0]) is None:
        return dataset(files[0])
    return open_view(files)


def open_view(files: Sequence[StoredFile]) -> View:
    """The view of an object that has one, in these files, at least one. Raises CannotView."""
    first = files[0]
    kind = view_class(first)
    if kind is not None and issubclass(kind, CTView | AITView):
        return kind(files)
    if len(files) > 1:
        raise files[1].error(f"only the parts of a CT or AIT are opened together, not with {first.path}")
    if kind is None:
        raise first.error("there is no view of objects of its SOP class")
    return kind(first)


def view_class(file: StoredFile) -> type[View] | None:
    """The kind of view that fits the object; None where there is none."""
    sop_class_uid = uid(file.header, _SOP_CLASS_UID) or file.file_meta.sop_class_uid
    if not is_dicos_sop_class(sop_class_uid):
        return None
    number = sop_class_uid[len(DICOS_SOP_CLASS_PREFIX) + 1 :]
    first = number.partition(".")[0]
    found = _KINDS.get(number) or (_KINDS.get(first) if first != "1" else None)
    return found or _MODALITIES.get(text(file.header, _MODALITY))


def dataset(file: StoredFile) -> Dataset:
    """The object as a pydicom data set; of a DICOS object the header, which pydicom's own reader misreads."""
    if file.header.is_dicos:
        return file.header.to_pydicom()
    from pydicom import dcmread

    return dcmread(file.path, defer_size=1 << 16)


def _sources(source: Source | Iterable[Source]) -> list[Source]:
    if isinstance(source, str | PathLike | HasPath):
        return [source]
    return [*source]
