"""Which objects a C-GET is prepared to receive, as presentation contexts (PS3.4 C.5.3, PS3.8 9.3.2.2).

An association has at most 128 contexts, and in each the peer chooses a single transfer syntax. An object
comes as it is stored only where its own syntax was accepted; otherwise the peer has to convert it, or fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scp_server.errors import ConfigurationError
from scp_server.objects.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    DICOS_SOP_CLASS_PREFIX,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN_64,
    IMPLICIT_VR_LITTLE_ENDIAN,
    JPEG_2000_LOSSLESS,
    JPEG_BASELINE_8_BIT,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
    is_dicos_sop_class,
    is_valid_uid,
)

MAX_RECEIVED_CONTEXTS: Final = 120
"""Leaves eight of 128 for what is asked with."""

_UNCOMPRESSED: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
_DICOS_UNCOMPRESSED: Final = (EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN_64)
"""Not the implicit VR, in which DICOS's own attributes lose theirs."""
_LOSSLESS: Final = (
    JPEG_LOSSLESS_SV1,
    "1.2.840.10008.1.2.4.57",  # JPEG lossless, any selection value
    JPEG_LS_LOSSLESS,
    JPEG_2000_LOSSLESS,
    "1.2.840.10008.1.2.4.201",  # HTJ2K lossless
    RLE_LOSSLESS,
)
_LOSSY: Final = (
    JPEG_BASELINE_8_BIT,
    "1.2.840.10008.1.2.4.51",  # JPEG extended
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.203",  # HTJ2K
    "1.2.840.10008.1.2.4.100",  # MPEG-2
    "1.2.840.10008.1.2.4.102",  # MPEG-4
)
_COMPRESSED: Final = (*_LOSSLESS, *_LOSSY)
"""Those without loss first: where the peer has to choose, it is to choose one of them."""

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1"
_OFTEN_COMPRESSED: Final = (
    *(
        f"{_STORAGE}{part}" for part in (".1", ".1.1", ".1.2", ".13.1.3")
    ),  # CR, DX, mammography, tomosynthesis
    *(f"{_STORAGE}{part}" for part in (".2", ".2.1", ".4", ".4.1")),  # CT and MR, enhanced too
    *(f"{_STORAGE}{part}" for part in (".3.1", ".6.1", ".7", ".7.4", ".12.1")),  # US, secondary capture, XA
    *(f"{_STORAGE}{part}" for part in (".77.1.1", ".77.1.4", ".77.1.6")),  # endoscopy, photographs, slides
    *(f"{DICOS_SOP_CLASS_PREFIX}{part}" for part in (".1", ".2.1")),  # DICOS CT and DX
)
_MEDICAL: Final = tuple(
    f"{_STORAGE}.{part}"
    for part in (
        *("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "2", "2.1", "3.1", "4", "4.1", "4.2", "4.3"),
        *("6.1", "6.2", "7", "7.1", "7.2", "7.3", "7.4", "9.1.1", "9.1.2", "9.2.1"),
        *("11.1", "11.2", "11.3", "11.4", "11.5", "12.1", "12.1.1", "12.2", "13.1.1", "13.1.2", "13.1.3"),
        *("20", "30", "66", "66.1", "66.2", "66.3", "66.4", "67", "77.1.1", "77.1.1.1", "77.1.2", "77.1.4"),
        *("77.1.5.1", "77.1.5.4", "77.1.6", "77.1.7", "88.11", "88.22", "88.33", "88.34", "88.40", "88.50"),
        *("88.59", "88.65", "88.67", "104.1", "104.2", "104.3", "128", "130"),
        *("481.1", "481.2", "481.3", "481.4", "481.5", "481.8", "481.9"),
    )
)
_DICOS: Final = tuple(
    f"{DICOS_SOP_CLASS_PREFIX}.{part}"
    for part in (
        *("1", "1.1", "1.2", "1.3", "7.1", "7.2", "7.3", "7.4", "8.1", "8.2", "8.3", "8.4"),
        *("2.1", "2.1.1", "2.1.2", "2.1.3", "2.2", "2.2.1", "2.2.2", "2.2.3", "3"),
        *("4", "4.1", "4.2", "4.3", "5", "5.1", "5.2", "5.3", "6"),
    )
)
DEFAULT_SOP_CLASSES: Final = (*_DICOS, *_MEDICAL)
"""What is received where no SOP class is named: all of DICOS, and what medical archives mostly hold."""


def storage_contexts(
    sop_classes: Sequence[str] = (),
    transfer_syntaxes: Sequence[str] = (),
    *,
    max_contexts: int = MAX_RECEIVED_CONTEXTS,
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Contexts for `Requestor(receives=...)`, as (SOP class, transfer syntaxes), at most `max_contexts`.

    Each transfer syntax gets its own context, so that objects come as they are stored, where few enough SOP
    classes are named. Otherwise each class has one context of uncompressed syntaxes, and those images that
    are often compressed another one of compressed ones, as far as there is room.
    Raises ConfigurationError for what is no UID, and for more than fit.
    """
    for uid in (*sop_classes, *transfer_syntaxes):
        if not is_valid_uid(uid):
            raise ConfigurationError(f"{uid!r} is no UID")
    classes = tuple(dict.fromkeys(sop_classes)) or DEFAULT_SOP_CLASSES
    single = [(uid, (syntax,)) for uid in classes for syntax in transfer_syntaxes or _syntaxes(uid)]
    if len(single) <= max_contexts:
        return tuple(single)
    if len(transfer_syntaxes) > 1 or len(classes) > max_contexts:
        raise ConfigurationError(
            f"{len(classes)} SOP classes do not fit into {max_contexts} presentation contexts"
        )
    plain = [(uid, _uncompressed(uid)) for uid in classes]
    wanted = _OFTEN_COMPRESSED if not sop_classes else classes
    compressed = [(uid, _COMPRESSED) for uid in wanted]
    return (*plain, *compressed[: max_contexts - len(plain)])


def _uncompressed(sop_class: str) -> tuple[str, ...]:
    return _DICOS_UNCOMPRESSED if is_dicos_sop_class(sop_class) else _UNCOMPRESSED


def _syntaxes(sop_class: str) -> tuple[str, ...]:
    return (*_uncompressed(sop_class), DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, *_COMPRESSED)
