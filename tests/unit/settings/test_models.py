from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from scp_server.errors import ConfigurationError
from scp_server.protocol.limits import Limits
from scp_server.settings import Settings


def test_defaults_are_those_of_the_contract() -> None:
    settings = Settings()
    assert (settings.listen.host, settings.listen.port, settings.listen.ae_title) == (
        "127.0.0.1",
        11_112,
        "SCP_SERVER",
    )
    assert (settings.http.host, settings.http.port) == ("127.0.0.1", 8_080)
    assert (settings.data_dir, settings.drain_timeout_seconds) == (Path("scp-data"), 30.0)
    assert not settings.access.require_called_ae_title
    assert (settings.storage.duplicates, settings.storage.dicos_duplicates) == ("keep_first", "parts")
    assert settings.log.format is None


def test_the_default_limits_are_those_that_are_promised() -> None:
    limits, timeouts = Settings().limits, Settings().timeouts
    caps = (limits.max_associations, limits.max_associations_per_peer, limits.max_associations_per_address)
    assert caps == (2_000, 1_000, 1_000)
    assert (limits.max_pdu_bytes, limits.max_associate_pdu_bytes) == (131_072, 1 << 20)
    assert (limits.max_command_bytes, limits.max_empty_fragments) == (64 << 10, 1_000)
    assert (limits.header_buffer_bytes, limits.max_header_value_bytes) == (1 << 20, 64 << 10)
    assert (limits.max_sequence_depth, limits.max_inflate_ratio) == (64, 200)
    assert (timeouts.artim_seconds, timeouts.dimse_seconds, timeouts.write_seconds) == (10, 60, 30)
    assert (timeouts.idle_seconds, timeouts.dicos_idle_seconds) == (300, 0)
    assert timeouts.minimum_bytes_per_second > 0
    assert Settings().storage.durability == "full"
    assert not Settings().access.known_peers_only


def test_defaults_equal_those_of_the_protocol_core() -> None:
    settings, limits = Settings(), Limits()
    for name in ("max_pdu_bytes", "max_associate_pdu_bytes", "max_command_bytes", "max_empty_fragments"):
        assert getattr(settings.limits, name) == getattr(limits, name), name
    for name in (
        "artim_seconds",
        "response_seconds",
        "idle_seconds",
        "dicos_idle_seconds",
        "dimse_seconds",
        "minimum_bytes_per_second",
    ):
        assert getattr(settings.timeouts, name) == getattr(limits, name), name


def test_arguments_may_be_tables_as_in_the_contract() -> None:
    settings = Settings(listen={"port": 0}, data_dir="/data")  # type: ignore[arg-type]
    assert settings.listen.port == 0
    assert settings.data_dir == Path("/data")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().listen.port = 1


@pytest.mark.parametrize("title", ["A", "ABCDEFGHIJKLMNOP", "A B-C.1", "  PADDED  "])
def test_valid_ae_titles_are_taken_without_outer_spaces(title: str) -> None:
    assert Settings(listen={"ae_title": title}).listen.ae_title == title.strip()  # type: ignore[arg-type]


@pytest.mark.parametrize("title", ["", "   ", "A" * 17, "A\\B", "A\nB", "ÄRZTE", "A\x7f"])
def test_invalid_ae_titles_are_refused(title: str) -> None:
    with pytest.raises(ValidationError):
        Settings(listen={"ae_title": title})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        {"listen": {"port": "11112"}},
        {"listen": {"port": True}},
        {"listen": {"port": 65_536}},
        {"listen": {"port": -1}},
        {"listen": {"host": ""}},
        {"limits": {"max_associations": 0}},
        {"limits": {"max_pdu_bytes": 4_095}},
        {"limits": {"max_associations": 10, "max_associations_per_peer": 11}},
        {"limits": {"max_associations": 10, "max_associations_per_address": 11}},
        {"limits": {"max_associations": 10, "max_connections": 9}},
        {"limits": {"header_buffer_bytes": 4 << 20}},
        {"limits": {"process_buffer_bytes": 1 << 20}},
        {"timeouts": {"artim_seconds": 30.1}},
        {"timeouts": {"artim_seconds": 0}},
        {"timeouts": {"idle_seconds": float("inf")}},
        {"timeouts": {"idle_seconds": float("nan")}},
        {"negotiation": {"transfer_syntaxes": []}},
        {"negotiation": {"transfer_syntaxes": ["*", "*"]}},
        {"negotiation": {"transfer_syntaxes": ["ExplicitVRLittleEndian", "1.2.840.10008.1.2.1"]}},
        {"negotiation": {"transfer_syntaxes": ["CTImageStorage"]}},
        {"negotiation": {"transfer_syntaxes": "ExplicitVRLittleEndian"}},
        {"negotiation": {"application_contexts": ["hl7"]}},
        {"negotiation": {"additional_sop_classes": ["1..2"]}},
        {"storage": {"reserve_bytes": -1}},
        {"listen": {"port": 5}, "http": {"port": 5}},
        {"data_dir": "a\0b"},
        {"workers": 0},
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**arguments)


@pytest.mark.parametrize("size", [0, 4_096, 0xFFFF_FFFF])
def test_max_pdu_bytes_may_be_unlimited_or_at_least_4096(size: int) -> None:
    assert Settings(limits={"max_pdu_bytes": size}).limits.max_pdu_bytes == size  # type: ignore[arg-type]


def test_caps_that_are_not_set_follow_max_associations() -> None:
    few = Settings(limits={"max_associations": 10}).limits  # type: ignore[arg-type]
    assert (few.max_associations_per_peer, few.max_associations_per_address, few.max_connections) == (
        10,
        10,
        4_096,
    )
    many = Settings(limits={"max_associations": 5_000}).limits  # type: ignore[arg-type]
    assert (many.max_associations_per_peer, many.max_connections) == (1_000, 10_000)


def test_names_and_uids_are_the_same_to_the_rest_of_the_program() -> None:
    negotiation = Settings(
        negotiation={  # type: ignore[arg-type]
            "transfer_syntaxes": ["JPEGLosslessSV1", "*", "1.2.840.10008.1.2.1.64"],
            "additional_sop_classes": ["CTImageStorage", "1.2.3.4"],
        }
    ).negotiation
    assert negotiation.transfer_syntax_uids == ("1.2.840.10008.1.2.4.70", "*", "1.2.840.10008.1.2.1.64")
    assert negotiation.additional_sop_classes == ("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4")
    assert negotiation.application_context_names == (
        "1.2.840.10008.3.1.1.1",
        "1.2.840.10008.3.1.1.1.3",
        "1.2.840.10008.3.1.1.1.211",
        "1.2.840.10008.3.1.1.1.2",
    )


def test_environment_applies_below_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCP_SERVER_LISTEN__PORT", "104")
    monkeypatch.setenv("SCP_SERVER_LISTEN__AE_TITLE", "FROM_ENV")
    settings = Settings(listen={"port": 0})  # type: ignore[arg-type]
    assert (settings.listen.port, settings.listen.ae_title) == (0, "FROM_ENV")


def test_unknown_variable_is_an_error_for_programs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCP_SERVER_LISTEN__PROT", "104")
    with pytest.raises(ConfigurationError, match=r"SCP_SERVER_LISTEN__PROT: is no setting.*LISTEN__PORT"):
        Settings()
