"""What `scp-server demo` finds again: it asks its server over the network, as a workstation does."""

from __future__ import annotations

from dataclasses import dataclass

from scp_server.objects.match import Match


@dataclass(frozen=True, slots=True)
class FoundInstance:
    """A match at the level of images (PS3.4 C.6.2.1); what the server has no value for is empty."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    patient_name: str
    study_date: str
    study_description: str
    study_id: str
    modality: str
    instance_number: str
    dicos_version: str
    alarm_decision: str
    number_of_alarm_objects: str

    @classmethod
    def of(cls, match: Match) -> FoundInstance:
        """Read a match. Raises UnreadableDataset."""
        found = match.attributes()
        texts = {name: found.text(tag) or "" for name, tag in _TEXTS.items()}
        alarms = "".join(map(str, found.value(_NUMBER_OF_ALARM_OBJECTS)))
        return cls(**texts, number_of_alarm_objects=alarms)


_TEXTS = {
    "sop_instance_uid": 0x00080018,
    "series_instance_uid": 0x0020000E,
    "study_instance_uid": 0x0020000D,
    "patient_id": 0x00100020,
    "patient_name": 0x00100010,
    "study_date": 0x00080020,
    "study_description": 0x00081030,
    "study_id": 0x00200010,
    "modality": 0x00080060,
    "instance_number": 0x00200013,
    "dicos_version": 0x4010103A,
    "alarm_decision": 0x40101031,
}
_NUMBER_OF_ALARM_OBJECTS = 0x40101034


async def find_instances(host: str, port: int, called_ae_title: str) -> list[FoundInstance]:
    """Everything that the server has, by one relational query (PS3.4 C.4.1.2.2). Raises AssociationError,
    FindFailed."""
    from scp_server.net.requestor import Requestor
    from scp_server.objects.query_model import QueryOptions

    query = dict.fromkeys((f"{tag:08X}" for tag in (*_TEXTS.values(), _NUMBER_OF_ALARM_OBJECTS)), "")
    async with Requestor(
        host,
        port,
        called_ae_title=called_ae_title,
        calling_ae_title="DEMO_STATION",
        query_options=QueryOptions(relational=True),
    ) as peer:
        return [FoundInstance.of(match) async for match in peer.find(query, level="IMAGE")]
