"""`scp-server demo`: a server of its own, fed over the network, asked what it has, and its pictures shown."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scp_server.cli.demo_objects import medical_objects, security_objects
from scp_server.cli.output import ExitCode, complain, say, say_json
from scp_server.cli.pictures import Picture, side_by_side
from scp_server.errors import ConfigurationError
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.summary import InstanceSummary, summarize
from scp_server.observability.logs import configure_logging
from scp_server.observability.text import printable
from scp_server.settings.names import APPLICATION_CONTEXTS
from scp_server.testing.encoded_object import EncodedObject

if TYPE_CHECKING:
    from scp_server.index.base import PartRecord
    from scp_server.runtime.server import Server
    from scp_server.settings import Settings

SHOWN_COLUMNS = 64
"""Most characters that a picture is wide on a terminal."""
SHEET_COLUMNS = 4
"""Frames of a volume that stand beside each other in its picture."""
_BYTES_PER_PIXEL = 2
_SOP_INSTANCE_UID = 0x00080018
_DICOM, _DICOS = APPLICATION_CONTEXTS["dicom"][0], APPLICATION_CONTEXTS["dicos"][0]


@dataclass(frozen=True, slots=True)
class FoundPart:
    """A data set as the index has it, read again from the storage; `intact` when it is one that was sent."""

    record: PartRecord
    summary: InstanceSummary
    dataset: bytes = field(repr=False)
    path: Path
    intact: bool

    def picture(self) -> Picture | None:
        """The pixels, a volume's frames beside each other; None where there are none."""
        rows, columns, frames = self.summary.rows, self.summary.columns, self.summary.number_of_frames or 1
        if not self.intact or not rows or not columns:
            return None
        size = rows * columns * _BYTES_PER_PIXEL
        pixels = self.dataset[-size * frames :]
        whole = Picture.of_words(pixels, columns, rows * frames)
        cut = [whole.grey[at : at + rows * columns] for at in range(0, len(whole.grey), rows * columns)]
        each = [Picture(columns, rows, grey) for grey in cut]
        return side_by_side(each, min(frames, SHEET_COLUMNS))


@dataclass(slots=True)
class Findings:
    """What was sent with which status, what was found of it, and the pictures that were made."""

    sent: list[tuple[EncodedObject, int]] = field(default_factory=list)
    parts: list[FoundPart] = field(default_factory=list)
    pictures: list[tuple[FoundPart, Path, Picture]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Everything was answered 0x0000 and is found again, byte for byte."""
        stored = all(status == 0 for _, status in self.sent)
        return stored and len(self.parts) == len(self.sent) and all(part.intact for part in self.parts)


def run_demo(*, once: bool, pictures: Path | None, as_json: bool) -> ExitCode:
    """Serve, send, find, show; then end, or stay up until Ctrl-C. The folder is removed in any case.

    Raises ConfigurationError, StorageError, IndexFailure or AssociationError where the server cannot run.
    """
    from scp_server.runtime.loop import loop_factory

    configure_logging(None, "warning")
    with tempfile.TemporaryDirectory(prefix="scp-server-demo-") as name:
        folder = Path(name)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_demo(folder, pictures or folder / "pictures", once=once, as_json=as_json))


async def _demo(folder: Path, pictures: Path, *, once: bool, as_json: bool) -> ExitCode:
    from scp_server.runtime.server import Server

    async with _stop_signal() as stopped, Server(_settings(folder)) as server:
        working = asyncio.create_task(_work(server, pictures), name="demo")
        stopping = asyncio.create_task(stopped.wait(), name="demo stop")
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                complain("interrupted")
                return ExitCode.FAILED
            findings = working.result()
            _report(server, findings, as_json=as_json)
            if once or not findings.complete:
                return ExitCode.OK if findings.complete else ExitCode.FAILED
            if not as_json:
                _say_what_next(server)
                configure_logging(None, "info")
            await stopping
            return ExitCode.OK
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.wait({working, stopping})


@contextlib.asynccontextmanager
async def _stop_signal() -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stopped.set)
    try:
        yield stopped
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _settings(folder: Path) -> Settings:
    from scp_server.settings import Settings
    from scp_server.settings.callbacks import CallbacksSettings
    from scp_server.settings.limits import LimitsSettings
    from scp_server.settings.models import HTTPSettings, ListenSettings

    return Settings(
        listen=ListenSettings(host="127.0.0.1", port=0),
        http=HTTPSettings(host="127.0.0.1", port=0),
        data_dir=folder / "data",
        drain_timeout_seconds=5,
        # So few that any machine's limit of open files is enough.
        limits=LimitsSettings(max_associations=64, max_connections=128),
        # The samples are nothing that installed plug-ins should hear of.
        callbacks=CallbacksSettings(entry_points=False),
    )


async def _work(server: Server, pictures: Path) -> Findings:
    findings = Findings()
    for application_context, objects in ((_DICOM, medical_objects()), (_DICOS, security_objects())):
        findings.sent += await _send(server, application_context, objects)
    findings.parts = await _find(server, [sent for sent, _ in findings.sent])
    findings.pictures = await asyncio.to_thread(_draw, findings.parts, pictures)
    return findings


def _draw(parts: Sequence[FoundPart], folder: Path) -> list[tuple[FoundPart, Path, Picture]]:
    """Write a PNG file for each image. Raises ConfigurationError where that is impossible."""
    drawn = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, part in enumerate(parts, 1):
            picture = part.picture()
            if picture is not None:
                modality = "".join(filter(str.isalnum, part.summary.modality or "image")).lower()
                path = folder / f"{number:02d}-{modality}.png"
                path.write_bytes(picture.png())
                drawn.append((part, path, picture))
    except OSError as error:
        raise ConfigurationError(f"--pictures: cannot write to {folder}: {error.strerror}") from error
    return drawn


async def _send(
    server: Server, application_context: str, objects: Sequence[EncodedObject]
) -> list[tuple[EncodedObject, int]]:
    """C-STORE over the network, as a scanner does; each object with its status."""
    from scp_server.net.requestor import Requestor

    contexts = dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in objects)
    async with Requestor(
        *server.address,
        called_ae_title=server.settings.listen.ae_title,
        calling_ae_title="DEMO_SCANNER",
        contexts=[(sop_class, (syntax,)) for sop_class, syntax in contexts],
        application_context_name=application_context,
    ) as association:
        answers = []
        for one in objects:
            answer = await association.store(
                one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, _whole(one)
            )
            answers.append((one, answer.status))
        return answers


async def _whole(one: EncodedObject) -> AsyncIterator[bytes]:
    yield one.dataset


async def _ask(server: Server) -> set[str]:
    """C-FIND over the network, as a workstation does: every SOP Instance UID that there is."""
    from scp_server.net.requestor import Requestor
    from scp_server.objects.query_model import QueryOptions

    options = QueryOptions(relational=True)
    async with Requestor(
        *server.address, calling_ae_title="DEMO_VIEWER", query_options=options
    ) as association:
        matches = association.find({"SOPInstanceUID": ""}, level="IMAGE")
        return {match.attributes().text(_SOP_INSTANCE_UID) or "" async for match in matches}


async def _find(server: Server, sent: Sequence[EncodedObject]) -> list[FoundPart]:
    """What a workstation finds of the objects, in the order of sending, and what the storage gives back."""
    datasets = {one.dataset for one in sent}
    answered = await _ask(server)
    found = []
    for uid in dict.fromkeys(one.sop_instance_uid for one in sent):
        if uid not in answered:
            continue
        for record in await server.index.parts(uid):
            packed = await server.index.header(record.location)
            if packed is None:
                continue
            pieces = server.storage.read(record.location, record.dataset_offset_bytes)
            dataset = b"".join([piece async for piece in pieces])
            summary = summarize(RawHeader.unpack(packed))
            path = server.settings.data_dir / record.location
            found.append(FoundPart(record, summary, dataset, path, dataset in datasets))
    return found


def _report(server: Server, findings: Findings, *, as_json: bool) -> None:
    if as_json:
        say_json(_document(server, findings))
        return
    host, port = server.address
    say(f"Sent {len(findings.sent)} objects to {host} port {port}; asked by C-FIND, it has:\n")
    for line in _table(findings.parts):
        say(line)
    for part, path, picture in _shown(findings):
        say(f"\n{part.summary.modality}, {path}")
        if sys.stdout.isatty():
            small = picture.shrunk(min(SHOWN_COLUMNS, shutil.get_terminal_size().columns))
            for line in small.half_blocks() if _has_colours() else small.characters():
                say(line)
    missing = len(findings.sent) - sum(part.intact for part in findings.parts)
    say("")
    say(f"{missing} objects are missing" if missing else "Everything that was sent is there, byte for byte.")


def _table(parts: Sequence[FoundPart]) -> Iterator[str]:
    """Patient or object of inspection > study or scan > series > instance and its parts."""
    before: tuple[str, str, str, str] = ("", "", "", "")
    for part in parts:
        summary, record = part.summary, part.record
        dicos = summary.dicos_version is not None
        here = (
            summary.patient_id or "",
            record.study_instance_uid,
            record.series_instance_uid,
            record.sop_instance_uid,
        )
        level = next((number for number in range(4) if here[number] != before[number]), 4)
        before = here
        if level <= 0:
            name = f" {summary.patient_name}" if summary.patient_name else ""
            yield f"{'Object of inspection' if dicos else 'Patient'} {printable(here[0] + name)}"
        if level <= 1:
            about = summary.study_description or summary.study_id or ""
            yield f"  {'Scan' if dicos else 'Study'} {summary.study_date or ''} {printable(about)}"
        if level <= 2:
            yield f"    Series {summary.modality or ''}"
        if level <= 3:
            yield f"      Instance {summary.instance_number or ''}{_meaning(summary)}"
        size = f"{summary.columns} x {summary.rows}" if summary.rows else "no image"
        frames = f" x {summary.number_of_frames}" if summary.number_of_frames else ""
        state = "as sent" if part.intact else "NOT AS SENT"
        yield f"        part {record.part_number}: {size}{frames}, {record.size_bytes} bytes, {state}"


def _meaning(summary: InstanceSummary) -> str:
    """What a threat detection report says."""
    if summary.alarm_decision is None:
        return ""
    return f": {summary.alarm_decision}, {summary.number_of_alarm_objects} threats"


def _shown(findings: Findings) -> list[tuple[FoundPart, Path, Picture]]:
    """One picture of each series: the one in its middle."""
    series: dict[str, list[tuple[FoundPart, Path, Picture]]] = {}
    for shown in findings.pictures:
        series.setdefault(shown[0].record.series_instance_uid, []).append(shown)
    return [pictures[len(pictures) // 2] for pictures in series.values()]


def _has_colours() -> bool:
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return encoding == "utf8" and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def _say_what_next(server: Server) -> None:
    (host, port), (http_host, http_port) = server.address, server.http_address
    say(f"\nThe server stays up. Send it something: scp-server store --port {port} --input FILE_OR_FOLDER")
    say(f"DICOM: {host} port {port}, AE title {server.settings.listen.ae_title}")
    say(f"Ready?  http://{http_host}:{http_port}/readyz")
    say(f"Files:  {server.settings.data_dir / 'objects'}")
    say("Ctrl-C ends it and removes its folder; --pictures DIR keeps the pictures.")


def _document(server: Server, findings: Findings) -> dict[str, Any]:
    pictures = {part.path: str(path) for part, path, _ in findings.pictures}
    return {
        "dicom": {"host": server.address[0], "port": server.address[1]},
        "http": {"host": server.http_address[0], "port": server.http_address[1]},
        "sent": len(findings.sent),
        "complete": findings.complete,
        "found": [
            {
                "patient_id": part.summary.patient_id,
                "study_instance_uid": part.record.study_instance_uid,
                "series_instance_uid": part.record.series_instance_uid,
                "sop_instance_uid": part.record.sop_instance_uid,
                "sop_class_uid": part.record.sop_class_uid,
                "modality": part.summary.modality,
                "alarm_decision": part.summary.alarm_decision,
                "part": part.record.part_number,
                "bytes": part.record.size_bytes,
                "as_sent": part.intact,
                "file": str(part.path),
                "picture": pictures.get(part.path),
            }
            for part in findings.parts
        ],
    }
