"""Every setting that bounds something has a test that runs into it: a new one without an entry here fails."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scp_server.settings import Settings
from scp_server.settings.schema import all_keys_of

TESTS = Path(__file__).parents[2]
SECTIONS = (
    "limits",
    "timeouts",
    "quarantine",
    "control",
    "index",
    "codecs",
    "callbacks",
    "events",
    "outbox",
    "decisions",
)
"""All settings of these are bounds."""
OTHERS = frozenset(
    {
        "query.header_match_rows",
        "query.max_identifier_bytes",
        "query.max_keys",
        "query.max_matches",
        "query.max_values",
        "query.max_wildcard_bytes",
        "retrieve.associations",
        "retrieve.max_suboperations",
        "retrieve.max_waiting_suboperations",
        "retrieve.pending_seconds",
        "close_timeout_seconds",
        "drain_timeout_seconds",
        "peers.idle_seconds",
        "remotes.connect_seconds",
        "remotes.max_associations",
        "storage.max_unsettled_bytes",
        "storage.max_unsettled_objects",
        "webhook.concurrency",
        "webhook.timeout_seconds",
        "storage.reserve_bytes",
        "storage.settle_seconds",
        "storage.shared_sync_bytes",
        "storage.threads",
        "validation.max_findings",
        "validation.threads",
        "validation.timeout_seconds",
        "storage.write_buffer_bytes",
        "worker_silence_seconds",
        "workers",
    }
)
LIMITS = "integration/test_limits.py::"
HOSTILE = "integration/test_hostile.py::"
CONNECTION = "unit/net/test_connection.py::"
TIMERS = "unit/protocol/test_timers.py::"
TAP = "unit/objects/test_header_tap.py::"
INFLATE = "unit/objects/test_inflate.py::"
SUMMARY = "unit/objects/test_summary.py::"
CONTROL = "unit/runtime/test_control.py::"
QUARANTINE = "unit/storage/test_quarantine.py::"
QUERY = "unit/services/query_retrieve/test_limits.py::"
SUB_OPERATIONS = "unit/services/query_retrieve/test_suboperations.py::"
SETTLING = "unit/runtime/test_settling.py::"
COMPARISON = "unit/runtime/maintenance/test_comparison.py::"

TRANSCODING = "unit/services/test_transcoding.py::"
WEBHOOK = "unit/pipeline/test_webhook.py::"
DESTINATIONS = "unit/net/test_destinations.py::"

RUNNING = "unit/pipeline/test_running.py::"
OUTBOX = "unit/pipeline/test_outbox.py::"
KEEPER = "unit/pipeline/test_log_keeper.py::"
VALIDATION = "unit/services/test_validation.py::"
FOLLOWERS = "unit/web/test_events.py::"

REACHED_BY: dict[str, str] = {
    "limits.max_associations": LIMITS + "test_above_a_cap_the_answer_is_2_3_2_until_a_place_is_free",
    "limits.max_associations_per_peer": LIMITS
    + "test_the_caps_of_one_calling_ae_title_do_not_concern_another",
    "limits.max_associations_per_address": "unit/net/test_association_manager.py::"
    "test_above_the_cap_of_one_address_another_is_let_in",
    "limits.max_connections": LIMITS + "test_above_the_cap_on_sockets_the_oldest_half_open_one_goes",
    "limits.max_outbound_associations": DESTINATIONS
    + "test_above_the_cap_of_all_remotes_one_waits_and_those_of_another_count",
    "limits.max_pdu_bytes": LIMITS
    + "test_a_pdu_above_our_maximum_aborts_at_its_header_and_the_end_is_seen_at_once",
    "limits.max_associate_pdu_bytes": HOSTILE + "test_an_a_associate_rq_above_1_mib_is_aborted_at_its_header",
    "limits.max_command_bytes": HOSTILE + "test_a_command_without_end_is_cut_at_64_kib",
    "limits.max_empty_fragments": HOSTILE + "test_empty_fragments_without_end_are_cut",
    "limits.max_association_items": "unit/protocol/test_pdu.py::"
    "test_more_items_than_a_pdu_may_have_are_refused",
    "limits.max_user_information_items": "unit/protocol/test_pdu.py::"
    "test_more_user_information_sub_items_than_the_limit_are_refused",
    "limits.max_pending_operations": CONNECTION
    + "test_requests_sent_ahead_are_left_unread_and_nothing_is_made_of_them",
    "limits.association_buffer_bytes": CONNECTION
    + "test_reading_stops_while_the_association_holds_too_much_and_goes_on_at_half",
    "limits.process_buffer_bytes": "integration/test_receive.py::"
    "test_senders_that_together_exceed_the_budget_all_succeed",
    "limits.half_open_buffer_bytes": HOSTILE
    + "test_requests_of_1_mib_sent_but_for_a_byte_on_200_connections_are_bounded_together",
    "limits.send_buffer_bytes": "unit/net/test_association_transport.py::"
    "test_nothing_is_read_and_writers_wait_while_too_much_waits_for_the_peer",
    "limits.header_buffer_bytes": "integration/test_receive.py::"
    "test_a_header_larger_than_its_buffer_is_staged",
    "limits.max_header_bytes": TAP + "test_values_are_left_out_before_elements_are",
    "limits.max_header_value_bytes": SUMMARY + "test_values_that_were_not_kept_are_none",
    "limits.max_header_elements": TAP + "test_the_number_of_elements_is_bounded",
    "limits.max_indexed_elements": TAP + "test_the_number_of_remembered_elements_is_bounded",
    "limits.max_references": SUMMARY + "test_both_bounds_of_references_are_limits",
    "limits.max_reference_items": SUMMARY + "test_both_bounds_of_references_are_limits",
    "limits.max_changed_objects": "unit/services/test_coercion.py::"
    "test_no_more_objects_are_written_anew_at_once_than_may_be",
    "limits.max_sequence_depth": TAP + "test_sequences_nest_as_deep_as_the_limit_says",
    "limits.max_object_bytes": "integration/test_receive.py::"
    "test_an_object_above_the_configured_size_is_a700",
    "limits.max_inflate_ratio": INFLATE + "test_a_bomb_is_refused_soon_after_the_grace",
    "limits.inflate_grace_bytes": INFLATE + "test_the_ratio_counts_from_the_end_of_the_grace_on",
    "limits.max_inflated_bytes": INFLATE + "test_the_inflated_size_is_bounded_where_it_is_set",
    "timeouts.artim_seconds": LIMITS + "test_a_silent_connection_ends_with_artim",
    "timeouts.response_seconds": TIMERS + "test_an_unanswered_release_request_is_aborted",
    "timeouts.store_response_seconds": "unit/net/test_sub_operations.py::"
    "test_a_peer_that_does_not_answer_in_time_is_aborted",
    "timeouts.idle_seconds": LIMITS + "test_an_idle_association_is_aborted",
    "timeouts.outbound_idle_seconds": DESTINATIONS + "test_one_that_is_idle_for_too_long_is_released",
    "timeouts.remote_retry_seconds": DESTINATIONS + "test_a_remote_that_is_down_is_not_tried_again_at_once",
    "timeouts.dicos_idle_seconds": TIMERS + "test_a_dicos_association_has_an_idle_time_of_its_own",
    "timeouts.dimse_seconds": LIMITS + "test_silence_inside_a_message_aborts",
    "timeouts.write_seconds": LIMITS + "test_a_peer_that_never_reads_its_answers_is_reset",
    "timeouts.minimum_bytes_per_second": TIMERS
    + "test_a_drip_is_aborted_once_it_has_lasted_and_is_too_slow_on_average",
    "quarantine.max_bytes": QUARANTINE + "test_room_is_reserved_as_it_is_needed_and_given_back",
    "quarantine.max_objects": QUARANTINE + "test_room_is_reserved_as_it_is_needed_and_given_back",
    "control.max_connections": CONTROL
    + "test_a_connection_above_max_connections_is_closed_and_the_others_stay",
    "control.max_request_bytes": CONTROL + "test_a_request_longer_than_max_request_bytes_ends_its_connection",
    "control.request_seconds": CONTROL + "test_a_connection_that_says_nothing_ends_after_request_seconds",
    "control.command_seconds": CONTROL + "test_a_command_ends_after_command_seconds",
    "index.max_batch": "unit/index/test_batching.py::test_what_waits_becomes_batches_in_order",
    "index.max_queue": "unit/index/test_batching.py::test_a_full_queue_makes_the_next_caller_wait",
    "index.busy_timeout_seconds": "unit/index/test_store.py::"
    "test_a_locked_database_is_unavailable_after_the_busy_timeout",
    "index.compare_at_start": COMPARISON + "test_it_can_be_switched_off",
    "index.compare_objects_per_second": COMPARISON + "test_it_goes_no_faster_than_it_may",
    "worker_silence_seconds": "integration/test_workers.py::"
    "test_nothing_acknowledged_is_lost_when_workers_are_killed_or_hang_and_others_take_their_places",
    "workers": "integration/test_workers.py::test_metrics_and_status_tell_of_all_workers_together",
    "storage.shared_sync_bytes": SETTLING + "test_an_object_above_shared_sync_bytes_is_synced_by_itself",
    "storage.settle_seconds": SETTLING + "test_an_object_waits_for_settle_seconds",
    "storage.max_unsettled_objects": SETTLING
    + "test_when_as_much_is_unsettled_as_may_be_newcomers_sync_themselves",
    "storage.max_unsettled_bytes": SETTLING
    + "test_when_as_much_is_unsettled_as_may_be_newcomers_sync_themselves",
    "storage.reserve_bytes": "integration/test_receive.py::test_no_room_is_a700_and_the_association_goes_on",
    "storage.threads": "unit/storage/test_filesystem.py::test_no_more_calls_block_at_once_than_the_threads",
    "storage.write_buffer_bytes": "unit/storage/test_filesystem.py::"
    "test_tiny_fragments_cost_no_more_than_the_buffer",
    "index.readers": "unit/index/test_searching.py::"
    "test_closing_the_index_ends_statements_that_run_and_those_that_wait",
    "query.max_matches": QUERY + "test_a_query_ends_with_a700_after_max_matches",
    "query.header_match_rows": QUERY
    + "test_beyond_header_match_rows_matches_are_returned_unmatched_with_ff01",
    "query.max_identifier_bytes": QUERY + "test_an_identifier_above_max_identifier_bytes_is_refused",
    "query.max_keys": QUERY + "test_more_than_max_keys_are_refused",
    "query.max_values": QUERY + "test_more_than_max_values_are_refused",
    "query.max_wildcard_bytes": QUERY + "test_more_than_max_wildcard_bytes_are_refused",
    "retrieve.associations": SUB_OPERATIONS
    + "test_sub_operations_run_side_by_side_on_as_many_associations_as_allowed",
    "retrieve.max_suboperations": "unit/services/query_retrieve/test_retrieve_identifiers.py::"
    "test_more_matches_than_allowed_are_a701",
    "retrieve.max_waiting_suboperations": "unit/services/query_retrieve/test_retrieve_identifiers.py::"
    "test_a_retrieve_for_which_all_together_have_no_room_is_a701",
    "retrieve.pending_seconds": SUB_OPERATIONS
    + "test_there_is_a_pending_response_while_a_sub_operation_takes_long",
    "codecs.processes": TRANSCODING + "test_no_more_frames_are_decoded_at_once_than_processes",
    "codecs.frame_seconds": TRANSCODING + "test_a_decoder_that_crashes_or_hangs_costs_its_frame_alone",
    "codecs.process_memory_bytes": TRANSCODING + "test_memory_of_decoders_is_limited",
    "codecs.max_objects": TRANSCODING + "test_more_objects_than_allowed_wait_until_another_is_sent",
    "codecs.max_frame_bytes": TRANSCODING
    + "test_what_contradicts_its_data_set_is_refused_before_anything_is_sent",
    "webhook.concurrency": WEBHOOK + "test_no_more_calls_are_made_at_once_than_concurrency",
    "webhook.timeout_seconds": WEBHOOK + "test_a_receiver_that_does_not_answer_in_time_is_tried_again",
    "events.enabled": "unit/runtime/test_delivering.py::"
    "test_a_server_that_is_to_keep_no_events_has_none_unless_somebody_needs_them",
    "events.keep_events": KEEPER + "test_the_newest_events_are_kept",
    "events.keep_seconds": KEEPER + "test_what_is_too_old_goes_even_if_there_are_few",
    "events.max_followers": FOLLOWERS + "test_above_max_followers_the_answer_is_503_until_one_leaves",
    "events.heartbeat_seconds": FOLLOWERS
    + "test_only_the_kinds_that_are_asked_for_are_sent_and_the_id_goes_on",
    "events.follower_seconds": FOLLOWERS + "test_who_takes_nothing_is_cut_off_and_goes_on_when_it_comes_back",
    "events.token": FOLLOWERS + "test_where_there_is_a_token_only_who_knows_it_may_follow",
    "events.token_file": "unit/settings/test_events.py::"
    "test_a_token_stands_in_the_settings_or_in_a_file_and_is_not_shown",
    "outbox.first_retry_seconds": OUTBOX
    + "test_what_failed_waits_twice_as_long_each_time_with_its_series_behind_it",
    "outbox.max_retry_seconds": OUTBOX + "test_no_wait_is_longer_than_the_longest",
    "outbox.max_attempts": OUTBOX + "test_a_dead_letter_lets_its_series_go_on",
    "outbox.max_parked": OUTBOX + "test_above_max_parked_the_log_is_read_no_further",
    "outbox.max_dead_letters": OUTBOX + "test_of_too_many_dead_letters_the_oldest_go",
    "outbox.study_settle_seconds": KEEPER + "test_a_study_settles_when_nothing_has_come_for_so_long",
    "outbox.drain_seconds": OUTBOX + "test_the_next_start_goes_on_where_a_stop_has_ended_and_repeats_nothing",
    "decisions.missing_after_seconds": KEEPER
    + "test_a_scan_without_a_report_is_missing_one_so_long_after_its_last_image",
    "decisions.orphan_after_seconds": KEEPER + "test_a_report_on_nothing_is_an_orphan_so_long_after_it_came",
    "callbacks.entry_points": "unit/pipeline/test_registry.py::"
    "test_a_package_that_is_installed_takes_part_by_its_entry_point",
    "callbacks.timeout_seconds": RUNNING
    + "test_one_that_never_returns_is_cancelled_at_its_deadline_and_then_closed",
    "callbacks.concurrency": RUNNING
    + "test_calls_in_turn_are_as_many_at_once_as_it_allows_and_waiting_counts",
    "callbacks.processes": RUNNING + "test_as_many_processes_as_allowed_run_at_once",
    "callbacks.process_memory_bytes": RUNNING + "test_a_process_may_use_as_much_memory_as_the_setting_says",
    "callbacks.blocking_seconds": RUNNING + "test_one_that_blocks_the_loop_is_named_and_counted",
    "callbacks.max_abandoned_threads": RUNNING
    + "test_threads_that_never_return_are_abandoned_counted_and_bounded",
    "callbacks.max_waiting": "unit/pipeline/test_callbacks.py::"
    "test_notices_that_nobody_takes_are_dropped_and_counted",
    "validation.timeout_seconds": VALIDATION + "test_validators_that_never_end_are_left_alone_and_bounded",
    "validation.max_findings": VALIDATION + "test_no_more_findings_are_kept_than_the_setting_says",
    "validation.threads": VALIDATION + "test_no_more_are_judged_at_once_than_there_are_threads",
    "close_timeout_seconds": "integration/test_slow_disk.py::"
    "test_a_disk_that_hangs_for_ever_does_not_keep_the_daemon_from_ending",
    "drain_timeout_seconds": LIMITS + "test_what_outlives_the_drain_time_is_aborted",
    "peers.idle_seconds": "integration/test_access.py::"
    "test_an_idle_association_ends_when_its_peers_rules_say",
    "remotes.max_associations": DESTINATIONS
    + "test_above_the_cap_of_a_remote_one_waits_for_another_to_be_given_back",
    "remotes.connect_seconds": "integration/test_requestor.py::"
    "test_a_connection_that_never_comes_is_connect_failed_in_time",
}


def _tests_in(path: Path) -> set[str]:
    """The functions and methods that pytest would collect from a file."""
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        node.name
        for node in found
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    }


def test_every_setting_that_bounds_something_names_the_test_that_reaches_it() -> None:
    bounds = {name for name in all_keys_of(Settings) if name.split(".")[0] in SECTIONS}
    assert bounds | OTHERS == set(REACHED_BY)


def test_every_setting_is_either_a_bound_or_known_to_be_none() -> None:
    """So that a bound in another section is not forgotten: numbers are bounds, but for these."""
    numbers = {
        name
        for name, key in all_keys_of(Settings).items()
        if isinstance(key.default, (int, float)) and not isinstance(key.default, bool)
    }
    assert numbers - set(REACHED_BY) == {"listen.port", "http.port", "require_attributes.status"}


@pytest.mark.parametrize("setting", REACHED_BY)
def test_the_test_that_reaches_a_limit_exists(setting: str) -> None:
    file, _, name = REACHED_BY[setting].partition("::")
    assert name in _tests_in(TESTS / file), f"{setting}: no {name} in {file}"
