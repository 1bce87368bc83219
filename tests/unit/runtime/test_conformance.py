"""The conformance statement follows from the settings and the server's own tables, and so does its page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scp_server.cli.main import app
from scp_server.net.access import SERVICE_SOP_CLASSES
from scp_server.runtime import conformance_page
from scp_server.runtime.build import build_policy
from scp_server.runtime.conformance import FIND_STATUSES, statement
from scp_server.runtime.conformance_page import page
from scp_server.services.query_retrieve.attributes import BELOW, COLUMNS, COUNTS
from scp_server.services.query_retrieve.models import FIND_MODELS
from scp_server.settings import Settings

MakeSettings = Callable[..., Settings]
RUNNER = CliRunner()
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SCP_SERVER_"):
            monkeypatch.delenv(name)


def test_the_page_in_docs_is_that_of_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    conformance_page.main(tmp_path)
    written = (tmp_path / "docs/conformance.md").read_text(encoding="utf-8")
    assert written == (ROOT / "docs/conformance.md").read_text(encoding="utf-8")


def test_every_service_that_is_negotiated_is_in_it_and_no_other(make_settings: MakeSettings) -> None:
    settings = make_settings()
    said, policy = statement(settings), build_policy(settings)
    assert {one["uid"] for one in said["acceptor"]} == policy.service_sop_classes
    assert {one["uid"] for one in said["storage"]["sop_classes"]} == policy.storage_sop_classes
    assert {one["uid"] for one in said["application_contexts"]} == policy.application_context_names
    for one in said["acceptor"]:
        offered = policy.extended_negotiations.get(one["uid"], b"")
        assert bytes(one["extended_negotiation"]) == offered
    known = frozenset[str]().union(*SERVICE_SOP_CLASSES.values())
    for uid in known:
        is_said = any(uid in text for text in said["not_supported"])
        assert is_said is (uid not in policy.service_sop_classes), uid


def test_every_model_and_key_of_queries_is_in_it(make_settings: MakeSettings) -> None:
    query = statement(make_settings())["query"]
    assert {model["sop_class_uid"] for model in query["models"]} == set(FIND_MODELS)
    top = {int(key["tag"], 16) for key in query["keys"] if "in_sequence" not in key}
    assert top == {*COLUMNS, *BELOW, *COUNTS, 0x00080054, 0x00080056}
    assert [status["status"] for status in query["statuses"]] == [f"0x{s:04X}" for s in FIND_STATUSES]


@pytest.mark.parametrize(
    ("sections", "path", "value"),
    [
        ({"listen": {"ae_title": "ARCHIVE"}}, ("ae_title",), "ARCHIVE"),
        ({"query": {"relational": "never"}}, ("query", "relational"), "never"),
        ({"query": {"relational": "never"}}, ("query", "extended_negotiation", 0, "supported"), False),
        ({"query": {"header_match_rows": 17}}, ("query", "header_match_rows"), 17),
        ({"query": {"unknown_values_match": True}}, ("query", "unknown_values_match"), True),
        ({"storage": {"duplicates": "replace"}}, ("storage", "duplicates"), "replace"),
        ({"storage": {"durability": "full"}}, ("storage", "durability"), "full"),
        ({"negotiation": {"sop_classes": "any"}}, ("storage", "any_other_sop_class"), True),
        ({"negotiation": {"application_contexts": ["dicom"]}}, ("application_contexts", 0, "of"), "DICOM"),
        ({"access": {"known_peers_only": True}}, ("known_peers_only",), True),
        ({"peers": [{"ae_title": "CT1"}]}, ("peers", 0), "CT1"),
    ],
)
def test_it_follows_the_settings(
    make_settings: MakeSettings, sections: dict[str, Any], path: tuple[Any, ...], value: object
) -> None:
    said = statement(make_settings(**sections))
    text = page(said)
    for step in path:
        said = said[step]
    assert said == value
    assert text != page(statement(make_settings()))


def test_every_bound_is_in_it_with_its_value(make_settings: MakeSettings) -> None:
    said = statement(make_settings(limits={"max_pdu_bytes": 4_096}, timeouts={"artim_seconds": 7}))
    bounds = {one["setting"]: one["value"] for one in said["bounds"]}
    assert (bounds["limits.max_pdu_bytes"], bounds["timeouts.artim_seconds"]) == (4_096, 7)
    assert {"query.max_matches", "query.max_keys", "limits.max_associations"} <= set(bounds)
    assert all(len(one["meaning"]) > 15 for one in said["bounds"])


def test_the_command_prints_either_form_of_the_configuration_given(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text('[listen]\nae_title = "ARCHIVE"\n')
    as_json = RUNNER.invoke(app, ["conformance", "--config", str(config), "--format", "json"])
    assert as_json.exit_code == 0
    assert json.loads(as_json.stdout)["ae_title"] == "ARCHIVE"
    assert RUNNER.invoke(app, ["conformance", "--config", str(config), "--json"]).stdout == as_json.stdout
    markdown = RUNNER.invoke(app, ["conformance", "--config", str(config)])
    assert "| AE title | `ARCHIVE` |" in markdown.stdout
    defaults = RUNNER.invoke(app, ["conformance", "--format", "md"]).stdout
    assert defaults == (ROOT / "docs/conformance.md").read_text(encoding="utf-8")


def test_the_environment_is_part_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCP_SERVER_LISTEN__AE_TITLE", "FROM_ENV")
    said = json.loads(RUNNER.invoke(app, ["conformance", "--json"]).stdout)
    assert said["ae_title"] == "FROM_ENV"


@pytest.mark.parametrize("arguments", [["--format", "xml"], ["--config", "/nowhere.toml"]])
def test_wrong_usage_or_configuration_is_exit_2(arguments: list[str]) -> None:
    assert RUNNER.invoke(app, ["conformance", *arguments]).exit_code == 2
