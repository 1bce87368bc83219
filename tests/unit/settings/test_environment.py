from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from scp_server.settings.environment import MAX_FILE_BYTES, parse_text, read_environment
from scp_server.settings.models import Settings
from scp_server.settings.schema import Kind
from scp_server.settings.show import MASK, to_mapping, to_toml


def problems(environment: dict[str, str]) -> list[str]:
    return [f"{source}: {text}" for source, _, text in read_environment(Settings, environment).problems]


def test_values_become_tables_of_their_types() -> None:
    layer = read_environment(
        Settings,
        {
            "SCP_SERVER_LISTEN__PORT": " 104 ",
            "SCP_SERVER_TIMEOUTS__IDLE_SECONDS": "1.5",
            "SCP_SERVER_ACCESS__REQUIRE_CALLED_AE_TITLE": "Yes",
            "SCP_SERVER_NEGOTIATION__TRANSFER_SYNTAXES": '["1.2.840.10008.1.2.1", "*"]',
            "SCP_SERVER_STORAGE__RESERVE_BYTES": "5",
            "SCP_SERVER_DATA_DIR": "/data",
            "UNRELATED": "x",
        },
    )
    assert layer.problems == []
    assert layer.nested() == {
        "listen": {"port": 104},
        "timeouts": {"idle_seconds": 1.5},
        "access": {"require_called_ae_title": True},
        "negotiation": {"transfer_syntaxes": ["1.2.840.10008.1.2.1", "*"]},
        "storage": {"reserve_bytes": 5},
        "data_dir": "/data",
    }


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("a, b", Kind.LIST, ["a", "b"]),
        ("", Kind.LIST, []),
        ("[broken", Kind.LIST, "[broken"),
        ("off", Kind.BOOLEAN, False),
        ("maybe", Kind.BOOLEAN, "maybe"),
        ("1e3", Kind.INTEGER, "1e3"),
        ("9" * 5_000, Kind.INTEGER, "9" * 5_000),
        ("nan", Kind.NUMBER, "nan"),
        (" text ", Kind.TEXT, " text "),
    ],
)
def test_text_becomes_its_kind_or_stays_for_the_model_to_refuse(text: str, kind: Kind, value: object) -> None:
    assert parse_text(text, kind) == value


def test_unknown_variable_and_whole_section_are_problems_with_a_hint() -> None:
    assert problems({"SCP_SERVER_LISTEN__PROT": "1"}) == [
        "SCP_SERVER_LISTEN__PROT: is no setting; did you mean SCP_SERVER_LISTEN__PORT?"
    ]
    [whole] = problems({"SCP_SERVER_LISTEN": "{}"})
    assert "whole section" in whole
    assert "SCP_SERVER_LISTEN__HOST" in whole


def test_variable_ending_in_file_reads_the_value_from_that_file(tmp_path: Path) -> None:
    file = tmp_path / "title"
    file.write_text("SECRET_TITLE\n")
    layer = read_environment(Settings, {"SCP_SERVER_LISTEN__AE_TITLE_FILE": str(file)})
    assert layer.nested() == {"listen": {"ae_title": "SECRET_TITLE"}}
    assert layer.sources == {"listen.ae_title": "environment SCP_SERVER_LISTEN__AE_TITLE_FILE"}


def test_value_and_file_of_the_same_setting_contradict(tmp_path: Path) -> None:
    file = tmp_path / "title"
    file.write_text("A")
    [problem] = problems({"SCP_SERVER_LISTEN__AE_TITLE": "B", "SCP_SERVER_LISTEN__AE_TITLE_FILE": str(file)})
    assert problem == "SCP_SERVER_LISTEN__AE_TITLE_FILE: is also given by SCP_SERVER_LISTEN__AE_TITLE"


def test_files_that_cannot_be_values_are_problems(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, words in (("missing", "No such file"), ("long", "longer than"), ("binary", "UTF-8")):
        [problem] = problems({"SCP_SERVER_LISTEN__AE_TITLE_FILE": str(tmp_path / name)})
        assert words in problem


def test_systemd_credentials_are_read_and_variables_win(tmp_path: Path) -> None:
    (tmp_path / "scp_server.log.level").write_text("debug\n")
    (tmp_path / "scp_server.listen.port").write_text("5")
    (tmp_path / "somebody.elses").write_text("x")
    layer = read_environment(
        Settings, {"CREDENTIALS_DIRECTORY": str(tmp_path), "SCP_SERVER_LISTEN__PORT": "6"}
    )
    assert layer.problems == []
    assert layer.nested() == {"log": {"level": "debug"}, "listen": {"port": 6}}
    assert layer.sources["log.level"] == "credential scp_server.log.level"


def test_unknown_credential_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "scp_server.log.levle").write_text("debug")
    assert problems({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == [
        "credential scp_server.log.levle: is no setting"
    ]
    [missing] = problems({"CREDENTIALS_DIRECTORY": str(tmp_path / "none")})
    assert "cannot be listed" in missing


def test_variables_that_kubernetes_adds_for_a_service_of_our_name_are_ignored() -> None:
    assert (
        problems(
            {
                "SCP_SERVER_SERVICE_HOST": "10.96.0.12",
                "SCP_SERVER_SERVICE_PORT": "11112",
                "SCP_SERVER_SERVICE_PORT_DICOM": "11112",
                "SCP_SERVER_PORT": "tcp://10.96.0.12:11112",
                "SCP_SERVER_PORT_11112_TCP": "tcp://10.96.0.12:11112",
                "SCP_SERVER_PORT_11112_TCP_PROTO": "tcp",
                "SCP_SERVER_PORT_11112_TCP_PORT": "11112",
                "SCP_SERVER_PORT_11112_TCP_ADDR": "10.96.0.12",
            }
        )
        == []
    )


def test_port_that_somebody_meant_is_not_taken_for_such_a_variable() -> None:
    assert len(problems({"SCP_SERVER_PORT": "11112"})) == 1


class Vault(BaseModel):
    """Something secret."""

    passcode: SecretStr = SecretStr("")


class WithSecret(BaseModel):
    vault: Vault = Vault()


def test_secret_from_a_file_is_masked_wherever_settings_are_shown(tmp_path: Path) -> None:
    (tmp_path / "passcode").write_text("hunter2\n")
    layer = read_environment(WithSecret, {"SCP_SERVER_VAULT__PASSCODE_FILE": str(tmp_path / "passcode")})
    settings = WithSecret.model_validate(layer.nested())
    assert settings.vault.passcode.get_secret_value() == "hunter2"
    assert to_mapping(settings) == {"vault": {"passcode": MASK}}
    assert "hunter2" not in to_toml(settings)
