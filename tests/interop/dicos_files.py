"""Write DICOS files with the real toolkit and say what it reads from every file: dicos_files.py FOLDER

Into the folder it writes CT, DX and TDR in each transfer syntax. Then it reads each *.dcs there, those that
lay there before too, and prints one line of JSON for each; arrays go to .npy files beside it. Run it with
TZ=UTC, in a process of its own: the toolkit may end it on what it does not understand.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pyDICOS as P

DATE, TIME = P.DcsDate(2026, 11, 20), P.DcsTime(10, 11, 12, 0)
BAGGAGE = P.CT.OBJECT_OF_INSPECTION_TYPE.enumTypeBaggage
SYNTAXES = {
    "explicit": P.CT.TRANSFER_SYNTAX.enumLittleEndianExplicit,
    "long": P.CT.TRANSFER_SYNTAX.enumLittleEndianExplicitExtended,
    "implicit": P.CT.TRANSFER_SYNTAX.enumLittleEndianImplicit,
    "jpeg": P.CT.TRANSFER_SYNTAX.enumLosslessJPEG,
    "rle": P.CT.TRANSFER_SYNTAX.enumLosslessRLE,
}
TYPES = P.Volume.IMAGE_DATA_TYPE
READABLE = {
    TYPES.enumUnsigned16Bit: "GetUnsigned16",
    TYPES.enumSigned16Bit: "GetSigned16",
    TYPES.enumFloat: "GetFloat",
}
"""The types whose voxels the toolkit hands to Python."""
BY_NAME = {
    "int16": TYPES.enumSigned16Bit,
    "float32": TYPES.enumFloat,
    "uint32": TYPES.enumUnsigned32Bit,
    "uint64": TYPES.enumUnsigned64Bit,
}
KEPT: list[Any] = []
"""Objects that live to the end: freeing some, and what they handed to Python, crashes the toolkit."""


def common(one: Any) -> None:
    """What every object needs."""
    one.SetOOIID(P.DcsLongString("BAG0042"))
    one.SetOOIIDAssigningAuthority(P.DcsLongString("ACME AIRPORT BHS"))
    one.SetOOIIDType(P.TDR.OBJECT_OF_INSPECTION_ID_TYPE.enumBarcode)
    one.SetOOIType(BAGGAGE)
    one.SetScanID(P.DcsShortString("SCAN-42"))
    one.SetScanStartDateAndTime(DATE, TIME)
    one.SetScanType(P.CT.SCAN_TYPE.enumOperational)
    one.SetSeriesDateAndTime(DATE, TIME)
    one.SetSeriesAcquisitionStatus(P.GeneralSeriesModule.ACQUISITION_STATUS.enumSuccessful)
    one.SetContentDateAndTime(DATE, TIME)
    one.SetDeviceCalibrationDateAndTime(DATE, TIME)
    one.SetDeviceSerialNumber(P.DcsLongString("SN-0042"))
    one.SetMachineAddress(P.DcsShortText("1 Airport Rd"))
    one.SetMachineLocation(P.DcsLongString("T2 Lane 7"))
    one.SetMachineID(P.DcsShortString("EDS-07"))
    one.SetDeviceManufacturer(P.DcsLongString("ACME Scanners"))
    one.SetDeviceManufacturerModelName(P.DcsLongString("EDS-9000"))
    one.SetDeviceSoftwareVersion(P.DcsLongString("1.2.3"))
    one.SetSopInstanceCreationDateAndTime(DATE, TIME)


def make_ct(volumes: Sequence[tuple[Any, tuple[float, float, float]]]) -> Any:
    """A CT with these volumes as sections, each with its position."""
    seen, flavor = P.CT.OOI_IMAGE_CHARACTERISTICS.enumHighEnergy, P.CT.IMAGE_FLAVOR.enumVolume
    ct = P.CT(BAGGAGE, seen, flavor, P.CT.PHOTOMETRIC_INTERPRETATION.enumMonochrome2)
    common(ct)
    ct.GenerateScanInstanceUID()
    ct.GenerateSeriesInstanceUID()
    ct.GenerateSopInstanceUID()
    ct.SetFrameOfReferenceUID(P.DcsUniqueIdentifier(P.DcsGUID.GenerateAsDecimalString()))
    ct.SetImageAcquisitionDateAndTime(DATE, TIME)
    ct.SetImageAcquisitionDuration(5.2)
    ct.SetInstanceNumber(1)
    ct.SetBurnedInAnnotation(False)
    ct.SetNumberOfSections(len(volumes))
    for number, (voxels, position) in enumerate(volumes):
        section = ct.GetSectionByIndex(number)
        section.SetFilterMaterial(P.Section.FILTER_MATERIAL.enumAluminum)
        section.SetFocalSpotSizeInMM(1.4)
        section.SetKVP(160)
        section.SetPlaneOrientation(P.Vector3Dfloat(1, 0, 0), P.Vector3Dfloat(0, 1, 0))
        section.SetPositionInMM(*position)
        section.SetSpacingInMM(0.5, 0.75, 2)
        section.SetSliceThickness(1.5)
        section.SetRescaleType(P.DcsLongString("MHU"))
        fill(section.GetPixelData(), voxels)
    return ct


def fill(volume: Any, voxels: Any) -> None:
    if voxels.dtype == numpy.uint16:
        P.Volume.set_data(volume, voxels)
        return
    slices, rows, columns = voxels.shape
    kind = BY_NAME[voxels.dtype.name]
    volume.Allocate(kind, columns, rows, slices)
    if kind not in READABLE:
        # Python cannot fill them; their size and type are there all the same.
        return
    planes = getattr(volume, READABLE[kind])()
    KEPT.append(planes)
    for number in range(slices):
        # planes[number] would be a copy.
        plane = planes.GetSlice(number)
        KEPT.append(plane)
        numpy.array(plane, copy=False)[:] = voxels[number]


def make_dx(photometric: Any) -> Any:
    """A DX for presentation of 48 columns and 32 rows; with a palette of 64 colours for PALETTE COLOR."""
    is_palette = photometric == P.CT.PHOTOMETRIC_INTERPRETATION.enumPaletteColor
    intents = P.DX.PRESENTATION_INTENT_TYPE
    intent = intents.enumProcessing if is_palette else intents.enumPresentation
    dx = P.DX(BAGGAGE, intent, P.DX.PIXEL_DATA_CHARACTERISTICS.enumOriginal, photometric)
    image = dx.GetXRayData()
    image.Allocate(TYPES.enumUnsigned16Bit, 48, 32)
    pixels = numpy.array(image.GetUnsigned16(), copy=False)
    rows, columns = numpy.indices(pixels.shape)
    dx.SetPresentationLUTShape(P.DX.PRESENTATION_LUT_SHAPE.enumIdentity)
    if is_palette:
        pixels[:] = rows % 64
        for number, table in enumerate((dx.GetRedLUT(), dx.GetGreenLUT(), dx.GetBlueLUT())):
            table.SetSize(64, False)
            numpy.array(table, copy=False)[:] = numpy.arange(64) * (number + 1)
    else:
        pixels[:] = 20_000 + 100 * columns + 50 * rows
        dx.SetWindowCenterAndWidth(20_000, 10_000)
        dx.SetWindowCenterAndWidthExplanation(P.DcsLongString("NORMAL"))
    dx.SetKVP(140.0)
    dx.SetImageOrientation(P.Vector3Dfloat(1, 0, 0), P.Vector3Dfloat(0, 1, 0))
    dx.SetImagePosition(P.Point3Dfloat(0, 0, 1))
    dx.SetXRayTubeCurrent(2.5)
    return dx


def make_tdr(ct: Any) -> Any:
    """A machine's report of two objects, one with a mask."""
    tdr = P.TDR(BAGGAGE, P.TDR.TDR_TYPE.enumMachine, 1)
    common(tdr)
    tdr.SetScanInstanceUID(ct.GetScanInstanceUID())
    tdr.SetFrameOfReferenceUID(ct.GetFrameOfReferenceUID())
    tdr.SetSeriesInstanceUID(P.DcsUniqueIdentifier(P.DcsGUID.GenerateAsDecimalString()))
    tdr.GenerateSopInstanceUID()
    parameters = P.CustomArray1DDcsLongString(2)
    for number, text in enumerate(("-threshold=0.5", "-model=v7")):
        parameters.SetBuffer(number, P.DcsLongString(text))
    tdr.SetTDRTypeATR(P.DcsLongString("Auxilia"), P.DcsLongString("7.1.0"), parameters)
    tdr.SetImageScaleRepresentation(1.0)
    tdr.SetAlarmDecision(P.TDR.ALARM_DECISION.enumAlarm)
    tdr.SetAlarmDecisionDateTime(DATE, P.DcsTime(10, 11, 14, 0))
    tdr.SetAbortFlag(P.TDR.ABORT_FLAG.enumSuccess)
    tdr.SetTotalProcessingTimeInMS(1450.0)
    mask = numpy.random.default_rng(3).integers(0, 2, 7 * 5 * 3).astype(numpy.uint8)
    for number in (100, 101):
        tdr.AddPotentialThreatObject(number, P.TDR.ThreatType.enumThreatTypeBaggage)
        flag, category = P.TDR.ASSESSMENT_FLAG.enumThreat, P.TDR.THREAT_CATEGORY.enumExplosive
        ability = P.TDR.ABILITY_ASSESSMENT.enumShield
        tdr.AddPTOAssessment(number, flag, category, ability, P.DcsLongText(f"Thing {number}"), 0.61)
        tdr.SetBaggagePTODetails(number, 20.0 + number, 1.5, 0)
        bitmap = P.Bitmap()
        if number == 100:
            bitmap.SetDims(7, 5, 3, True)
            packed, buffer = numpy.packbits(mask, bitorder="little"), P.MemoryBuffer()
            buffer.SetBuffer(packed, packed.size)
            bitmap.SetBitmapData(buffer, True)
        base, extents = P.Point3Dfloat(number, 21, 10), P.Point3Dfloat(7, 5, 3)
        tdr.SetThreatRegionOfInterest(number, base, extents, bitmap, 0)
        polygon = P.Array1DPoint3Dfloat()
        polygon.SetSize(2, False)
        polygon[0], polygon[1] = P.Point3Dfloat(1, 2, 3), P.Point3Dfloat(4, 5, 6)
        tdr.SetThreatBoundingPolygon(number, polygon, 0)
        tdr.AddReferencedInstance(number, ct.GetSopClassUID(), ct.GetSopInstanceUID(), 0)
        start, end = (P.DcsDateTime(DATE, P.DcsTime(10, 11, second, 0)) for second in (13, 14))
        tdr.SetPTOProcessingTime(number, start, end, 1000.0)
    return tdr


def write(folder: Path) -> None:
    """One file for each object and transfer syntax that the toolkit can write it in."""
    voxels = numpy.random.default_rng(1).integers(0, 65_536, (5, 6, 8)).astype(numpy.uint16)
    other = numpy.arange(3 * 4 * 10, dtype=numpy.uint16).reshape(3, 4, 10)
    ct = make_ct([(voxels, (-1, -2, -3))])
    photometrics = P.CT.PHOTOMETRIC_INTERPRETATION
    tdr = make_tdr(ct)
    grey, palette = make_dx(photometrics.enumMonochrome2), make_dx(photometrics.enumPaletteColor)
    for name, syntax in SYNTAXES.items():
        save(ct, folder / f"ct-{name}.dcs", syntax)
        save(tdr, folder / f"tdr-{name}.dcs", syntax)
        save(grey, folder / f"dx-{name}.dcs", syntax)
        if name not in ("jpeg", "rle"):
            real = (voxels / 7).astype(numpy.float32)
            save(make_ct([(real, (0, 0, 0))]), folder / f"ctfloat-{name}.dcs", syntax)
            for bits, dtype in ((32, numpy.uint32), (64, numpy.uint64)):
                wide = make_ct([(voxels.astype(dtype), (0, 0, 0))])
                save(wide, folder / f"ct{bits}-{name}.dcs", syntax)
    signed = (voxels.astype(numpy.int32) - 32_768).astype(numpy.int16)
    explicit = SYNTAXES["explicit"]
    save(make_ct([(signed, (0, 0, 0))]), folder / "ctsigned-explicit.dcs", explicit)
    save(palette, folder / "dxpalette-explicit.dcs", explicit)
    save(make_ct([(voxels, (0, 0, 20)), (other, (0, 0, 5))]), folder / "sections-explicit.dcs", explicit)
    same = [(voxels + number, (0, 0, 10.0 * number)) for number in range(3)]
    save(make_ct(same), folder / "stack-explicit.dcs", explicit)


def save(one: Any, path: Path, syntax: Any) -> None:
    log = P.ErrorLog()
    KEPT.append(one)
    if not one.Write(P.Filename(str(path)), log, syntax):
        raise RuntimeError(f"{path} is not written: {log.GetErrorLog().Get()}")


def read(path: Path) -> dict[str, Any]:
    """What the toolkit reads from a file."""
    for kind, describe in ((P.CT, read_ct), (P.DX, read_dx), (P.TDR, read_tdr)):
        one, log = kind(), P.ErrorLog()
        KEPT.append(one)
        if one.Read(P.Filename(str(path)), log, None):
            said = log.GetErrorLog().Get()
            return {"file": path.name, "kind": kind.__name__, "log": said, **describe(one, path)}
    return {"file": path.name, "kind": "", "log": log.GetErrorLog().Get()}


def read_ct(ct: Any, path: Path) -> dict[str, Any]:
    sections = []
    for number in range(ct.GetNumberOfSections()):
        section = ct.GetSectionByIndex(number)
        place = section.GetPositionInMM()
        kind, volume = section.GetPixelDataType(), section.GetPixelData()
        array = None
        if kind in READABLE:
            planes = getattr(volume, READABLE[kind])()
            KEPT.append(planes)
            voxels = [numpy.array(planes[index]) for index in range(section.GetDepth())]
            array = save_array(path, number, numpy.stack(voxels))
        sections.append(
            {
                "array": array,
                "shape": [section.GetDepth(), section.GetHeight(), section.GetWidth()],
                "type": kind.name,
                "position": coordinates(place),
                "spacing": [
                    section.GetColumnSpacing(),
                    section.GetRowSpacing(),
                    section.GetSliceSpacing(),
                ],
                "thickness": section.GetSliceThickness(),
                "rescale_type": section.GetRescaleType().Get(),
            }
        )
    return {"sections": sections, "object_id": ct.GetOOIID().Get(), "uid": ct.GetSopInstanceUID().Get()}


def read_dx(dx: Any, path: Path) -> dict[str, Any]:
    pixels = numpy.array(dx.GetXRayData().GetUnsigned16())
    tables = [numpy.array(one).tolist() for one in (dx.GetRedLUT(), dx.GetGreenLUT(), dx.GetBlueLUT())]
    center, width = P.Array1Dfloat(), P.Array1Dfloat()
    dx.GetWindowCenterAndWidth(center, width)
    windows = [[center[number], width[number]] for number in range(center.GetSize())]
    return {"array": save_array(path, 0, pixels), "tables": tables, "windows": windows}


def read_tdr(tdr: Any, path: Path) -> dict[str, Any]:
    ids = P.Array1DS_UINT16()
    tdr.GetPTOIds(ids)
    threats = []
    for number in range(ids.GetSize()):
        wanted = ids[number]
        base, extents, bitmap = P.Point3Dfloat(), P.Point3Dfloat(), P.Bitmap()
        tdr.GetThreatRegionOfInterest(wanted, base, extents, bitmap, 0)
        polygon = P.Array1DPoint3Dfloat()
        tdr.GetThreatBoundingPolygon(wanted, polygon, 0)
        array = None
        if bitmap.GetSize():
            bits = numpy.unpackbits(numpy.frombuffer(bitmap.GetBitmap(), numpy.uint8), bitorder="little")
            shape = bitmap.GetDepth(), bitmap.GetHeight(), bitmap.GetWidth()
            array = save_array(path, number, bits[: bitmap.GetNumBits()].reshape(shape))
        _, mass, density = tdr.GetBaggagePTODetails(wanted, 0.0, 0.0, 0)
        threats.append(
            {
                "id": wanted,
                "base": coordinates(base),
                "extents": coordinates(extents),
                "polygon": [
                    [one.x, one.y, one.z] for one in map(polygon.__getitem__, range(polygon.GetSize()))
                ],
                "mask": array,
                "mass": mass,
                "density": density,
                "probability": tdr.GetPTOAssessmentProbability(wanted, 0),
                "description": tdr.GetPTOAssessmentDescription(wanted, 0).Get(),
                "category": tdr.GetPTOAssessmentThreatCategory(wanted, 0).name,
                "flag": tdr.GetPTOAssessmentFlag(wanted, 0).name,
                "ability": tdr.GetPTOAssessmentAbility(wanted, 0).name,
            }
        )
    return {
        "threats": threats,
        "type": tdr.GetTDRType().name,
        "decision": tdr.GetAlarmDecision().name,
        "object_id": tdr.GetOOIID().Get(),
        "milliseconds": tdr.GetTotalProcessingTimeInMS(),
        "scale": tdr.GetImageScaleRepresentation(),
    }


def coordinates(point: Any) -> list[float]:
    return [point.x, point.y, point.z]


def save_array(path: Path, number: int, array: Any) -> str:
    name = f"{path.stem}-{number}.npy"
    numpy.save(path.with_name(name), array)
    return name


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write(target)
    for found in sorted(target.glob("*.dcs")):
        print(json.dumps(read(found)), flush=True)
    # The toolkit's threads do not end with the interpreter.
    os._exit(0)
