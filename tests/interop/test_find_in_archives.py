"""`scp-server find` and `worklist` in real archives: DCMTK's dcmqrscp and wlmscpfs, and Orthanc."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from scp_server import Requestor
from tests.interop.archives import (
    Archive,
    RequirePeer,
    ask,
    dcmqrscp,
    free_port,
    objects,
    orthanc,
    running,
)

pytestmark = pytest.mark.interop


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
