"""Voxels of CT and AIT: every type and transfer syntax, several sections, rescaling."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pytest

from scp_server import open_instance
from scp_server.errors import CannotView
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.dicos_objects import dicos_ct, two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.views.volumes import AITView, CTView

if TYPE_CHECKING:
    from numpy.typing import NDArray

Store = Callable[[EncodedObject], Path]
CT = "1.2.840.10008.5.1.4.1.1.501.1"
VOXELS = np.arange(4 * 6 * 8, dtype="<u2").reshape(4, 6, 8) * 321
NATIVE = [
    TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64,
    TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.EXPLICIT_VR_BIG_ENDIAN,
    TransferSyntax.RLE_LOSSLESS,
]


def ct_view(path: Path | list[Path]) -> CTView:
    view = open_instance(path)
    assert isinstance(view, CTView)
    return view


def ct_of(voxels: NDArray[Any], **options: Any) -> EncodedObject:
    """A CT of these 16-bit voxels."""
    frames, rows, columns = voxels.shape
    pixels = voxels.astype("<u2").tobytes()
    return dicos_ct(frames=frames, rows=rows, columns=columns, pixels=pixels, **options)


def described(bits: int, signed: bool = False) -> list[Element]:
    """The description of pixels of so many bits."""
    return [
        Element(0x00280100, "US", bits),
        Element(0x00280101, "US", bits),
        Element(0x00280102, "US", bits - 1),
        Element(0x00280103, "US", int(signed)),
    ]


def placed(*places: tuple[float, float, float]) -> Element:
    """Functional groups with the position of each frame."""
    return Element(
        0x52009230, "SQ", [[Element(0x00209113, "SQ", [[Element(0x00200032, "DS", one)]])] for one in places]
    )


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name)
def test_a_volume_is_what_was_stored_in_every_syntax(store: Store, syntax: TransferSyntax) -> None:
    view = ct_view(store(ct_of(VOXELS, transfer_syntax=syntax)))
    assert view.shape == VOXELS.shape
    assert view.volume().dtype.newbyteorder("=") == np.dtype("u2")
    assert np.array_equal(view.volume(), VOXELS)


def test_a_volume_of_jpeg_lossless_in_words_is_decoded(store: Store) -> None:
    one = dicos_ct(frames=4, rows=6, columns=8, replacing=[Element(0x7FE00010, "OW", b"")])
    encoder = DatasetEncoder()
    head = one.dataset[: -len(encoder.element(Element(0x7FE00010, "OW", b"")))]
    frames = [
        bytes(imagecodecs.jpeg8_encode(frame, lossless=True, predictor=1, bitspersample=16))
        for frame in VOXELS
    ]
    even = [frame + b"\0" * (len(frame) % 2) for frame in frames]
    dataset = head + encoder.fragments(even, vr="OW")
    path = store(replace(one, dataset=dataset, transfer_syntax_uid=TransferSyntax.JPEG_LOSSLESS))
    view = ct_view(path)
    assert np.array_equal(view.volume(), VOXELS)
    assert np.array_equal(np.stack(list(view.sections[0].slices())), VOXELS)


@pytest.mark.parametrize(
    ("tag", "vr", "dtype"),
    [
        (0x7FE00010, "OB", "|u1"),
        (0x7FE00010, "OW", "<i2"),
        (0x7FE00011, "OL", "<u4"),
        (0x7FE00011, "OL", "<i4"),
        (0x7FE00012, "OD", "<u8"),
        (0x7FE00012, "OD", "<i8"),
        (0x7FE00013, "OF", "<f4"),
        (0x7FE00009, "OD", "<f8"),
    ],
)
@pytest.mark.parametrize("syntax", NATIVE[:3], ids=lambda syntax: syntax.name)
def test_voxels_of_every_type_keep_it(
    store: Store, syntax: TransferSyntax, tag: int, vr: str, dtype: str
) -> None:
    voxels = (VOXELS.astype("f8") - (20_000 if "i" in dtype else 0)).astype(dtype)
    replacing = [*described(voxels.itemsize * 8, "i" in dtype), Element(tag, vr, voxels.tobytes())]
    one = dicos_ct(frames=4, rows=6, columns=8, replacing=replacing, transfer_syntax=syntax)
    read = ct_view(store(one)).volume()
    assert read.dtype == np.dtype(dtype)
    assert np.array_equal(read, voxels)


def test_the_length_of_64_bits_without_reserved_bytes_is_read(store: Store) -> None:
    voxels = VOXELS.astype("<u8") << 40
    one = dicos_ct(frames=4, rows=6, columns=8, replacing=[*described(64), Element(0x7FE00012, "OD", b"")])
    head = one.dataset[:-12]
    packed = struct.pack("<HH2sQ", 0x7FE0, 0x0012, b"OD", voxels.nbytes) + voxels.tobytes()
    assert np.array_equal(ct_view(store(replace(one, dataset=head + packed))).volume(), voxels)


@pytest.mark.parametrize("version", ["V02", "V02A", "V03"])
def test_objects_of_every_version_are_views(store: Store, version: str) -> None:
    view = ct_view(store(ct_of(VOXELS, replacing=[Element(0x4010103A, "CS", version)])))
    assert view.dicos_version == version
    assert np.array_equal(view.volume(), VOXELS)


def test_an_uncompressed_volume_is_the_mapped_file_and_read_only(store: Store) -> None:
    volume = ct_view(store(ct_of(VOXELS))).volume()
    assert not volume.flags.owndata
    assert not volume.flags.writeable


def test_the_mapped_file_lives_as_long_as_the_array(store: Store) -> None:
    path = store(ct_of(VOXELS))
    volume = ct_view(path).volume()
    path.unlink()
    assert np.array_equal(volume, VOXELS)


def test_rescaled_voxels_follow_each_frames_own_slope(store: Store) -> None:
    def transformation(slope: int, intercept: int) -> list[Element]:
        item = [Element(0x00281052, "DS", intercept), Element(0x00281053, "DS", slope)]
        return [Element(0x00289145, "SQ", [[*item, Element(0x00281054, "LO", "HU")]])]

    groups = Element(0x52009230, "SQ", [transformation(number + 1, -number) for number in range(4)])
    view = ct_view(store(ct_of(VOXELS, replacing=[groups])))
    expected = [VOXELS[number].astype("f4") * (number + 1) - number for number in range(4)]
    assert view.volume(rescaled=True).dtype == np.float32
    assert np.array_equal(view.volume(rescaled=True), np.stack(expected))
    assert view.sections[0].rescale_type == "HU"


def test_two_parts_are_two_sections_and_no_volume(store: Store) -> None:
    parts = [store(one) for one in two_section_ct()]
    view = ct_view(parts)
    assert [one.shape for one in view.sections] == [(4, 16, 16), (4, 12, 12)]
    with pytest.raises(CannotView, match="2 sections make up no volume: they differ in size or type"):
        view.volume()


def test_parts_that_follow_each_other_are_one_volume_in_the_order_of_their_places(store: Store) -> None:
    uid = "1.2.3"
    halves = [
        ct_of(VOXELS[2:], sop_instance_uid=uid, replacing=[placed((0, 0, 7), (0, 0, 9))]),
        ct_of(VOXELS[:2], sop_instance_uid=uid, replacing=[placed((0, 0, 3), (0, 0, 5))]),
    ]
    view = ct_view([store(one) for one in halves])
    assert view.shape == VOXELS.shape
    assert np.array_equal(view.volume(), VOXELS)
    assert view.affine((0, 0, 3)) == (0, 0, 9)


def test_slices_in_files_of_their_own_are_one_volume(store: Store) -> None:
    files = [
        store(ct_of(VOXELS[number : number + 1], sop_instance_uid="1.2", replacing=[placed((0, 0, -number))]))
        for number in (2, 0, 3, 1)
    ]
    view = ct_view(files)
    assert np.array_equal(view.volume(), VOXELS[::-1])
    assert view.planes.position == (0, 0, -3)


@pytest.mark.parametrize("second", [(0, 0, 5), (1, 0, 2)], ids=["a gap", "beside"])
def test_parts_that_do_not_follow_each_other_are_no_volume(
    store: Store, second: tuple[float, float, float]
) -> None:
    x, y, z = second
    first = ct_of(VOXELS[:2], sop_instance_uid="1.2", replacing=[placed((0, 0, 0), (0, 0, 1))])
    other = ct_of(VOXELS[2:], sop_instance_uid="1.2", replacing=[placed((x, y, z), (x, y, z + 1))])
    with pytest.raises(CannotView, match="their planes are not evenly spaced along one line"):
        ct_view([store(first), store(other)]).volume()


def test_one_file_is_cut_into_sections_where_its_frames_do_not_go_on(store: Store) -> None:
    jump = placed((0, 0, 20), (0, 0, 21), (0, 0, 4), (0, 0, 5))
    view = ct_view(store(ct_of(VOXELS, replacing=[jump])))
    assert [one.frames for one in view.sections] == [range(2), range(2, 4)]
    assert np.array_equal(view.sections[1].volume(), VOXELS[2:])
    assert [one.position for one in view.sections] == [(0, 0, 20), (0, 0, 4)]


def test_files_of_different_instances_are_not_joined(store: Store) -> None:
    with pytest.raises(CannotView, match="no part of the instance"):
        open_instance([store(dicos_ct(seed=1)), store(dicos_ct(seed=2))])


def test_a_stored_instance_is_whatever_has_a_path(store: Store) -> None:
    class Stored:
        path = store(ct_of(VOXELS))

    view = open_instance(Stored())
    assert isinstance(view, CTView)
    assert np.array_equal(view.volume(), VOXELS)


@pytest.mark.parametrize(
    ("sop_class", "kind"),
    [("501.1.3", CTView), ("501.7.2", CTView), ("501.8.4", CTView), ("501.4", AITView), ("501.5.1", AITView)],
)
def test_every_class_with_voxels_has_its_view(store: Store, sop_class: str, kind: type) -> None:
    uid = "1.2.840.10008.5.1.4.1.1." + sop_class
    view = open_instance(store(ct_of(VOXELS, replacing=[Element(0x00080016, "UI", uid)])))
    assert type(view) is kind
    assert isinstance(view, CTView | AITView)
    assert np.array_equal(view.volume(), VOXELS)
