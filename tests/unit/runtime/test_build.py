"""From settings to components: each setting reaches the component that it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scp_server.index.base import DuplicatePolicy
from scp_server.interfaces import AcceptedContext, DicosMode, PeerRules
from scp_server.net.access import AccessRules, PeerEntry, PeerService, parse_network
from scp_server.protocol.message import CGetRQ, CMoveRQ
from scp_server.runtime.build import (
    build_access,
    build_limits,
    build_manager,
    build_policy,
    build_storage_service_config,
    build_transcoder,
    build_unsettled_limits,
    memory_ceiling_bytes,
)
from scp_server.runtime.server import Server
from scp_server.runtime.workers.shares import share_of
from scp_server.services.query_retrieve.frame_decoders import DecodingConfig
from scp_server.services.query_retrieve.models import FIND_MODELS, RETRIEVE_SOP_CLASSES
from scp_server.services.unsettled import UnsettledLimits
from scp_server.settings import Settings

MakeSettings = Callable[..., Settings]


def test_the_bounds_of_receiving_reach_the_storage_service(make_settings: MakeSettings) -> None:
    config = build_storage_service_config(
        make_settings(
            limits={
                "max_sequence_depth": 3,
                "max_header_value_bytes": 300,
                "max_header_bytes": 5_000,
                "max_header_elements": 7,
                "max_inflate_ratio": 9,
                "max_inflated_bytes": 11,
                "inflate_grace_bytes": 17,
                "max_indexed_elements": 256,
                "max_references": 19,
                "max_reference_items": 23,
                "header_buffer_bytes": 4_097,
                "max_object_bytes": 13,
            },
            storage={"duplicates": "parts", "dicos_duplicates": "keep_first"},
        )
    )
    tap = config.tap_limits
    assert (tap.max_sequence_depth, tap.max_value_bytes, tap.max_header_bytes) == (3, 300, 5_000)
    assert (tap.max_elements, tap.max_inflate_ratio, tap.max_inflated_bytes) == (7, 9, 11)
    assert (tap.inflate_grace_bytes, tap.max_indexed_elements) == (17, 256)
    assert (tap.max_references, tap.max_reference_items) == (19, 23)
    assert (config.header_buffer_bytes, config.max_object_bytes) == (4_097, 13)
    assert config.duplicates is DuplicatePolicy.PARTS
    assert config.dicos_duplicates is DuplicatePolicy.KEEP_FIRST


def test_the_bounds_of_an_association_reach_the_protocol(make_settings: MakeSettings) -> None:
    limits = {"max_pdu_bytes": 5_000, "max_associate_pdu_bytes": 9_000, "max_command_bytes": 2_000}
    limits |= {"max_empty_fragments": 7, "max_association_items": 8, "max_user_information_items": 9}
    timeouts = {"artim_seconds": 1.5, "idle_seconds": 2.5, "dicos_idle_seconds": 3.5, "dimse_seconds": 4.5}
    built = build_limits(make_settings(limits=limits, timeouts=timeouts))
    assert {name: getattr(built, name) for name in limits | timeouts} == limits | timeouts


def test_each_peer_becomes_an_entry_with_all_that_is_said_of_it(make_settings: MakeSettings) -> None:
    said = {
        "ae_title": "CT1",
        "address": "10.1.0.0/16",
        "allow": ["echo", "find"],
        "duplicates": "replace",
        "idle_seconds": 7,
        "dicos": "never",
    }
    access = build_access(make_settings(peers=[said, {"address": "::1"}], access={"known_peers_only": True}))
    assert access.known_peers_only
    assert access.entries == (
        PeerEntry(
            PeerRules("CT1@10.1.0.0/16", DuplicatePolicy.REPLACE, DicosMode.NEVER),
            "CT1",
            parse_network("10.1.0.0/16"),
            frozenset({PeerService.ECHO, PeerService.FIND}),
            7.0,
        ),
        PeerEntry(PeerRules("::1"), None, parse_network("::1")),
    )
    assert build_access(make_settings()) == AccessRules()


def test_a_required_called_ae_title_is_ours_and_no_other(make_settings: MakeSettings) -> None:
    listen = {"ae_title": "ARCHIVE"}
    assert build_policy(make_settings(listen=listen)).required_called_ae_titles == frozenset()
    policy = build_policy(make_settings(listen=listen, access={"require_called_ae_title": True}))
    assert policy.required_called_ae_titles == {"ARCHIVE"}


def test_decoding_is_bounded_as_the_settings_say(make_settings: MakeSettings) -> None:
    said = {"processes": 3, "frame_seconds": 1.5, "max_objects": 2, "max_frame_bytes": 5 << 20}
    settings = make_settings(codecs={**said, "process_memory_bytes": 600 << 20})
    config = build_transcoder(settings).config
    assert config == DecodingConfig(3, 1.5, 600 << 20, 2, 5 << 20)
    more = make_settings(codecs={**said, "max_objects": 3})
    assert memory_ceiling_bytes(more) - memory_ceiling_bytes(settings) == 4 * (5 << 20)


def test_what_may_be_unsettled_is_bounded_as_the_settings_say(make_settings: MakeSettings) -> None:
    said = {"shared_sync_bytes": 3_000, "max_unsettled_objects": 7, "max_unsettled_bytes": 5 << 20}
    settings = make_settings(storage={**said, "durability": "full"})
    assert build_unsettled_limits(settings) == UnsettledLimits(3_000, 7, 5 << 20)
    more = make_settings(storage={**said, "durability": "full", "max_unsettled_bytes": 6 << 20})
    assert memory_ceiling_bytes(more) - memory_ceiling_bytes(settings) == 1 << 20
    for off in ({"durability": "process"}, {"durability": "full", "shared_sync_bytes": 0}):
        without = make_settings(storage={**said, **off})
        assert build_unsettled_limits(without).object_bytes == 0
        assert memory_ceiling_bytes(settings) - memory_ceiling_bytes(without) == 5 << 20


def test_of_several_workers_each_syncs_every_object_by_itself(make_settings: MakeSettings) -> None:
    settings = make_settings(storage={"durability": "full"}, workers=2)
    assert build_unsettled_limits(settings).object_bytes == 0
    assert build_unsettled_limits(share_of(settings, 1)).object_bytes == 0
    less = make_settings(storage={"durability": "full", "max_unsettled_bytes": 0}, workers=2)
    assert memory_ceiling_bytes(settings) == memory_ceiling_bytes(less)


def test_retrieves_are_served_and_offered_as_relational(make_settings: MakeSettings) -> None:
    server = Server(make_settings())
    manager = build_manager(server.settings, server._storage, server._index)
    policy = manager.config.policy
    assert policy.service_sop_classes >= RETRIEVE_SOP_CLASSES
    for uid in RETRIEVE_SOP_CLASSES:
        assert policy.extended_negotiations[uid] == b"\1\0"
        context = AcceptedContext(1, uid, "1.2.840.10008.1.2")
        get = CGetRQ(message_id=1, affected_sop_class_uid=uid)
        move = CMoveRQ(message_id=1, affected_sop_class_uid=uid, move_destination="DEST")
        services = [manager.services.find(request, context) for request in (get, move)]
        assert [service.__name__ for service in services] == ["get", "move"]


def test_the_caps_reach_the_acceptor(make_settings: MakeSettings) -> None:
    caps = {
        "max_associations": 5,
        "max_associations_per_peer": 3,
        "max_associations_per_address": 4,
        "max_connections": 9,
        "max_pending_operations": 2,
        "association_buffer_bytes": 1 << 20,
        "process_buffer_bytes": 2 << 20,
    }
    server = Server(make_settings(limits=caps))
    config = build_manager(server.settings, server._storage, server._index).config
    assert {name: getattr(config, name) for name in caps} == caps


@pytest.mark.parametrize(
    "sections",
    [
        {"index": {"max_batch": 1, "max_queue": 1}},
        {"index": {"max_batch": 256, "max_queue": 1_000_000}},
        {"storage": {"threads": 1, "write_buffer_bytes": 4_096, "reserve_bytes": 0}},
        {"storage": {"threads": 256, "durability": "full"}},
        {"limits": {"max_pdu_bytes": 0}},
    ],
)
def test_a_server_can_be_built_of_the_extremes_that_the_settings_allow(
    make_settings: MakeSettings, sections: dict[str, Any]
) -> None:
    assert Server(make_settings(**sections)).health.is_ready is False


@pytest.mark.parametrize(
    ("relational", "information"),
    [("never", b"\0\1\1\0\0\1\1"), ("negotiated", b"\1\1\1\0\0\1\1"), ("always", b"\1\1\1\0\0\1\1")],
)
def test_every_query_model_is_a_service_with_extended_negotiation(
    make_settings: MakeSettings, relational: str, information: bytes
) -> None:
    policy = build_policy(make_settings(query={"relational": relational}))
    expected = dict.fromkeys(FIND_MODELS, information) | dict.fromkeys(
        RETRIEVE_SOP_CLASSES, information[:1] + b"\0"
    )
    assert policy.service_sop_classes >= set(expected)
    assert policy.extended_negotiations == expected


def test_what_the_index_does_not_take_is_no_valid_setting(make_settings: MakeSettings) -> None:
    with pytest.raises(ValueError, match="max_batch"):
        make_settings(index={"max_batch": 257})


@pytest.mark.parametrize(
    ("setting", "more_bytes", "growth_bytes"),
    [
        ("process_buffer_bytes", 1_000, 16_000),
        ("half_open_buffer_bytes", 1_000, 1_000),
        (
            "max_associations",
            1,
            (1 << 20)
            + 31 * (64 << 10)
            + 3 * (256 << 10)
            + 2 * (4 << 20)
            + 10_000 * 208
            + (64 << 10)
            + (128 << 10),
        ),
        ("max_associate_pdu_bytes", 10, 10 * 100),
        ("max_header_bytes", 10, 2 * 10 * 100 + 3 * 10 * 8),
        ("max_indexed_elements", 10, 208 * 10 * (100 + 8)),
        ("max_changed_objects", 1, 3 * (4 << 20) + 10_000 * 208 + (1 << 20) + 2 * 655_360 + (6 << 20)),
        ("max_pending_operations", 1, 10 * (64 << 10) * 100),
        ("max_command_bytes", 10, 31 * 10 * 100),
        ("send_buffer_bytes", 10, 10 * 100),
    ],
)
def test_the_memory_ceiling_grows_with_each_limit_that_it_follows_from(
    make_settings: MakeSettings, setting: str, more_bytes: int, growth_bytes: int
) -> None:
    limits = {
        "process_buffer_bytes": 256 << 20,
        "max_associations": 100,
        "max_connections": 150,
        "max_header_bytes": 4 << 20,
        "max_command_bytes": 64 << 10,
        "send_buffer_bytes": 64 << 10,
        "half_open_buffer_bytes": 32 << 20,
        "max_associate_pdu_bytes": 1 << 20,
        "max_pending_operations": 2,
        "max_indexed_elements": 10_000,
        "max_changed_objects": 8,
    }
    query = {"max_identifier_bytes": 4_096, "max_values": 1, "max_wildcard_bytes": 256}
    more = {**limits, setting: limits[setting] + more_bytes}
    before = memory_ceiling_bytes(make_settings(limits=limits, query=query))
    assert memory_ceiling_bytes(make_settings(limits=more, query=query)) - before == growth_bytes


@pytest.mark.parametrize(
    ("setting", "growth_bytes"),
    [("max_identifier_bytes", 2_000), ("max_values", 800_000), ("max_wildcard_bytes", 160_000)],
)
def test_the_memory_ceiling_follows_from_queries_where_they_cost_more(
    make_settings: MakeSettings, setting: str, growth_bytes: int
) -> None:
    query = {"max_identifier_bytes": 1 << 20, "max_values": 16_384, "max_wildcard_bytes": 8_192}
    limits = {"max_associations": 10, "max_connections": 20}
    more = {**query, setting: query[setting] + 1_000}
    before = memory_ceiling_bytes(make_settings(limits=limits, query=query))
    assert memory_ceiling_bytes(make_settings(limits=limits, query=more)) - before == growth_bytes * 10
