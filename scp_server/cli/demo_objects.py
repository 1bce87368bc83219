"""The objects that `scp-server demo` sends: a CT series of a patient, and a bag with its DX, CT and alarm."""

from __future__ import annotations

from dataclasses import replace

from scp_server.testing.dicos_objects import TWO_THREATS, dicos_ct, dicos_dx, dicos_tdr, make_dicos_uid
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.testing.phantom import BODY, LUGGAGE, projection, slices

CT_SLICES, CT_SIDE = 8, 64
SECTION_SIDES = (48, 40)
SECTION_FRAMES = 8
DX_ROWS, DX_COLUMNS = 60, 80


def medical_objects() -> list[EncodedObject]:
    """A DICOM CT series of one study."""
    return [
        ct_image(rows=CT_SIDE, columns=CT_SIDE, seed=number, pixels=pixels)
        for number, pixels in enumerate(slices(BODY, CT_SLICES, CT_SIDE, CT_SIDE))
    ]


def security_objects() -> list[EncodedObject]:
    """DICOS objects of one scan: a DX, a CT whose two sections share a SOP Instance UID, and a TDR on it."""
    uid = make_dicos_uid("the demo's ct")
    sections = [
        dicos_ct(
            frames=SECTION_FRAMES,
            rows=side,
            columns=side,
            seed=side,
            sop_instance_uid=uid,
            pixels=b"".join(slices(LUGGAGE, SECTION_FRAMES, side, side)),
        )
        for side in SECTION_SIDES
    ]
    image = dicos_dx(
        rows=DX_ROWS, columns=DX_COLUMNS, pixels=projection(LUGGAGE, DX_ROWS, DX_COLUMNS, steps=6)
    )
    sheet = replace(TWO_THREATS[0], base=(28.0, 12.0, 2.0), extents=(14.0, 6.0, 4.0), bitmap=b"")
    return [image, *sections, dicos_tdr(sections[0], threats=[sheet, TWO_THREATS[1]])]
