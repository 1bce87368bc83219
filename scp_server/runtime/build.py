"""From settings to components. The only place where every room is known at once.

To add a DIMSE service: write its module in `services/`, register an instance in `build_services`, and name
its SOP classes in `build_policy`.
"""

from __future__ import annotations

from pathlib import Path

from scp_server.index.base import DuplicatePolicy
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.interfaces import DicosMode, PeerRules
from scp_server.net.access import AccessRules, PeerEntry, PeerService, parse_network
from scp_server.net.association_manager import AcceptorConfig, AssociationManager
from scp_server.net.association_transport import TransportConfig
from scp_server.objects.header_tap import TapLimits
from scp_server.observability.measures import Measures
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import VERIFICATION_SOP_CLASS_UID
from scp_server.protocol.negotiation import NegotiationPolicy
from scp_server.services.registry import ServiceRegistry
from scp_server.services.storage import StorageService, StorageServiceConfig
from scp_server.services.storage_classes import StorageSOPClasses, standard_storage_sop_classes
from scp_server.services.verification import VerificationService
from scp_server.settings import Settings
from scp_server.storage.base import SettingAside, Storage
from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.storage.quarantine import Quarantine, QuarantineConfig
from scp_server.storage.template import LayoutTemplate


def index_path(settings: Settings) -> Path:
    """Where the index of the data folder lies."""
    return settings.data_dir / "index" / "index.sqlite"


def build_storage(settings: Settings, *, keep_part_files: bool = False) -> FilesystemStorage:
    """The storage of the data folder."""
    return FilesystemStorage(
        FilesystemStorageConfig(
            root=settings.data_dir,
            durability=Durability(settings.storage.durability),
            reserve_bytes=settings.storage.reserve_bytes,
            write_buffer_bytes=settings.storage.write_buffer_bytes,
            threads=settings.storage.threads,
            layout=LayoutTemplate(settings.storage.layout),
            keep_part_files=keep_part_files,
        )
    )


def build_index(settings: Settings, measures: Measures | None = None) -> SqlIndex:
    """The index in the data folder."""
    return SqlIndex(
        IndexConfig(
            path=index_path(settings),
            synchronous_full=settings.storage.durability == "full",
            max_batch=settings.index.max_batch,
            max_queue=settings.index.max_queue,
            busy_timeout_seconds=settings.index.busy_timeout_seconds,
        ),
        measures.index if measures else None,
    )


def build_quarantine(settings: Settings, storage: SettingAside | None) -> Quarantine:
    """The quarantine of the data folder; without a storage it only looks and drops."""
    return Quarantine(
        QuarantineConfig(
            root=settings.data_dir,
            durable=settings.storage.durability == "full",
            max_bytes=settings.quarantine.max_bytes,
            max_objects=settings.quarantine.max_objects,
        ),
        storage,
    )


def build_storage_service(
    settings: Settings,
    storage: Storage,
    index: SqlIndex,
    measures: Measures | None = None,
    quarantine: Quarantine | None = None,
) -> StorageService:
    """What performs C-STORE, and stores again what is released."""
    return StorageService(
        storage,
        index,
        build_storage_service_config(settings),
        (measures or Measures()).reception,
        quarantine,
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
        ),
        header_buffer_bytes=limits.header_buffer_bytes,
        max_object_bytes=limits.max_object_bytes,
        duplicates=DuplicatePolicy(settings.storage.duplicates),
        dicos_duplicates=DuplicatePolicy(settings.storage.dicos_duplicates),
    )


def build_limits(settings: Settings) -> Limits:
    """The bounds of one association."""
    limits, timeouts = settings.limits, settings.timeouts
    return Limits(
        max_pdu_bytes=limits.max_pdu_bytes,
        max_associate_pdu_bytes=limits.max_associate_pdu_bytes,
        max_command_bytes=limits.max_command_bytes,
        max_empty_fragments=limits.max_empty_fragments,
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
    additional = frozenset(settings.negotiation.additional_sop_classes)
    return NegotiationPolicy(
        application_context_names=frozenset(settings.negotiation.application_context_names),
        storage_sop_classes=standard_storage_sop_classes() | additional,
        any_sop_class=settings.negotiation.sop_classes == "any",
        service_sop_classes=frozenset({VERIFICATION_SOP_CLASS_UID}),
        transfer_syntaxes=tuple(settings.negotiation.transfer_syntax_uids),
        required_called_ae_titles=(
            frozenset({settings.listen.ae_title}) if settings.access.require_called_ae_title else frozenset()
        ),
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


def build_manager(
    settings: Settings,
    storage: Storage,
    index: SqlIndex,
    measures: Measures | None = None,
    storage_service: StorageService | None = None,
) -> AssociationManager:
    """Everything between the listening socket and the storage. `storage_service` is what performs C-STORE,
    where something else uses it too; without one there is no quarantine."""
    limits = settings.limits
    measures = measures or Measures()
    policy = build_policy(settings)
    services = ServiceRegistry()
    services.register(VerificationService(), {VERIFICATION_SOP_CLASS_UID})
    services.register(
        storage_service or build_storage_service(settings, storage, index, measures),
        StorageSOPClasses(policy),
    )
    return AssociationManager(
        AcceptorConfig(
            policy=policy,
            access=build_access(settings),
            limits=build_limits(settings),
            transport=TransportConfig(
                send_buffer_bytes=limits.send_buffer_bytes, write_seconds=settings.timeouts.write_seconds
            ),
            max_associations=limits.max_associations,
            max_associations_per_peer=limits.max_associations_per_peer,
            max_associations_per_address=limits.max_associations_per_address,
            max_connections=limits.max_connections,
            max_pending_operations=limits.max_pending_operations,
            association_buffer_bytes=limits.association_buffer_bytes,
            process_buffer_bytes=limits.process_buffer_bytes,
            half_open_buffer_bytes=limits.half_open_buffer_bytes,
        ),
        services,
        measures,
    )


def memory_ceiling_bytes(settings: Settings) -> int:
    """The most memory that peers can make this process hold, as the limits have it."""
    limits = settings.limits
    per_association = limits.max_command_bytes + limits.max_header_bytes + limits.send_buffer_bytes
    return (
        limits.process_buffer_bytes
        + limits.half_open_buffer_bytes
        + limits.max_associations * per_association
    )
