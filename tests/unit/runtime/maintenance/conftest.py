"""An archive with a bit of everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from scp_server.index.base import Index
from scp_server.runtime.build import build_storage_service_config
from scp_server.runtime.maintenance.adoption import Adopter
from scp_server.runtime.maintenance.deletion import Deletions
from scp_server.runtime.maintenance.findings import Finding
from scp_server.storage.base import Storage
from scp_server.testing.archive import Archive
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_dx, dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import JAPANESE, UTF_8, Patient, ct_image, encapsulated_pdf, structured_report


def varied_objects() -> list[EncodedObject]:
    """Objects of several studies and patients, in several syntaxes, with scattered parts."""
    first, second = two_section_ct()
    study = "1.2.3.4"
    implicit = TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN
    return [
        ct_image(seed=1, study_instance_uid=study, patient=UTF_8),
        first,
        # Another patient in the same study: the first one stays.
        ct_image(seed=2, study_instance_uid=study, patient=Patient("Other^One", "OTHER")),
        ct_image(seed=3, transfer_syntax=TransferSyntax.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, patient=JAPANESE),
        ct_image(seed=4, transfer_syntax=implicit, private=True, sequences=True),
        second,
        ct_image(seed=5, transfer_syntax=TransferSyntax.RLE_LOSSLESS),
        structured_report(),
        encapsulated_pdf(document_bytes=300_000),
        dicos_dx(),
        dicos_tdr(),
    ]


def adopter_of(archive: Archive, storage: Storage, index: Index) -> Adopter:
    """What adopts in an archive that is open."""
    limits = build_storage_service_config(archive.settings).tap_limits
    return Adopter(storage, index, limits, Deletions(archive.data_dir, storage, index))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An empty archive."""
    return Archive.at(tmp_path / "data")


class Stages:
    """A `Progress`: the stages in order, each with what it advanced by."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, list[int]]] = []

    def begin(self, stage: str, total: int | None) -> None:
        """See `Progress.begin`."""
        self.stages.append((stage, []))

    def advance(self, count: int = 1) -> None:
        """See `Progress.advance`."""
        self.stages[-1][1].append(count)

    def of(self, stage: str) -> list[int]:
        """What the stages of this name advanced by, step by step."""
        return [count for name, counts in self.stages if name == stage for count in counts]


class Found(list[Finding]):
    """Findings as they come."""

    def by_kind(self) -> dict[str, list[str]]:
        """Their locations."""
        kinds: dict[str, list[str]] = {}
        for finding in self:
            kinds.setdefault(finding.kind.value, []).append(finding.location)
        return kinds


@pytest.fixture
def found() -> Found:
    """Takes findings."""
    return Found()
