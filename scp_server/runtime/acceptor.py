"""What lets associations in and performs what they ask for: the part of a server that each worker has."""

from __future__ import annotations

from scp_server.index.store import SqlIndex
from scp_server.net.places import Grants
from scp_server.observability.measures import Measures
from scp_server.pipeline.association_log import AssociationLog
from scp_server.pipeline.callbacks import ActiveCallbacks
from scp_server.runtime.build import (
    build_destinations,
    build_destinations_config,
    build_manager,
    build_storage_service,
    build_transcoder,
)
from scp_server.services.storage import ArrivalClock, Deletions, StorageService
from scp_server.services.unsettled import UnsettledObjects
from scp_server.services.validation import Validator
from scp_server.settings import Settings
from scp_server.storage.filesystem import FilesystemStorage
from scp_server.storage.quarantine import Quarantine
from scp_server.storage.template import LayoutTemplate


class Acceptor:
    """The association manager with its services, over a storage and an index that others open and close.

    `settings` are those of this worker; `arrivals` and `grants` are its own where there are several.
    `unsettled` is for who settles it. `validator` is closed by whoever made it.
    """

    def __init__(
        self,
        settings: Settings,
        storage: FilesystemStorage,
        index: SqlIndex,
        measures: Measures,
        quarantine: Quarantine,
        deletions: Deletions,
        callbacks: ActiveCallbacks | None = None,
        arrivals: ArrivalClock | None = None,
        grants: Grants | None = None,
        unsettled: UnsettledObjects | None = None,
        validator: Validator | None = None,
    ) -> None:
        self._validator = validator
        self._storage = storage
        self._index = index
        self._measures = measures
        self._quarantine = quarantine
        self._deletions = deletions
        self._callbacks = callbacks
        self._arrivals = arrivals or ArrivalClock()
        self._grants = grants
        self._unsettled = unsettled
        self.destinations = build_destinations(settings, measures)
        self.transcoder = build_transcoder(settings, measures)
        self.service = self._build_service(settings)
        """What performs C-STORE; another one after `reload`."""
        following = callbacks if callbacks is not None and callbacks.listens else None
        self.manager = build_manager(
            settings,
            storage,
            index,
            measures,
            self.service,
            self.destinations,
            self.transcoder,
            grants,
            AssociationLog(index.event_log, following),
        )
        # So that whoever recovers what this worker leaves knows its associations.
        self.manager.id_prefix = self._arrivals.writer

    def _build_service(self, settings: Settings) -> StorageService:
        return build_storage_service(
            settings,
            self._storage,
            self._index,
            self._measures,
            self._quarantine,
            self._deletions,
            self._callbacks,
            self._arrivals,
            self._unsettled,
            self._validator,
        )

    def reload(self, settings: Settings) -> None:
        """Take over other settings for the associations that come. Raises ConfigurationError; then everything
        stays as it was."""
        service = self._build_service(settings)
        fresh = build_manager(
            settings,
            self._storage,
            self._index,
            self._measures,
            service,
            self.destinations,
            self.transcoder,
        )
        destinations = build_destinations_config(settings)
        self.manager.reconfigure(fresh.config, fresh.services)
        self.destinations.reconfigure(destinations)
        self.service = service
        self._storage.layout = LayoutTemplate(settings.storage.layout)
