"""`scp-server find` and `worklist` in real archives: DCMTK's dcmqrscp and wlmscpfs, and Orthanc."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from scp_server import Requestor
from scp_server.testing.objects import LATIN, Patient, ct_image

pytestmark = pytest.mark.interop

RequirePeer = Callable[[str, object], None]
START_SECONDS = 20
JANE = Patient("Doe^Jane", "PAT-1")
STUDIES = [("2.25.101", JANE, ("2.25.111", "2.25.112")), ("2.25.102", JANE, ("2.25.113",))]
FRENCH = ("2.25.103", LATIN, ("2.25.114",))
DCMQRSCP = """
NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
ARCHIVE {folder} RW (200, 1024mb) ANY
AETable END
"""


def objects() -> list[Any]:
    """Two images in each series."""
    found = []
    for study, patient, series_uids in [*STUDIES, FRENCH]:
        for series in series_uids:
            for image in (1, 2):
                found.append(
                    ct_image(
                        rows=2,
                        columns=2,
                        patient=patient,
                        study_instance_uid=study,
                        series_instance_uid=series,
                        sop_instance_uid=f"{series}.{image}",
                    )
                )
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(*command: str | Path, port: int) -> AsyncIterator[None]:
    """A peer's daemon, from the moment that it accepts connections; terminated at the end."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                assert process.returncode is None, f"{command} ended with {process.returncode}"
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                await writer.wait_closed()
                break
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(START_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@dataclass(frozen=True)
class Archive:
    name: str
    ae_title: str
    port: int


@dataclass(frozen=True)
class Done:
    """How a command of ours ended."""

    code: int | None
    output: str
    errors: str

    @property
    def matches(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.output)
        return found

    def values(self, tag: str) -> list[Any]:
        """The first value of an element in each match."""
        return sorted(match[tag]["Value"][0] for match in self.matches)


async def ask(archive: Archive, *arguments: str, command: str = "find") -> Done:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "scp_server",
        command,
        "--port",
        str(archive.port),
        "--ae-title",
        archive.ae_title,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    return Done(process.returncode, output.decode(), errors.decode())


@asynccontextmanager
async def dcmqrscp(require: RequirePeer, folder: Path) -> AsyncIterator[Archive]:
    require("DCMTK's dcmqrscp", shutil.which("dcmqrscp"))
    port = free_port()
    (folder / "database").mkdir()
    configuration = folder / "dcmqrscp.cfg"
    configuration.write_text(DCMQRSCP.format(port=port, folder=folder / "database"))
    async with running("dcmqrscp", "-c", configuration, port=port):
        yield Archive("dcmqrscp", "ARCHIVE", port)


@asynccontextmanager
async def orthanc(require: RequirePeer, folder: Path) -> AsyncIterator[Archive]:
    program = shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin")
    require("Orthanc", program)
    assert program is not None
    port = free_port()
    configuration = folder / "orthanc.json"
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": free_port(),
        "RemoteAccessAllowed": False,
        "DicomPort": port,
        "DicomAet": "ORTHANC",
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "Plugins": [],
    }
    configuration.write_text(json.dumps(settings))
    async with running(program, configuration, port=port):
        yield Archive("Orthanc", "ORTHANC", port)


@pytest.fixture(params=[dcmqrscp, orthanc], ids=["dcmqrscp", "Orthanc"])
async def archive(
    request: pytest.FixtureRequest,
    require_peer: RequirePeer,
    tmp_path: Path,
    write_files: Callable[..., list[Path]],
) -> AsyncIterator[Archive]:
    """An archive that has three studies, sent by our own `store`."""
    async with request.param(require_peer, tmp_path) as one:
        paths = write_files(*objects())
        done = await ask(one, "--input", str(paths[0].parent), command="store")
        assert done.code == 0, done.output
        yield one


async def test_studies_are_found_by_name_with_the_columns_that_were_asked_for(archive: Archive) -> None:
    query = {
        "PatientName": "DOE*" if archive.name == "Orthanc" else "Doe*",
        "StudyInstanceUID": "",
        "PatientID": "",
    }
    done = await ask(archive, "--query", json.dumps(query))
    assert done.code == 0, done.errors
    head, *rows = done.output.splitlines()
    assert head == "PatientName\tStudyInstanceUID\tPatientID"
    assert sorted(rows) == ["Doe^Jane\t2.25.101\tPAT-1", "Doe^Jane\t2.25.102\tPAT-1"]
    assert done.errors.endswith("2 matches\n")


async def test_every_level_below_its_unique_keys(archive: Archive) -> None:
    study = {"StudyInstanceUID": "2.25.101"}
    done = await ask(archive, "--json", "--level", "SERIES", "--query", json.dumps(study))
    assert done.code == 0, done.errors
    assert done.values("0020000E") == ["2.25.111", "2.25.112"]
    assert done.values("00080060") == ["CT", "CT"]
    series = {**study, "SeriesInstanceUID": "2.25.112"}
    done = await ask(archive, "--json", "--level", "IMAGE", "--query", json.dumps(series))
    assert done.values("00080018") == ["2.25.112.1", "2.25.112.2"]


async def test_patients_in_the_patient_root(archive: Archive) -> None:
    query = {"PatientID": "PAT-*", "PatientName": ""}
    done = await ask(
        archive, "--json", "--model", "patient", "--level", "PATIENT", "--query", json.dumps(query)
    )
    assert done.code == 0, done.errors
    assert done.values("00100020") == ["PAT-1", "PAT-FR"]
    (french,) = [match for match in done.matches if match["00100020"]["Value"] == ["PAT-FR"]]
    assert french["00100010"]["Value"] == [{"Alphabetic": "Buc^Jérôme"}]


async def test_lists_of_uids_ranges_and_nothing(archive: Archive) -> None:
    query = {"StudyInstanceUID": ["2.25.101", "2.25.103"], "StudyDate": "20261101-20261130"}
    done = await ask(archive, "--json", "--query", json.dumps(query))
    assert done.values("0020000D") == ["2.25.101", "2.25.103"]
    done = await ask(archive, "--json", "--query", '{"StudyDate": "-19991231", "StudyInstanceUID": ""}')
    assert (done.code, done.matches) == (0, [])


async def test_a_limit_cancels_and_the_archive_goes_on(archive: Archive) -> None:
    done = await ask(archive, "--json", "--limit", "1", "--query", '{"StudyInstanceUID": ""}')
    assert done.code == 0, done.errors
    assert len(done.matches) == 1
    async with Requestor("127.0.0.1", archive.port, called_ae_title=archive.ae_title) as peer:
        async for _ in peer.find({"StudyInstanceUID": ""}):
            break
        assert await peer.echo() == 0x0000
        assert len([match async for match in peer.find({"StudyInstanceUID": ""})]) == 3


@pytest.mark.parametrize("archive", [dcmqrscp], ids=["dcmqrscp"], indirect=True)
async def test_a_failure_of_the_archive_is_exit_1(archive: Archive) -> None:
    done = await ask(archive, "--level", "SERIES", "--query", '{"Modality": "CT"}')
    assert done.code == 1
    assert "C-FIND ended with status 0xC000" in done.errors


@pytest.mark.parametrize("archive", [orthanc], ids=["Orthanc"], indirect=True)
async def test_text_beyond_ascii_finds(archive: Archive) -> None:
    done = await ask(archive, "--json", "--query", '{"PatientName": "*Jérôme", "StudyInstanceUID": ""}')
    assert done.values("0020000D") == ["2.25.103"]


def _worklist_entry(number: int, modality: str) -> Dataset:
    step = Dataset()
    step.Modality = modality
    step.ScheduledStationAETitle = f"{modality}{number}"
    step.ScheduledProcedureStepStartDate = f"2026010{number}"
    step.ScheduledProcedureStepStartTime = "0830"
    step.ScheduledPerformingPhysicianName = "House^Gregory"
    step.ScheduledProcedureStepDescription = "Head"
    step.ScheduledProcedureStepID = f"STEP-{number}"
    entry = Dataset()
    entry.AccessionNumber = f"ACC-{number}"
    entry.PatientName, entry.PatientID = "Doe^Jane", f"PAT-{number}"
    entry.PatientBirthDate, entry.PatientSex = "19700102", "F"
    entry.StudyInstanceUID = f"2.25.20{number}"
    entry.RequestedProcedureID = f"PROC-{number}"
    entry.RequestedProcedureDescription = "CT of the head"
    entry.ScheduledProcedureStepSequence = [step]
    return entry


@pytest.fixture
async def wlmscpfs(require_peer: RequirePeer, tmp_path: Path) -> AsyncIterator[Archive]:
    """DCMTK's worklist server with three entries."""
    require_peer("DCMTK's wlmscpfs", shutil.which("wlmscpfs"))
    folder = tmp_path / "worklists" / "WORKLIST"
    folder.mkdir(parents=True)
    (folder / "lockfile").touch()
    for number, modality in enumerate(["CT", "CT", "MR"], start=1):
        entry = _worklist_entry(number, modality)
        entry.file_meta = FileMetaDataset()
        entry.file_meta.MediaStorageSOPClassUID = UID("1.2.276.0.7230010.3.1.0.1")
        entry.file_meta.MediaStorageSOPInstanceUID = UID(f"2.25.30{number}")
        entry.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        entry.save_as(folder / f"{number}.wl", enforce_file_format=True)
    port = free_port()
    async with running("wlmscpfs", "-s", "-dfp", folder.parent, str(port), port=port):
        yield Archive("wlmscpfs", "WORKLIST", port)


async def test_a_worklist_is_asked_for_by_the_scheduled_step(wlmscpfs: Archive) -> None:
    query = {
        "PatientID": "",
        "ScheduledProcedureStepSequence": {"Modality": "CT", "ScheduledStationAETitle": ""},
    }
    done = await ask(wlmscpfs, "--query", json.dumps(query), command="worklist")
    assert done.code == 0, done.errors
    assert sorted(done.output.splitlines()[1:]) == ["PAT-1\tCT\tCT1", "PAT-2\tCT\tCT2"]


async def test_the_whole_worklist_with_its_usual_columns(wlmscpfs: Archive) -> None:
    done = await ask(wlmscpfs, "--json", command="worklist")
    assert done.code == 0, done.errors
    assert done.values("00100020") == ["PAT-1", "PAT-2", "PAT-3"]
    steps = [match["00400100"]["Value"][0] for match in done.matches]
    assert sorted(step["00400009"]["Value"][0] for step in steps) == ["STEP-1", "STEP-2", "STEP-3"]
    assert (await ask(wlmscpfs, "--json", "--limit", "2", command="worklist")).code == 0
