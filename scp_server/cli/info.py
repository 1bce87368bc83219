"""`scp-server info`: one object as a readable page, or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from scp_server.cli import info_dicos, info_medical
from scp_server.cli.info_facts import Block, Description, Fact, Part
from scp_server.cli.output import ExitCode, fail, say_json
from scp_server.cli.status_page import size
from scp_server.errors import CannotView
from scp_server.views.fields import integer, text, uid
from scp_server.views.instance import InstanceView
from scp_server.views.opening import open_view, view_class
from scp_server.views.stored_file import StoredFile

_COLUMNS: Final = 160
"""Width where nobody looks at a screen."""


def run_info(paths: Sequence[Path], *, as_json: bool) -> ExitCode:
    """Print what the files hold: one object, or all parts of one."""
    try:
        description = describe([StoredFile(path) for path in paths])
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}", ExitCode.USAGE, as_json=as_json)
    except CannotView as error:
        return fail(str(error), ExitCode.FAILED, as_json=as_json)
    if as_json:
        say_json(description.as_json())
    else:
        from rich.console import Console

        from scp_server.cli.info_page import page

        console = Console(width=None if sys.stdout.isatty() else _COLUMNS)
        console.print(page(description, console.width))
    return ExitCode.FAILED if description.problems else ExitCode.OK


def describe(files: Sequence[StoredFile]) -> Description:
    """All that is told of an object in these files. Raises CannotView."""
    first = files[0]
    problems: list[str] = []
    parts: list[Part] = [_file(files)]
    if view_class(first) is not None or len(files) > 1:
        view = open_view(files)
        title = info_dicos.kind(view)
        names = [*info_dicos.identity(view)]
        parts += _around(names, info_dicos.content(view, problems))
    elif first.header.is_dicos:
        title = f"DICOS {text(first.header, 0x00080060)}"
        parts += info_dicos.identity(InstanceView(first))
    else:
        title = info_medical.kind(first.header)
        names = [*info_medical.identity(first.header)]
        parts += _around(names, info_medical.content(first.header))
    return Description(title, tuple(parts), tuple(problems))


def _around(names: Sequence[Part], content: Iterable[Part]) -> list[Part]:
    """Who and which scan it is come first, then what it says, then series and machine."""
    return [*names[:2], *content, *names[2:]]


def _file(files: Sequence[StoredFile]) -> Part:
    from pydicom.uid import UID

    first = files[0]
    total = sum(file.size_bytes for file in files)
    sop_class = uid(first.header, 0x00080016) or first.file_meta.sop_class_uid
    syntax = first.transfer_syntax.uid
    return Block(
        "file",
        (
            Fact("path", [str(file.path) for file in files], "\n".join(str(file.path) for file in files)),
            Fact("bytes", total, size(total)),
            Fact("sop class", UID(sop_class).name),
            Fact("sop class uid", sop_class),
            Fact("sop instance uid", uid(first.header, 0x00080018)),
            Fact("instance number", integer(first.header, 0x00200013)),
            Fact("transfer syntax", _syntax_name(syntax)),
            Fact("transfer syntax uid", syntax),
            Fact("dicos version", text(first.header, 0x4010103A)),
            Fact("character set", text(first.header, 0x00080005)),
            Fact("received from", first.file_meta.source_ae_title or first.file_meta.sending_ae_title),
        ),
    )


def _syntax_name(syntax: str) -> str:
    from pydicom.uid import UID

    from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN_64

    if syntax == EXPLICIT_VR_LITTLE_ENDIAN_64:
        return "Explicit VR Little Endian with 64-bit lengths (DICOS)"
    return str(UID(syntax).name)
