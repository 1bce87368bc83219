"""The `[[remotes]]` tables: what they may say, and where a complaint about one points."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scp_server.settings import Settings, SettingsError, check_file, load_settings, to_mapping

ONE = "[[remotes]]\nae_title = 'PACS'\nhost = 'pacs.example'\nport = 104\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "c.toml"


def test_every_key_of_a_remote_is_read(config: Path) -> None:
    config.write_text(
        ONE + "[[remotes]]\nae_title = ' BELT '\nhost = '::1'\nport = 11112\napplication_context = 'dicos'\n"
        "max_associations = 1\nconnect_seconds = 2.5\nframing = 'glued'\n"
        "transfer_syntaxes = ['1.2.840.10008.1.2.1.64', 'ExplicitVRLittleEndian']\n"
    )
    first, second = load_settings(config).remotes
    assert (first.ae_title, first.host, first.port) == ("PACS", "pacs.example", 104)
    assert (first.application_context_name, first.max_associations) == ("1.2.840.10008.3.1.1.1", 4)
    assert (second.ae_title, second.host, second.port) == ("BELT", "::1", 11_112)
    assert second.application_context_name == "1.2.840.10008.3.1.1.1.3"
    assert (second.max_associations, second.connect_seconds) == (1, 2.5)
    assert (first.framing, second.framing) == ("standard", "glued")
    assert second.transfer_syntax_uids == ("1.2.840.10008.1.2.1.64", "1.2.840.10008.1.2.1")
    assert Settings().remotes == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ONE + ONE, "6: remotes.1.ae_title: is that of remotes.0"),
        (ONE + "prot = 1\n", "5: remotes.0.prot: is no setting; did you mean remotes.port?"),
        (ONE.replace("104", "0"), "4: remotes.0.port: must be at least 1, not 0"),
        (ONE.replace("'PACS'", "' '"), "2: remotes.0.ae_title: must not be blank"),
        (ONE.replace("pacs.example", "a b"), "3: remotes.0.host: must be a host name or an address"),
        (ONE.replace("port = 104\n", ""), "1: remotes.0.port: must be given"),
        (
            ONE + "application_context = 'dicomm'\n",
            "5: remotes.0.application_context: 'dicomm' is neither dicom nor dicos nor a UID",
        ),
        (
            ONE + "transfer_syntaxes = ['Explicit']\n",
            "5: remotes.0.transfer_syntaxes: 'Explicit' is no UID and no keyword of a Transfer Syntax such "
            "as ExplicitVRLittleEndian",
        ),
        (
            ONE + "transfer_syntaxes = ['1.2.840.10008.1.2', 'ImplicitVRLittleEndian']\n",
            "5: remotes.0.transfer_syntaxes: names 1.2.840.10008.1.2 twice",
        ),
        (ONE + "framing = 'gluedd'\n", "5: remotes.0.framing: must be 'standard' or 'glued', not 'gluedd'"),
        (ONE + "max_associations = 0\n", "5: remotes.0.max_associations: must be at least 1, not 0"),
        (ONE + "connect_seconds = 0.0\n", "5: remotes.0.connect_seconds: must be greater than 0, not 0.0"),
    ],
)
def test_a_complaint_names_line_and_key(config: Path, text: str, complaint: str) -> None:
    config.write_text(text)
    (found,) = check_file(config)
    assert str(found).removeprefix(f"{config}:") == complaint


def test_remotes_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCP_SERVER_REMOTES", json.dumps([{"ae_title": "PACS", "host": "h", "port": 104}] * 2))
    with pytest.raises(SettingsError, match=r"environment SCP_SERVER_REMOTES: remotes\.1\.ae_title"):
        load_settings()


def test_the_effective_remotes_are_shown(config: Path) -> None:
    config.write_text(ONE)
    assert to_mapping(load_settings(config))["remotes"] == [
        {
            "ae_title": "PACS",
            "host": "pacs.example",
            "port": 104,
            "application_context": "dicom",
            "max_associations": 4,
            "connect_seconds": 10.0,
            "duplicates": "failure",
            "framing": "standard",
            "transfer_syntaxes": [],
        }
    ]


def test_no_more_associations_are_counted_on_than_remotes_take(config: Path) -> None:
    config.write_text(ONE + ONE.replace("PACS", "OTHER") + "max_associations = 100\n")
    assert Settings().most_outbound_associations == 0
    assert load_settings(config).most_outbound_associations == 64
    config.write_text(ONE)
    assert load_settings(config).most_outbound_associations == 4
