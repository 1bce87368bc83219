"""Read DICOS files with the real toolkit: dicos_reader.py [--rewrite FOLDER] KIND:PATH...

Prints one line of JSON for each file: `read` is whether the toolkit took it, or null where it crashed. Each
is read in a process of its own, because it may. With `--rewrite` it writes what it has read again, in every
transfer syntax that it knows. Run it with TZ=UTC.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pyDICOS

SYNTAXES = {
    "ele": pyDICOS.TRANSFER_SYNTAX.enumLittleEndianExplicit,
    "ele64": pyDICOS.TRANSFER_SYNTAX.enumLittleEndianExplicitExtended,
    "ile": pyDICOS.TRANSFER_SYNTAX.enumLittleEndianImplicit,
    "jpegll": pyDICOS.TRANSFER_SYNTAX.enumLosslessJPEG,
    "rle": pyDICOS.TRANSFER_SYNTAX.enumLosslessRLE,
}


def read(kind: str, path: str, rewrite: str) -> dict[str, object]:
    """Whether the toolkit takes a file, what it says, and the files that it has written."""
    log = pyDICOS.ErrorLog()
    dicos_object = getattr(pyDICOS, kind)()
    taken = bool(dicos_object.Read(pyDICOS.Filename(path), log, None))
    written = []
    for name, syntax in SYNTAXES.items() if rewrite and taken else ():
        output = str(Path(rewrite) / f"{Path(path).stem}-{name}.dcs")
        if dicos_object.Write(pyDICOS.Filename(output), log, syntax):
            written.append(output)
    return {"file": path, "read": taken, "log": log.GetErrorLog().Get()[:2000], "written": written}


def read_apart(kind: str, path: str, rewrite: str) -> dict[str, object]:
    """The same in a child process; `read` is None where that does not come back."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(sending, json.dumps(read(kind, path, rewrite)).encode())
        finally:
            # The toolkit's threads do not end with the interpreter.
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    crashed: dict[str, object] = {"file": path, "read": None, "log": "", "written": []}
    verdict: dict[str, object] = json.loads(said) if said else crashed
    return verdict


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rewrite", default="")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    for argument in arguments.files:
        kind, _, path = argument.partition(":")
        print(json.dumps(read_apart(kind, path, arguments.rewrite)), flush=True)
