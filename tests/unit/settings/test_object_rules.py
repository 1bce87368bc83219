"""The `[[coerce]]` and `[[require_attributes]]` tables: what they may say, and where a complaint points."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from scp_server.objects.changes import CopiedFrom, FilledIn, Removed, SetTo
from scp_server.runtime.build_rules import build_object_rules
from scp_server.settings import Settings, SettingsError, check_file, load_settings
from scp_server.settings.show import to_mapping, to_toml

COERCE = "[[coerce]]\nname = 'a'\n"
REQUIRE = "[[require_attributes]]\nname = 'a'\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "c.toml"


def test_every_key_of_a_rule_becomes_part_of_it(config: Path) -> None:
    config.write_text(
        COERCE + "sop_classes = ['medical']\nset = { PatientID = 'X', StudyDescription = '{Modality}' }\n"
        "remove = ['StudyID']\ncopy = { OtherPatientNames = 'PatientName' }\n"
        "source_of_previous_values = 'Clinic'\ndicos = true\nwarning = true\n"
        + REQUIRE
        + "modalities = ['CT']\nattributes = ['(0010,0020)', 'Modality']\nvalues = { Modality = ['CT'] }\n"
        "status = 0xA9FF\nquarantine = false\n"
    )
    settings = load_settings(config)
    assert to_mapping(settings)["coerce"][0]["copy"] == {"OtherPatientNames": "PatientName"}
    rules = build_object_rules(settings)
    (coerce,), (require,) = rules.coerce, rules.require
    assert [type(change) for change in coerce.changes.by_attribute.values()] == [
        SetTo,
        FilledIn,
        Removed,
        CopiedFrom,
    ]
    assert (coerce.name, coerce.source_of_previous_values, coerce.dicos, coerce.warning) == (
        "a",
        "Clinic",
        True,
        True,
    )
    assert coerce.filter.sop_classes == ("medical",)
    assert [key.tag for key in require.attributes] == [0x00100020, 0x00080060]
    assert require.values == {"Modality": frozenset(["CT"])}
    assert (require.status, require.quarantine, require.filter.modalities) == (0xA9FF, False, ("CT",))
    assert not build_object_rules(Settings())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (COERCE, "1: coerce.0: changes nothing: set, remove or copy must be given"),
        (
            COERCE + "[coerce.set]\nPatientID = 'X'\n\nPatientIDD = 'X'\n",
            "6: coerce.0.set.PatientIDD: PatientIDD is no attribute that can be changed: 'PatientIDD'",
        ),
        (COERCE + "set = { Rows = 1 }\n", "3: coerce.0.set.Rows: Rows must not be changed: (0028,0010)"),
        (
            COERCE + "set = { PatientID = '{Foo}' }\n",
            "3: coerce.0.set.PatientID: PatientID names an attribute",
        ),
        (COERCE + "set = { PatientID = '{}' }\n", "3: coerce.0.set.PatientID: PatientID has a template"),
        (
            COERCE + "set = { PatientID = 1979-05-27 }\n",
            "3: coerce.0.set.PatientID: PatientID is given what is",
        ),
        (COERCE + "remove = ['PixelData']\n", "3: coerce.0.remove: PixelData must not be changed"),
        (COERCE + "copy = { PatientID = 'Foo' }\n", "3: coerce.0.copy.PatientID: PatientID names"),
        (COERCE + "copy = { PatientID = 1 }\n", "3: coerce.0.copy.PatientID: must be text"),
        (
            COERCE + "set = { PatientID = 'X' }\nremove = ['PatientID']\n",
            "1: coerce.0: PatientID is changed twice",
        ),
        (
            COERCE + "remove = ['StudyID']\n" + COERCE + "remove = ['StudyID']\n",
            "5: coerce.1.name: is that of coerce.0",
        ),
        (
            COERCE + "remove = ['StudyID']\nsource_of_previous_values = 'ä'\n",
            "4: coerce.0.source_of_previous_values",
        ),
        (
            COERCE + "removed = ['StudyID']\n",
            "3: coerce.0.removed: is no setting; did you mean coerce.remove?",
        ),
        (REQUIRE, "1: require_attributes.0: requires nothing: attributes or values must be given"),
        (REQUIRE + "attributes = ['Nope']\n", "3: require_attributes.0.attributes: Nope is no attribute"),
        (
            REQUIRE + "values = { Rows = ['1'] }\n",
            "3: require_attributes.0.values.Rows: Rows has a VR whose values cannot be compared: US",
        ),
        (
            REQUIRE + "values = { Modality = [] }\n",
            "3: require_attributes.0.values.Modality: Modality allows no",
        ),
        (
            REQUIRE + "attributes = ['PatientID']\nstatus = 0\n",
            "4: require_attributes.0.status: 0x0000 does not refuse a C-STORE",
        ),
        (
            REQUIRE + "attributes = ['PatientID']\n" + REQUIRE + "attributes = ['StudyID']\n",
            "5: require_attributes.1",
        ),
    ],
)
def test_a_complaint_names_line_and_key(config: Path, text: str, complaint: str) -> None:
    config.write_text(text)
    first = str(check_file(config)[0])
    assert first.removeprefix(f"{config}:").startswith(complaint)


def test_rules_can_be_shown_and_read_again(config: Path) -> None:
    config.write_text(
        COERCE
        + "set = { PatientID = 'X', '0029,ACME CT,10:US' = [1, 2] }\n"
        + REQUIRE
        + "values = { Modality = ['CT', 'MR'] }\n"
    )
    settings = load_settings(config)
    shown = to_toml(settings)
    assert tomllib.loads(shown)["coerce"][0]["set"] == {"PatientID": "X", "0029,ACME CT,10:US": [1, 2]}
    config.write_text(shown)
    assert load_settings(config) == settings


def test_rules_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCP_SERVER_COERCE", json.dumps([{"name": "a", "set": {"PatientID": "X"}}]))
    (rule,) = load_settings().coerce
    assert rule.changes.names == ("PatientID",)
    monkeypatch.setenv("SCP_SERVER_COERCE", json.dumps([{"name": "a", "set": {"PatientIDD": "X"}}]))
    with pytest.raises(
        SettingsError, match=r"environment SCP_SERVER_COERCE: coerce\.0\.set: PatientIDD is no"
    ):
        load_settings()
