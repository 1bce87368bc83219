"""What opens as what, what is missing, and what is said of damage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from scp_server import open_instance
from scp_server.errors import CannotView
from scp_server.objects import frame_codecs
from scp_server.objects.pixel_format import Codec
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.dicos_objects import dicos_ct, dicos_dx, dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.views import pixels
from scp_server.views.volumes import CTView

Store = Callable[[EncodedObject], Path]
CLASSES = "1.2.840.10008.5.1.4.1.1.501"


def ct_view(path: Path) -> CTView:
    view = open_instance(path)
    assert isinstance(view, CTView)
    return view


def fragments(
    one: EncodedObject, *pieces: bytes, syntax: TransferSyntax = TransferSyntax.RLE_LOSSLESS
) -> EncodedObject:
    """The object with these fragments in place of an empty pixel data element at its end."""
    encoder = DatasetEncoder()
    head = one.dataset[: -len(encoder.element(Element(0x7FE00010, "OW", b"")))]
    return replace(one, dataset=head + encoder.fragments(pieces, vr="OW"), transfer_syntax_uid=syntax)


def test_a_medical_object_is_the_plain_data_set(store: Store) -> None:
    found = open_instance(store(ct_image()))
    assert isinstance(found, Dataset)
    assert found.PatientName == "Doe^Jane"
    assert len(found.PixelData) == 64 * 64 * 2


@pytest.mark.parametrize(("number", "modality"), [("11.1", "ETD"), ("1.7", "DPC")])
def test_a_kind_without_a_view_is_the_data_set_with_the_vrs_of_dicos(
    store: Store, number: str, modality: str
) -> None:
    replacing = [Element(0x00080016, "UI", f"{CLASSES}.{number}"), Element(0x00080060, "CS", modality)]
    found = open_instance(store(dicos_ct(replacing=replacing)))
    assert isinstance(found, Dataset)
    assert found.NumberOfFrames == 4
    assert found.DICOSVersion == "V03"


def test_a_class_that_no_table_has_opens_by_its_modality(store: Store) -> None:
    view = open_instance(store(dicos_ct(replacing=[Element(0x00080016, "UI", CLASSES + ".1.8")])))
    assert isinstance(view, CTView)


def test_names_of_object_scan_series_and_machine(store: Store) -> None:
    view = ct_view(store(dicos_ct()))
    assert view.object_of_inspection.object_id == "BAG0001"
    assert view.object_of_inspection.object_type == "BAGGAGE"
    assert (view.scan.scan_id, view.scan.scan_type) == ("SCAN-1", "OPERATIONAL")
    assert (view.series.modality, view.series.acquisition_status) == ("CT", "SUCCESSFUL")
    assert (view.machine.machine_id, view.machine.location) == ("EDS-07", "T2 Lane 7")
    assert view.dataset().StationName == "EDS-07"


def test_opening_reads_the_header_alone(store: Store) -> None:
    path = store(dicos_ct())
    path.write_bytes(path.read_bytes()[:-100])
    view = ct_view(path)
    assert view.dicos_version == "V03"
    with pytest.raises(CannotView, match=rf"{path.name}: the data set is damaged: data set cut at byte \d+"):
        view.volume()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not a DICOM Part 10 file"),
        (b"nothing" * 40, "not a DICOM Part 10 file"),
        (bytes(128) + b"DICM" + b"\x02\0\x10\0UI\x08\0", r"cut in \(0002,0010\)"),
    ],
)
def test_what_is_no_object_is_said_to_be_none(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "no-object.dcs"
    path.write_bytes(content)
    with pytest.raises(CannotView, match=f"no-object.dcs: .*{text}"):
        open_instance(path)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_instance(tmp_path / "none.dcs")


def test_a_header_that_is_cut_is_named_with_its_byte(store: Store) -> None:
    path = store(dicos_tdr())
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(CannotView, match=r"the data set is damaged: .* byte \d+"):
        open_instance(path)


def test_fewer_pixels_than_described_are_counted_in_the_error(store: Store) -> None:
    view = ct_view(store(dicos_ct(frames=4, replacing=[Element(0x00280010, "US", 17)])))
    with pytest.raises(CannotView, match=r"has 2048 bytes, and 4 frames of 17 rows and 16 .* have 2176"):
        view.volume()


def test_another_number_of_positions_than_frames_is_refused(store: Store) -> None:
    with pytest.raises(CannotView, match="it has 3 frames, and says of 4 where they lie"):
        ct_view(store(dicos_ct(replacing=[Element(0x00280008, "US", 3)]))).volume()


@pytest.mark.parametrize(
    ("element", "text"),
    [
        (Element(0x00280010, "US", 0), r"Rows \(0028,0010\) is missing or no number"),
        (Element(0x00280100, "US", 12), "pixels of 12 bits"),
        (Element(0x7FE00010, "OW", b""), "has 0 bytes"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(store: Store, element: Element, text: str) -> None:
    with pytest.raises(CannotView, match=text):
        ct_view(store(dicos_ct(replacing=[element]))).volume()


def test_an_image_without_pixel_data_says_so(store: Store) -> None:
    one = dicos_ct(replacing=[Element(0x7FE00010, "OW", b"")])
    with pytest.raises(CannotView, match="it has no pixel data"):
        ct_view(store(replace(one, dataset=one.dataset[:-12]))).volume()


def test_a_few_bytes_of_rle_do_not_become_a_large_frame(store: Store) -> None:
    sizes = [Element(0x00280010, "US", 8_000), Element(0x00280011, "US", 8_000)]
    one = dicos_ct(frames=1, replacing=[*sizes, Element(0x7FE00010, "OW", b"")])
    with pytest.raises(CannotView, match="frame 0 of 1: 70 bytes cannot be that many pixels"):
        ct_view(store(fragments(one, bytes(70)))).volume()


def test_a_frame_larger_than_any_is_not_decoded(store: Store) -> None:
    sizes = [Element(0x00280010, "US", 65_535), Element(0x00280011, "US", 65_535)]
    one = dicos_ct(frames=1, replacing=[*sizes, Element(0x7FE00010, "OW", b"")])
    with pytest.raises(CannotView, match=f"a frame of {65_535**2 * 2} bytes is longer than allowed"):
        next(ct_view(store(fragments(one, bytes(70)))).sections[0].slices())


def test_a_volume_larger_than_memory_is_an_error_and_not_made(store: Store) -> None:
    sizes = [Element(0x00280010, "US", 10_000), Element(0x00280011, "US", 10_000)]
    replacing = [*sizes, Element(0x00280008, "US", 65_535), Element(0x52009230, "SQ")]
    one = dicos_ct(replacing=[*replacing, Element(0x7FE00010, "OW", b"")])
    with pytest.raises(CannotView, match=r"do not fit into memory|cannot be that many pixels"):
        ct_view(store(fragments(one, bytes(70)))).volume()


def test_a_frame_that_is_damaged_is_named(store: Store) -> None:
    one = dicos_ct(frames=2, replacing=[Element(0x7FE00010, "OW", b"")])
    path = store(fragments(one, b"\xff\xd8" + bytes(600), b"\xff\xd8", syntax=TransferSyntax.JPEG_LOSSLESS))
    with pytest.raises(CannotView, match="frame 0 of 2: "):
        ct_view(path).volume()


def test_fewer_fragments_than_frames_are_refused(store: Store) -> None:
    one = dicos_ct(frames=4, transfer_syntax=TransferSyntax.RLE_LOSSLESS)
    encoder = DatasetEncoder()
    start = one.dataset.rindex(encoder.header(0xFFFEE000, "", 0)[:4])
    cut = one.dataset[:start] + encoder.header(0xFFFEE0DD, "", 0)
    with pytest.raises(CannotView, match="3 frames instead of 4"):
        ct_view(store(replace(one, dataset=cut))).volume()


def test_a_transfer_syntax_without_a_decoder_is_named(store: Store) -> None:
    one = fragments(dicos_ct(replacing=[Element(0x7FE00010, "OW", b"")]), b"\0\0")
    path = store(replace(one, transfer_syntax_uid="1.2.840.10008.1.2.4.102"))
    with pytest.raises(CannotView, match=r"1\.2\.840\.10008\.1\.2\.4\.102 cannot be decoded"):
        ct_view(path).volume()


def test_a_missing_decoder_names_the_extra(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "is_available", lambda codec: codec is Codec.RLE)
    view = ct_view(store(dicos_ct(transfer_syntax=TransferSyntax.JPEG_LOSSLESS)))
    with pytest.raises(CannotView, match="the extra `codecs` is not installed"):
        view.volume()
    assert "scp-server[codecs]" in frame_codecs.MISSING_EXTRA


def test_only_pixels_and_masks_need_numpy(store: Store) -> None:
    program = """
import sys
sys.modules["numpy"] = None
from scp_server import open_instance
from scp_server.errors import CannotView
ct, dx, tdr = map(open_instance, sys.argv[1:])
print(ct.shape, ct.affine((0, 0, 1)), dx.windows[0].width, tdr.threats[0].number)
for ask in (ct.volume, dx.displayed, next(tdr.threats[0].regions).mask):
    try:
        ask()
    except CannotView as error:
        print(error)
"""
    paths = [store(one) for one in (dicos_ct(), dicos_dx(), dicos_tdr())]
    command = [sys.executable, "-c", program, *map(str, paths)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    first, *errors = output.splitlines()
    assert first == "(4, 16, 16) (-8.0, -8.0, 1.0) 10000.0 100"
    assert len(errors) == 3
    assert all("pip install 'scp-server[volume]'" in error for error in errors)


def test_nothing_given_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no file"):
        open_instance([])


def test_reports_are_not_joined(store: Store) -> None:
    with pytest.raises(CannotView, match="only the parts of a CT or AIT"):
        open_instance([store(dicos_tdr()), store(dicos_tdr())])
