"""From settings to components. The only place where every room is known at once.

To add a DIMSE service: write its module in `services/`, register an instance in `build_services`, and name
its SOP classes in `build_policy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scp_server.index.base import DuplicatePolicy, Index
from scp_server.index.searching import MAX_PAGE_ANSWER_BYTES
from scp_server.index.spare import SPARE_BYTES
from scp_server.index.store import IndexConfig, SqlIndex, Writer
from scp_server.interfaces import (
    AssociationListener,
    Destinations,
    DicosMode,
    PeerRules,
    Transcoding,
    ValidationPolicy,
)
from scp_server.net.access import AccessRules, PeerEntry, PeerService, parse_network
from scp_server.net.association_manager import AcceptorConfig, AssociationManager
from scp_server.net.association_transport import READ_BYTES, TransportConfig
from scp_server.net.dataset_stream import KEPT_ALIVE_AT_MOST
from scp_server.net.destinations import DestinationPool, DestinationsConfig
from scp_server.net.outbound import Remote
from scp_server.net.places import Grants
from scp_server.net.requestor_connection import RequestorConfig
from scp_server.objects.header_tap import TapLimits
from scp_server.objects.identifier import IdentifierLimits
from scp_server.objects.reencoding import REENCODING_BYTES
from scp_server.objects.validation.finding import Severity
from scp_server.observability.measures import Measures
from scp_server.pipeline.callbacks import ActiveCallbacks
from scp_server.pipeline.registry import CallbackRegistry, CallbackSources, load_callbacks
from scp_server.pipeline.running import CallbackLimits
from scp_server.pipeline.sending import Source
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import VERIFICATION_SOP_CLASS_UID
from scp_server.protocol.negotiation import NegotiationPolicy
from scp_server.runtime.build_rules import build_object_rules
from scp_server.services.query_retrieve.find import FindConfig, FindService
from scp_server.services.query_retrieve.frame_decoders import DecodingConfig
from scp_server.services.query_retrieve.models import FIND_MODELS, RETRIEVE_SOP_CLASSES
from scp_server.services.query_retrieve.negotiation import RelationalQueries, offered, offered_to_retrieve
from scp_server.services.query_retrieve.plan import PlanConfig
from scp_server.services.query_retrieve.retrieve import RetrieveConfig, RetrieveService
from scp_server.services.query_retrieve.suboperations import SubOperationsConfig
from scp_server.services.query_retrieve.transcoding import Transcoder
from scp_server.services.registry import ServiceRegistry
from scp_server.services.storage import ArrivalClock, Deletions, StorageService, StorageServiceConfig
from scp_server.services.storage_classes import StorageSOPClasses, standard_storage_sop_classes
from scp_server.services.unsettled import UnsettledLimits, UnsettledObjects
from scp_server.services.validation import ValidationConfig, Validator
from scp_server.services.verification import VerificationService
from scp_server.settings import Settings
from scp_server.storage.base import SettingAside, Storage
from scp_server.storage.filesystem import (
    Durability,
    FilesystemStorage,
    FilesystemStorageConfig,
)
from scp_server.storage.pruning import PruneCounts
from scp_server.storage.quarantine import Quarantine, QuarantineConfig
from scp_server.storage.quarantine_room import QuarantineRoom
from scp_server.storage.reading import READ_PIECE_BYTES
from scp_server.storage.template import LayoutTemplate


def index_path(settings: Settings) -> Path:
    """Where the index of the data folder lies."""
    return settings.data_dir / "index" / "index.sqlite"


def build_storage(
    settings: Settings,
    *,
    keep_part_files: bool = False,
    writer: str = "",
    prunes: PruneCounts | None = None,
) -> FilesystemStorage:
    """The storage of the data folder. `writer` and `prunes` are for several processes that share it."""
    return FilesystemStorage(
        FilesystemStorageConfig(
            root=settings.data_dir,
            durability=Durability(settings.storage.durability),
            reserve_bytes=settings.storage.reserve_bytes,
            write_buffer_bytes=settings.storage.write_buffer_bytes,
            threads=settings.storage.threads,
            layout=LayoutTemplate(settings.storage.layout),
            keep_part_files=keep_part_files,
            writer=writer,
            prunes=prunes,
        )
    )


def build_index(
    settings: Settings, measures: Measures | None = None, writer: Writer | None = None
) -> SqlIndex:
    """The index in the data folder; `writer` where another process writes it."""
    return SqlIndex(
        IndexConfig(
            path=index_path(settings),
            synchronous_full=settings.storage.durability == "full",
            max_batch=settings.index.max_batch,
            max_queue=settings.index.max_queue,
            busy_timeout_seconds=settings.index.busy_timeout_seconds,
            spare_bytes=SPARE_BYTES,
            readers=settings.index.readers,
        ),
        measures.index if measures else None,
        writer,
    )


def build_quarantine(
    settings: Settings,
    storage: SettingAside | None,
    measures: Measures | None = None,
    room: QuarantineRoom | None = None,
) -> Quarantine:
    """The quarantine of the data folder; without a storage it only looks and drops. `room` where another
    process keeps its book."""
    return Quarantine(
        QuarantineConfig(
            root=settings.data_dir,
            durable=settings.storage.durability == "full",
            max_bytes=settings.quarantine.max_bytes,
            max_objects=settings.quarantine.max_objects,
        ),
        storage,
        measures.quarantine if measures else None,
        room,
    )


def build_storage_service(
    settings: Settings,
    storage: Storage,
    index: SqlIndex,
    measures: Measures | None = None,
    quarantine: Quarantine | None = None,
    deletions: Deletions | None = None,
    callbacks: ActiveCallbacks | None = None,
    arrivals: ArrivalClock | None = None,
    unsettled: UnsettledObjects | None = None,
    validator: Validator | None = None,
) -> StorageService:
    """What performs C-STORE, and stores again what is released. `unsettled` is for who settles it."""
    return StorageService(
        storage,
        index,
        build_storage_service_config(settings),
        (measures or Measures()).reception,
        quarantine,
        deletions=deletions,
        arrivals=arrivals,
        callbacks=callbacks,
        rules=build_object_rules(settings),
        unsettled=unsettled,
        validator=validator,
    )


def build_validator(settings: Settings, measures: Measures | None = None) -> Validator:
    """What judges objects; to be closed."""
    return Validator(settings.validation.threads, (measures or Measures()).reception)


def build_validation_config(settings: Settings) -> ValidationConfig:
    """Which objects are judged, and what follows."""
    validation = settings.validation
    return ValidationConfig(
        dicos=ValidationPolicy(validation.dicos),
        medical=ValidationPolicy(validation.medical),
        titles=tuple(
            (peer.ae_title, None if peer.validation is None else ValidationPolicy(peer.validation))
            for peer in settings.peers
        ),
        refuse_from=Severity(validation.refuse_from),
        timeout_seconds=validation.timeout_seconds,
        max_findings=validation.max_findings,
    )


def build_unsettled_limits(settings: Settings) -> UnsettledLimits:
    """Which objects may be durable in the index before they are in their files: with several workers none,
    for one process settles, and the others would not hear of it."""
    storage = settings.storage
    shares = storage.durability == "full" and settings.workers == 1
    return UnsettledLimits(
        object_bytes=storage.shared_sync_bytes if shares else 0,
        objects=storage.max_unsettled_objects,
        bytes=storage.max_unsettled_bytes,
    )


def build_storage_service_config(settings: Settings) -> StorageServiceConfig:
    """How objects are received."""
    limits = settings.limits
    return StorageServiceConfig(
        tap_limits=TapLimits(
            max_sequence_depth=limits.max_sequence_depth,
            max_value_bytes=limits.max_header_value_bytes,
            max_header_bytes=limits.max_header_bytes,
            max_elements=limits.max_header_elements,
            max_inflate_ratio=limits.max_inflate_ratio,
            max_inflated_bytes=limits.max_inflated_bytes,
            inflate_grace_bytes=limits.inflate_grace_bytes,
            max_indexed_elements=limits.max_indexed_elements,
            max_references=limits.max_references,
            max_reference_items=limits.max_reference_items,
        ),
        header_buffer_bytes=limits.header_buffer_bytes,
        max_object_bytes=limits.max_object_bytes,
        duplicates=DuplicatePolicy(settings.storage.duplicates),
        dicos_duplicates=DuplicatePolicy(settings.storage.dicos_duplicates),
        max_changed_objects=limits.max_changed_objects,
        modifying_system=settings.listen.ae_title,
        validation=build_validation_config(settings),
    )


def build_callback_limits(settings: Settings) -> CallbackLimits:
    """What callbacks may cost."""
    callbacks = settings.callbacks
    return CallbackLimits(
        timeout_seconds=callbacks.timeout_seconds,
        concurrency=callbacks.concurrency,
        processes=callbacks.processes,
        process_memory_bytes=callbacks.process_memory_bytes,
        blocking_seconds=callbacks.blocking_seconds,
        max_abandoned_threads=callbacks.max_abandoned_threads,
        max_waiting=callbacks.max_waiting,
    )


def build_callback_registry(settings: Settings, arguments: Sequence[object] = ()) -> CallbackRegistry:
    """All callbacks: `arguments`, plug-ins and installed packages. Raises ConfigurationError."""
    return load_callbacks(
        CallbackSources(
            arguments=arguments,
            plugins=settings.plugins,
            entry_points=settings.callbacks.entry_points,
        )
    )


def build_callbacks(
    settings: Settings, measures: Measures, arguments: Sequence[object] = ()
) -> ActiveCallbacks:
    """All callbacks, ready to be started. Raises ConfigurationError."""
    return ActiveCallbacks(
        build_callback_registry(settings, arguments), build_callback_limits(settings), measures.callbacks
    )


def build_find_service(settings: Settings, index: Index) -> FindService:
    """What answers queries."""
    query = settings.query
    return FindService(
        index,
        FindConfig(
            plan=PlanConfig(
                retrieve_ae_title=settings.listen.ae_title,
                limits=IdentifierLimits(
                    max_keys=query.max_keys,
                    max_values=query.max_values,
                    max_wildcard_bytes=query.max_wildcard_bytes,
                ),
                header_match_rows=query.header_match_rows,
                unknown_values_match=query.unknown_values_match,
            ),
            relational=RelationalQueries(query.relational),
            max_matches=query.max_matches,
            max_identifier_bytes=query.max_identifier_bytes,
        ),
    )


def build_retrieve_service(
    settings: Settings,
    index: Index,
    storage: Storage,
    destinations: Destinations | None = None,
    transcoding: Transcoding | None = None,
    measures: Measures | None = None,
) -> RetrieveService:
    """What performs C-MOVE and C-GET."""
    query, retrieve = settings.query, settings.retrieve
    return RetrieveService(
        index,
        Source(storage, transcoding),
        destinations,
        RetrieveConfig(
            relational=RelationalQueries(query.relational),
            max_identifier_bytes=query.max_identifier_bytes,
            limits=IdentifierLimits(max_keys=query.max_keys),
            max_suboperations=retrieve.max_suboperations,
            max_waiting_suboperations=retrieve.max_waiting_suboperations,
            sub_operations=SubOperationsConfig(
                associations=retrieve.associations, pending_seconds=retrieve.pending_seconds
            ),
        ),
        (measures or Measures()).retrieve,
    )


def build_transcoder(settings: Settings, measures: Measures | None = None) -> Transcoder:
    """What gives objects another transfer syntax."""
    codecs = settings.codecs
    return Transcoder(
        DecodingConfig(
            processes=codecs.processes,
            frame_seconds=codecs.frame_seconds,
            memory_bytes=codecs.process_memory_bytes,
            max_objects=codecs.max_objects,
            max_frame_bytes=codecs.max_frame_bytes,
        ),
        (measures or Measures()).retrieve,
    )


def build_limits(settings: Settings) -> Limits:
    """The bounds of one association."""
    limits, timeouts = settings.limits, settings.timeouts
    return Limits(
        max_pdu_bytes=limits.max_pdu_bytes,
        max_associate_pdu_bytes=limits.max_associate_pdu_bytes,
        max_command_bytes=limits.max_command_bytes,
        max_empty_fragments=limits.max_empty_fragments,
        max_association_items=limits.max_association_items,
        max_user_information_items=limits.max_user_information_items,
        artim_seconds=timeouts.artim_seconds,
        response_seconds=timeouts.response_seconds,
        idle_seconds=timeouts.idle_seconds,
        dicos_idle_seconds=timeouts.dicos_idle_seconds,
        dimse_seconds=timeouts.dimse_seconds,
        minimum_bytes_per_second=timeouts.minimum_bytes_per_second,
    )


def build_policy(settings: Settings) -> NegotiationPolicy:
    """What is accepted of what peers propose."""
    relational = RelationalQueries(settings.query.relational)
    extended_negotiations = {
        **dict.fromkeys(FIND_MODELS, offered(relational)),
        **dict.fromkeys(RETRIEVE_SOP_CLASSES, offered_to_retrieve(relational)),
    }
    additional = frozenset(settings.negotiation.additional_sop_classes)
    return NegotiationPolicy(
        application_context_names=frozenset(settings.negotiation.application_context_names),
        storage_sop_classes=standard_storage_sop_classes() | additional,
        any_sop_class=settings.negotiation.sop_classes == "any",
        service_sop_classes=frozenset({VERIFICATION_SOP_CLASS_UID, *extended_negotiations}),
        extended_negotiations=extended_negotiations,
        transfer_syntaxes=tuple(settings.negotiation.transfer_syntax_uids),
        required_called_ae_titles=(
            frozenset({settings.listen.ae_title}) if settings.access.require_called_ae_title else frozenset()
        ),
        grants_storage_scp_role=True,
        maximum_length=settings.limits.max_pdu_bytes,
    )


def build_access(settings: Settings) -> AccessRules:
    """Who may associate, and what for."""
    return AccessRules(
        entries=tuple(
            PeerEntry(
                rules=PeerRules(
                    name=peer.name,
                    duplicates=None if peer.duplicates is None else DuplicatePolicy(peer.duplicates),
                    dicos=DicosMode(peer.dicos),
                    relational=peer.relational,
                    validation=None if peer.validation is None else ValidationPolicy(peer.validation),
                ),
                ae_title=peer.ae_title,
                network=None if peer.address is None else parse_network(peer.address),
                allow=frozenset(map(PeerService, peer.allow)),
                idle_seconds=peer.idle_seconds,
            )
            for peer in settings.peers
        ),
        known_peers_only=settings.access.known_peers_only,
    )


def build_destinations(settings: Settings, measures: Measures | None = None) -> DestinationPool:
    """Associations to the remotes; to be closed once no service uses them any more."""
    return DestinationPool(build_destinations_config(settings), (measures or Measures()).outbound)


def build_destinations_config(settings: Settings) -> DestinationsConfig:
    """Where may be sent to, and what that may cost."""
    limits, timeouts = settings.limits, settings.timeouts
    return DestinationsConfig(
        calling_ae_title=settings.listen.ae_title,
        remotes={
            remote.ae_title: Remote(
                ae_title=remote.ae_title,
                host=remote.host,
                port=remote.port,
                application_context_name=remote.application_context_name,
                max_associations=remote.max_associations,
                connect_seconds=remote.connect_seconds,
                duplicates_are_warnings=remote.duplicates == "warning",
                glued=remote.framing == "glued",
                transfer_syntaxes=remote.transfer_syntax_uids,
            )
            for remote in settings.remotes
        },
        requestor=RequestorConfig(
            # Idle ones are counted by the pool.
            limits=replace(build_limits(settings), idle_seconds=0.0, dicos_idle_seconds=0.0),
            transport=build_transport(settings),
            response_seconds=timeouts.store_response_seconds,
        ),
        max_associations=limits.max_outbound_associations,
        idle_seconds=timeouts.outbound_idle_seconds,
        retry_seconds=timeouts.remote_retry_seconds,
    )


def build_transport(settings: Settings) -> TransportConfig:
    """What may wait for a peer that does not read."""
    return TransportConfig(
        send_buffer_bytes=settings.limits.send_buffer_bytes, write_seconds=settings.timeouts.write_seconds
    )


def build_manager(
    settings: Settings,
    storage: Storage,
    index: SqlIndex,
    measures: Measures | None = None,
    storage_service: StorageService | None = None,
    destinations: Destinations | None = None,
    transcoding: Transcoding | None = None,
    grants: Grants | None = None,
    listener: AssociationListener | None = None,
) -> AssociationManager:
    """Everything between the listening socket and the storage. `storage_service` is what performs C-STORE,
    where something else uses it too; without one there is no quarantine. `destinations` are
    those of C-MOVE, `transcoding` gives what is retrieved another transfer syntax, `grants` lets associations
    in where another process counts them, `listener` is told of associations."""
    limits = settings.limits
    measures = measures or Measures()
    policy = build_policy(settings)
    services = ServiceRegistry()
    services.register(VerificationService(listener), {VERIFICATION_SOP_CLASS_UID})
    services.register(
        storage_service or build_storage_service(settings, storage, index, measures),
        StorageSOPClasses(policy),
    )
    services.register(build_find_service(settings, index), FIND_MODELS)
    services.register(
        build_retrieve_service(settings, index, storage, destinations, transcoding, measures),
        RETRIEVE_SOP_CLASSES,
    )
    return AssociationManager(
        AcceptorConfig(
            policy=policy,
            access=build_access(settings),
            limits=build_limits(settings),
            transport=build_transport(settings),
            max_associations=limits.max_associations,
            max_associations_per_peer=limits.max_associations_per_peer,
            max_associations_per_address=limits.max_associations_per_address,
            max_connections=limits.max_connections,
            max_pending_operations=limits.max_pending_operations,
            association_buffer_bytes=limits.association_buffer_bytes,
            process_buffer_bytes=limits.process_buffer_bytes,
            half_open_buffer_bytes=limits.half_open_buffer_bytes,
            store_response_seconds=settings.timeouts.store_response_seconds,
        ),
        services,
        measures,
        grants,
        listener,
    )


DECODED_COMMAND_FACTOR = 10
"""Bytes of memory for each of a command set: a list of tags is the worst, 40 for four."""
INDEXED_ELEMENT_BYTES = 208
"""Memory to remember where an element of a header lies."""
SUB_OPERATION_BYTES = 512
"""Memory for a sub-operation of a retrieve: 320 bytes to find and name its part, the rest where it fails."""
SENDING_BYTES = 4 * READ_PIECE_BYTES
"""Of an object that is sent: a piece of which the last is being written, one that waits until it is known not
to be the last, the one behind it, and one that is read ahead."""
READS_ALIVE = 3
"""Of an association: one that is delivered, one that waits, and one of which a remainder is kept."""
ASSOCIATION_OBJECTS_BYTES = 131_072
"""The objects of an association without what a peer fills them with, and the window of its deflated data."""


QUERY_VALUE_BYTES = 800
"""Memory for one value of a query's keys, at worst."""
QUERY_WILDCARD_FACTOR = 160
"""Bytes of memory for each of a value with wild cards, at worst."""


def memory_ceiling_bytes(settings: Settings) -> int:
    """The most memory that peers can make this process hold, all of them at their worst at once.

    Of a whole request that was accepted its texts may stay; of the commands, those that wait and the one that
    makes reading stop, one in pieces, and what was read behind it. The operation that is performed keeps
    either a header, which is copied to be packed; or an identifier, in pieces and whole, what is made of it,
    and a page of answers with the one that is being made; or pieces of an object that is sent. Of an object
    that is decoded there are a frame, the fragment behind it, the decoded frame, and what waits in pipes; of
    one that is re-encoded, a few pieces. Of one that is changed on arrival there are another header and what
    changes of it, pieces that are read back, and what the second writer holds. Small objects that wait for
    the index are whole in memory.
    """
    limits, query = settings.limits, settings.query
    outbound = (
        limits.max_associate_pdu_bytes
        + (DECODED_COMMAND_FACTOR + 1) * limits.max_command_bytes
        + READS_ALIVE * READ_BYTES
        + limits.send_buffer_bytes
        + SENDING_BYTES
        + ASSOCIATION_OBJECTS_BYTES
        + REENCODING_BYTES
    )
    commands = (limits.max_pending_operations + 1) * DECODED_COMMAND_FACTOR + 1
    changing = (
        3 * limits.max_header_bytes
        + limits.max_indexed_elements * INDEXED_ELEMENT_BYTES
        + settings.storage.write_buffer_bytes
        + 2 * READ_PIECE_BYTES
        + REENCODING_BYTES
    )
    storing = 2 * limits.max_header_bytes + limits.max_indexed_elements * INDEXED_ELEMENT_BYTES
    querying = (
        2 * query.max_identifier_bytes
        + query.max_values * QUERY_VALUE_BYTES
        + query.max_wildcard_bytes * QUERY_WILDCARD_FACTOR
        + MAX_PAGE_ANSWER_BYTES
        + 2 * limits.max_header_bytes
    )
    per_association = (
        limits.max_associate_pdu_bytes
        + commands * limits.max_command_bytes
        + READS_ALIVE * READ_BYTES
        + max(storing, querying, SENDING_BYTES + REENCODING_BYTES)
        + limits.send_buffer_bytes
        + ASSOCIATION_OBJECTS_BYTES
    )
    return (
        KEPT_ALIVE_AT_MOST * limits.process_buffer_bytes
        + limits.half_open_buffer_bytes
        + settings.retrieve.max_waiting_suboperations * SUB_OPERATION_BYTES
        + limits.max_associations * per_association
        + settings.most_outbound_associations * outbound
        + settings.codecs.max_objects * 4 * settings.codecs.max_frame_bytes
        + limits.max_changed_objects * changing
        + (settings.storage.max_unsettled_bytes if build_unsettled_limits(settings).object_bytes else 0)
    )
