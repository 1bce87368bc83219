"""Send DICOS files with the real toolkit's client: dicos_client.py PORT [OPTIONS] FILE...

Each FILE is KIND:PATH with KIND CT, DX, TDR, or CT2 for a CT of two sections made from the CT in the file.
Prints one line of JSON for each step; exit code 0 when the toolkit called every one a success. Run it with
TZ=UTC, in a process of its own: the toolkit may end it on what it does not understand.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from typing import Any

import numpy
import pyDICOS

OBJECT_POINTER_OFFSET = 16
"""Where a bound object keeps the pointer to its C++ self: behind CPython's object header."""
SEND_OVER_NETWORK_SLOT = 10
"""Virtual method `SendOverNetwork(client, log)` of every DICOS object; only CT's is bound to Python."""


def native_pointer(bound: object) -> int:
    """Address of the C++ object behind a bound one."""
    address = ctypes.c_void_p.from_address(id(bound) + OBJECT_POINTER_OFFSET).value
    if address is None:
        raise RuntimeError("a bound object without its C++ self")
    return address


def send(dicos_object: object, client: object) -> tuple[bool, str]:
    """Send one object over the client's session; whether it was accepted, and the toolkit's log."""
    log = pyDICOS.ErrorLog()
    this = native_pointer(dicos_object)
    table = ctypes.c_void_p.from_address(this).value or 0
    method = ctypes.c_void_p.from_address(
        table + ctypes.sizeof(ctypes.c_void_p) * SEND_OVER_NETWORK_SLOT
    ).value
    prototype = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    accepted = prototype(method or 0)(this, native_pointer(client), native_pointer(log))
    return bool(accepted), log.GetErrorLog().Get().strip()


def load(kind: str, path: str) -> Any:
    """Read a file as the object it is."""
    dicos_object = {"CT": pyDICOS.CT, "CT2": pyDICOS.CT, "DX": pyDICOS.DX, "TDR": pyDICOS.TDR}[kind]()
    log = pyDICOS.ErrorLog()
    if not dicos_object.Read(pyDICOS.Filename(path), log, None):
        raise RuntimeError(f"{path} is not read as {kind}: {log.GetErrorLog().Get()}")
    if kind == "CT2":
        # Changing their number empties the sections there were; two with slices of one size would be merged.
        dicos_object.SetNumberOfSections(2)
        for index, side in enumerate((8, 12)):
            fill_section(dicos_object.GetSectionByIndex(index), side)
    return dicos_object


def fill_section(section: Any, side: int) -> None:
    """Give a section of a CT its voxels and all that describes them."""
    section.SetKVP(160)
    section.SetFocalSpotSizeInMM(1.4)
    section.SetFilterMaterial(pyDICOS.Section.FILTER_MATERIAL.enumAluminum)
    section.SetPlaneOrientation(pyDICOS.Vector3Dfloat(1, 0, 0), pyDICOS.Vector3Dfloat(0, 1, 0))
    section.SetPositionInMM(0, 0, 0)
    section.SetSpacingInMM(1, 1, 1)
    section.SetSliceThickness(1)
    section.SetRescaleType(pyDICOS.DcsLongString("MHU"))
    voxels = numpy.arange(5 * side * side, dtype=numpy.uint16).reshape(5, side, side)
    pyDICOS.Volume.set_data(section.GetPixelData(), voxels)


def make_client(arguments: argparse.Namespace) -> Any:
    """A client for a server on this machine."""
    client = pyDICOS.DcsClient()
    client.SetServerPortandIP(arguments.port, pyDICOS.DcsString("127.0.0.1"))
    client.SetSourceApplication(pyDICOS.DcsApplicationEntity("SCANNER7"))
    client.SetDestinationApplication(pyDICOS.DcsApplicationEntity("SCP_SERVER"))
    if arguments.passcode:
        client.SetPasscodeAndUserName(
            pyDICOS.DcsString(arguments.passcode), pyDICOS.DcsString(arguments.user)
        )
    elif arguments.user:
        client.SetUserName(pyDICOS.DcsString(arguments.user))
    return client


def main() -> bool:
    """Everything on one association; whether all of it succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--echo", action="store_true")
    parser.add_argument("--user", default="")
    parser.add_argument("--passcode", default="")
    parser.add_argument("files", nargs="*")
    arguments = parser.parse_intermixed_args()
    client = make_client(arguments)
    successes = []

    def report(step: str, success: object, log: str = "") -> None:
        successes.append(bool(success))
        print(json.dumps({"step": step, "success": bool(success), "log": log}), flush=True)

    report("connect", client.ConnectToServer())
    report("associate", client.StartDicosSession(int(pyDICOS.DcsClient.SOPCLASSUID.enumSopAll)))
    if arguments.echo:
        report("echo", client.Echo())
    for file in arguments.files:
        kind, _, path = file.partition(":")
        report(file, *send(load(kind, path), client))
    client.StopDicosSession()
    client.DisconnectFromServer()
    return all(successes)


if __name__ == "__main__":
    everything = main()
    sys.stdout.flush()
    # The toolkit's threads do not end with the interpreter.
    os._exit(0 if everything else 1)
