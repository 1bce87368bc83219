"""A query over one header, by the rules of C-FIND."""

from __future__ import annotations

import pytest

from scp_server.errors import QueryError
from scp_server.objects.header_matching import header_matcher
from scp_server.testing.callback_subjects import received_instance
from scp_server.testing.dicos_objects import dicos_tdr
from scp_server.testing.objects import Patient, ct_image

CT = received_instance(ct_image(patient=Patient("DOE^JANE", "P-1"))).header
TDR = received_instance(dicos_tdr()).header


@pytest.mark.parametrize(
    ("keys", "matches"),
    [
        ({}, True),
        ({"PatientID": ""}, True),
        ({"PatientID": "P-1"}, True),
        ({"PatientID": "P-2"}, False),
        ({"PatientName": "doe*", "Modality": "CT"}, True),
        ({"PatientName": "DOE*", "Modality": "MR"}, False),
        ({"Modality": ["MR", "CT"]}, True),
        ({"Rows": 64}, True),
        ({"0028,0010": 65}, False),
        ({"AccessionNumber": "X"}, False),
    ],
)
def test_an_object_matches_when_every_key_does(keys: dict[str, object], matches: bool) -> None:
    assert header_matcher(keys)(CT) is matches


def test_dicos_attributes_are_keys_too() -> None:
    decision = received_instance(dicos_tdr()).summary.alarm_decision
    assert decision
    assert header_matcher({"AlarmDecision": decision})(TDR)
    assert not header_matcher({"AlarmDecision": decision})(CT)


def test_a_key_that_nobody_knows_is_refused() -> None:
    with pytest.raises(QueryError, match="PatientNam"):
        header_matcher({"PatientNam": "DOE"})
