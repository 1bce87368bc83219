"""The conformance statement follows from the settings and the server's own tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scp_server.net.access import SERVICE_SOP_CLASSES
from scp_server.runtime.build import build_policy
from scp_server.runtime.conformance import statement
from scp_server.runtime.conformance_page import markdown
from scp_server.services.query_retrieve.attributes import BELOW, COLUMNS, COUNTS, DECISIONS
from scp_server.services.query_retrieve.models import FIND_MODELS
from scp_server.settings import Settings

MakeSettings = Callable[..., Settings]


def test_every_service_that_is_negotiated_is_in_it_and_what_is_not_is_said(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings()
    said, policy = statement(settings), build_policy(settings)
    services = {one["uid"] for name in ("verification", "query", "retrieve") for one in said["scp"][name]}
    assert services == policy.service_sop_classes
    assert {one["uid"] for one in said["scp"]["storage"]} == policy.storage_sop_classes
    assert set(said["association"]["application_context_names"]) == policy.application_context_names
    for uid in frozenset[str]().union(*SERVICE_SOP_CLASSES.values()):
        is_said = any(f"({uid})" in text for text in said["not_supported"])
        assert is_said is (uid not in policy.service_sop_classes), uid


def test_every_model_and_every_key_with_a_column_is_in_it(make_settings: MakeSettings) -> None:
    query = statement(make_settings())["query"]
    assert {model["uid"] for model in query["models"]} == set(FIND_MODELS)
    levels = query["models"][0]["levels"]
    own = [key for level in levels for key in (level["unique"], *level["required"], *level["optional"])]
    assert len(own) == len(set(own)) == len(COLUMNS)
    computed = {key for level in levels for key in level["computed"]}
    assert len(computed) == len(BELOW) + len(COUNTS) + len(DECISIONS)


@pytest.mark.parametrize(
    ("sections", "path", "value"),
    [
        ({"listen": {"ae_title": "ARCHIVE"}}, ("association", "ae_title"), "ARCHIVE"),
        ({"access": {"known_peers_only": True}}, ("association", "known_peers_only"), True),
        ({"peers": [{"ae_title": "CT1"}]}, ("association", "peers"), 1),
        (
            {"negotiation": {"application_contexts": ["dicom"]}},
            ("association", "application_context_names"),
            ["1.2.840.10008.3.1.1.1"],
        ),
        ({"negotiation": {"sop_classes": "any"}}, ("scp", "any_other_storage"), True),
        ({"storage": {"duplicates": "replace"}}, ("storage", "duplicates"), "replace"),
        (
            {"validation": {"medical": "refuse"}, "peers": [{"ae_title": "CT1", "validation": "off"}]},
            ("storage", "validation"),
            "DICOS record, others refuse, CT1 off; refused from error on, with A900 or C000",
        ),
        ({"storage": {"durability": "full"}}, ("storage", "durability"), "full"),
        ({"query": {"relational": "never"}}, ("query", "relational"), "never"),
        (
            {"query": {"relational": "never"}},
            ("query", "extended_negotiation", "relational_queries"),
            False,
        ),
        ({"query": {"header_match_rows": 17}}, ("query", "header_match_rows"), 17),
        ({"query": {"unknown_values_match": True}}, ("query", "unknown_values_match"), True),
        ({"query": {"max_matches": 9}}, ("limits", "query.max_matches"), 9),
        ({"timeouts": {"artim_seconds": 7}}, ("limits", "timeouts.artim_seconds"), 7),
        ({"limits": {"max_pdu_bytes": 4_096}}, ("limits", "limits.max_pdu_bytes"), 4_096),
    ],
)
def test_it_follows_the_settings(
    make_settings: MakeSettings, sections: dict[str, Any], path: tuple[str, ...], value: object
) -> None:
    said: Any = statement(make_settings(**sections))
    page = markdown(said)
    for step in path:
        said = said[step]
    assert said == value
    assert page != markdown(statement(make_settings()))
