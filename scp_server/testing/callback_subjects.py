"""What callbacks are given, made from an encoded object: for the tests of plug-ins."""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path

from scp_server.objects.header_tap import HeaderTap
from scp_server.objects.summary import summarize
from scp_server.pipeline.instances import Archive, ReceivedInstance, StoredFiles, StoredInstance
from scp_server.pipeline.subjects import AssociationFacts, Times
from scp_server.testing.encoded_object import EncodedObject


def association(
    calling_ae_title: str = "SCANNER", called_ae_title: str = "ARCHIVE", *, is_dicos: bool = False
) -> AssociationFacts:
    """An association of nobody in particular."""
    return AssociationFacts("test-1", calling_ae_title, called_ae_title, "192.0.2.7", 40_104, None, is_dicos)


def received_instance(stored: EncodedObject, facts: AssociationFacts | None = None) -> ReceivedInstance:
    """An object as a callback of the stage `received` gets it."""
    tap = HeaderTap(stored.transfer_syntax_uid)
    tap.feed(stored.dataset)
    tap.finish()
    now = time.time_ns()
    return ReceivedInstance(
        facts or association(),
        Times(now, now),
        summarize(tap.header),
        tap.header,
        stored.transfer_syntax_uid,
        len(stored.dataset),
    )


def stored_instance(
    stored: EncodedObject, folder: Path, facts: AssociationFacts | None = None, *, part_number: int = 1
) -> StoredInstance:
    """An object as a callback of the stage `stored` gets it; its file is written into `folder`."""
    summary = received_instance(stored).summary
    location = f"{stored.sop_instance_uid}.{part_number}.dcm"
    (folder / location).write_bytes(stored.part10())
    files = StoredFiles(folder)
    now = time.time_ns()
    return StoredInstance(
        association=facts or association(),
        times=Times(now, now, now),
        study_instance_uid=summary.study_instance_uid,
        series_instance_uid=summary.series_instance_uid,
        sop_instance_uid=summary.sop_instance_uid,
        sop_class_uid=summary.sop_class_uid,
        modality=summary.modality,
        transfer_syntax_uid=stored.transfer_syntax_uid,
        part_number=part_number,
        size_bytes=(folder / location).stat().st_size,
        digest=sha256(stored.dataset).hexdigest(),
        location=location,
        archive=Archive(files, files),
    )
