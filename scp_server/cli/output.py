"""What all commands say alike: exit codes, statuses in words, results for people and for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from enum import IntEnum

from scp_server.observability.text import printable
from scp_server.protocol.status import Status, status_class


class ExitCode(IntEnum):
    """How every command ends. Nothing that failed ends with 0."""

    OK = 0
    FAILED = 1
    """The peer or the work failed, wholly or in part, or was interrupted."""
    USAGE = 2
    """Wrong usage or configuration."""
    NO_ASSOCIATION = 3
    """No connection or association."""


_MEANINGS: Mapping[int, str] = {
    Status.SUCCESS: "success",
    Status.PROCESSING_FAILURE: "processing failure",
    Status.DUPLICATE_SOP_INSTANCE: "duplicate SOP instance",
    Status.NO_SUCH_SOP_INSTANCE: "no such SOP instance",
    Status.INVALID_SOP_INSTANCE: "invalid SOP Instance UID",
    Status.NO_SUCH_SOP_CLASS: "no such SOP class",
    Status.SOP_CLASS_NOT_SUPPORTED: "SOP class not supported",
    Status.NOT_AUTHORIZED: "not authorized",
    Status.DUPLICATE_INVOCATION: "duplicate invocation",
    Status.UNRECOGNIZED_OPERATION: "unrecognized operation",
    Status.MISTYPED_ARGUMENT: "mistyped argument",
    Status.COERCION_OF_DATA_ELEMENTS: "warning: coercion of data elements",
    Status.ELEMENTS_DISCARDED: "warning: elements discarded",
    Status.DATASET_DOES_NOT_MATCH_SOP_CLASS_WARNING: "warning: data set does not match SOP class",
}
_FAMILIES = ((0xFF00, 0xA700, "out of resources"), (0xFF00, 0xA900, "data set does not match SOP class"))
_CANNOT_UNDERSTAND = (0xF000, 0xC000, "cannot understand")


def status_meaning(status: int) -> str:
    """A DIMSE status in words, as C-ECHO and C-STORE use it (PS3.7 Annex C, PS3.4 B.2.3)."""
    known = _MEANINGS.get(status)
    if known is not None:
        return known
    for mask, family, meaning in (*_FAMILIES, _CANNOT_UNDERSTAND):
        if status & mask == family:
            return meaning
    return status_class(status).value


def status_text(status: int) -> str:
    """A DIMSE status as it is usually written."""
    return f"0x{status:04X}"


def say(text: str) -> None:
    """One line of a result, on standard output."""
    print(text, flush=True)


def say_json(document: object) -> None:
    """A result for machines: one JSON document on one line."""
    print(json.dumps(document), flush=True)


def complain(text: str) -> None:
    """What went wrong, on standard error; each line begins with the program's name."""
    for line in text.splitlines() or [""]:
        print(f"scp-server: {printable(line)}", file=sys.stderr, flush=True)


def fail(text: str, code: ExitCode, *, as_json: bool) -> ExitCode:
    """Report why a command did not do its work, and give its exit code back."""
    if as_json:
        say_json({"error": text, "exit_code": int(code)})
    complain(text)
    return code
