"""The server as one object: started, ready, drained, stopped."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from scp_server.index.base import Index
from scp_server.net.association_manager import AssociationManager
from scp_server.net.listener import Listener
from scp_server.objects.dictionary import sequence_tags
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import Measures
from scp_server.observability.rates import Rates
from scp_server.runtime.build import (
    build_destinations,
    build_destinations_config,
    build_index,
    build_manager,
    build_quarantine,
    build_storage,
    build_storage_service,
    build_storage_service_config,
    build_transcoder,
    build_unsettled_limits,
    memory_ceiling_bytes,
)
from scp_server.runtime.control import ControlConfig, ControlServer
from scp_server.runtime.control_commands import quarantine_commands
from scp_server.runtime.maintenance.adoption import Adopter
from scp_server.runtime.maintenance.commands import MaintenanceCommands
from scp_server.runtime.maintenance.comparison import Comparison
from scp_server.runtime.maintenance.deletion import Deletions
from scp_server.runtime.process import DataFolderLock, raise_descriptor_limit
from scp_server.runtime.recovery import recover
from scp_server.runtime.reload import Change, reloadable_changes
from scp_server.runtime.settling import Settler, settle_left_over
from scp_server.runtime.sight import Sight
from scp_server.runtime.status import StatusReporter
from scp_server.runtime.systemd import InheritedSockets
from scp_server.services.release import QuarantineRelease
from scp_server.services.storage import StorageService
from scp_server.services.unsettled import UnsettledObjects
from scp_server.settings import Settings
from scp_server.storage.base import Storage
from scp_server.storage.template import LayoutTemplate
from scp_server.web.health import HealthState, health_app
from scp_server.web.metrics import metrics_route
from scp_server.web.server import HttpServer

log = get_logger(__name__)

KNOWN_PEERS_LINES = (
    "[access]",
    "known_peers_only = true",
    "[[peers]]",
    "ae_title = 'CT1'",
    "address = '192.0.2.10'",
    "allow = ['echo', 'store']",
)
"""TOML, in quotes that a log does not escape: what is told to whom opened the server to a network."""


class Server:
    """A DICOM and DICOS server in the current event loop.

    ::

        async with Server(Settings(listen={"port": 0}, data_dir="/data")) as server:
            print(server.address)

    Leaving the block drains: operations that run may end, within `drain_timeout_seconds`.
    """

    def __init__(self, settings: Settings, sockets: InheritedSockets | None = None) -> None:
        """`sockets` that were opened for us take the place of `listen` and `http`, and are the server's."""
        sockets = sockets or InheritedSockets()
        self.settings = settings
        self.health = HealthState()
        self._lock = DataFolderLock(settings.data_dir)
        self._storage = build_storage(settings)
        self._measures = Measures()
        self._index = build_index(settings, self._measures)
        self._quarantine = build_quarantine(settings, self._storage, self._measures)
        self._deletions = Deletions(settings.data_dir, self._storage, self._index)
        self._unsettled = UnsettledObjects(build_unsettled_limits(settings), self._measures.settling)
        self._settler = Settler(
            self._storage,
            self._index,
            self._unsettled,
            settle_seconds=settings.storage.settle_seconds,
            measures=self._measures.settling,
        )
        limits = build_storage_service_config(settings).tap_limits
        self._adopter = Adopter(self._storage, self._index, limits, self._deletions)
        service = self._build_storage_service(settings)
        self._release = QuarantineRelease(self._quarantine, service)
        self._destinations = build_destinations(settings, self._measures)
        self._transcoder = build_transcoder(settings, self._measures)
        self._manager = self._build_manager(settings, service)
        rates = Rates(self._measures.operations, time.monotonic)
        self._sight = Sight(
            self._measures, self.health, self._manager, self._storage, self._quarantine, rates
        )
        status = StatusReporter(settings, self._manager, rates, self._index, self._quarantine)
        maintenance = MaintenanceCommands(
            self._storage,
            self._index,
            self._deletions,
            self._adopter,
            objects_per_second=settings.index.compare_objects_per_second,
        )
        self._control = ControlServer(
            settings.data_dir,
            ControlConfig(
                max_connections=settings.control.max_connections,
                max_request_bytes=settings.control.max_request_bytes,
                request_seconds=settings.control.request_seconds,
                command_seconds=settings.control.command_seconds,
            ),
            {
                "status": status.report,
                **quarantine_commands(self._quarantine, self._release),
                **maintenance.commands,
            },
            maintenance.long_commands,
        )
        self._listener = Listener(self._manager, settings.listen.host, settings.listen.port, sockets.dicom)
        app = health_app(self.health, metrics_route(self._sight.scrape))
        self._http = HttpServer(settings.http.host, settings.http.port, app, inherited=sockets.http)
        self._address: tuple[str, int] = ("", 0)
        self._http_address: tuple[str, int] = ("", 0)
        self._started = False
        self._serving = False
        self._running = AsyncExitStack()
        """What is to be closed, the last opened first, each whether or not another fails."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that DICOM associations are accepted on."""
        return self._address

    @property
    def http_address(self) -> tuple[str, int]:
        """Host and port of `/healthz`, `/readyz` and `/metrics`."""
        return self._http_address

    @property
    def index(self) -> Index:
        """What is kept, for asking."""
        return self._index

    @property
    def storage(self) -> Storage:
        """Where it is kept, for reading."""
        return self._storage

    async def start(self) -> None:
        """Open storage and index, heal what a crash left, listen. Once.

        Raises ConfigurationError, StorageError or IndexFailure; then nothing is left open.
        """
        if self._started:
            raise RuntimeError("a server is started once")
        self._started = True
        try:
            await self._start()
        except BaseException:
            await self._running.aclose()
            raise

    async def _start(self) -> None:
        settings, running = self.settings, self._running
        descriptors = _raise_descriptor_limit(settings)
        self._lock.acquire()
        running.callback(self._lock.release)
        await self._storage.open()
        running.push_async_callback(self._storage.close)
        await self._quarantine.open()
        running.push_async_callback(self._quarantine.close)
        await self._index.open()
        running.push_async_callback(self._index.close)
        running.push_async_callback(self._transcoder.close)
        running.push_async_callback(self._destinations.close)
        # A tenth of a second, which the first object in implicit VR would cost everybody.
        await asyncio.to_thread(sequence_tags, True)
        # Before anything is adopted: what was to be deleted is no orphan.
        await self._deletions.open()
        running.push_async_callback(self._deletions.stop)
        self._settler.doubt((await settle_left_over(self._storage, self._index)).failed)
        await recover(
            self._storage,
            self._index,
            build_storage_service_config(settings),
            self._deletions,
            self._quarantine,
        )
        self._settler.start()
        running.push_async_callback(self._settler.stop)
        self._sight.start()
        running.push_async_callback(self._sight.stop)
        await self._control.start()
        running.push_async_callback(self._control.stop)
        self._http_address = await self._http.start()
        running.push_async_callback(self._http.stop)
        started_at_ns = time.time_ns()
        # Last, for whoever is let in now stays: nothing may fail after it.
        self._address = await self._listener.start()
        running.push_async_callback(self._listener.stop)
        self._serving = True
        if settings.index.compare_at_start:
            self._compare(started_at_ns)
        self._deletions.resume()
        self.health.ready()
        log.info(
            "server.ready",
            pid=os.getpid(),
            ae_title=settings.listen.ae_title,
            dicom_host=self._address[0],
            dicom_port=self._address[1],
            http_host=self._http_address[0],
            http_port=self._http_address[1],
            data_dir=str(settings.data_dir.absolute()),
            durability=settings.storage.durability,
            open_files_limit=descriptors,
            memory_ceiling_bytes=memory_ceiling_bytes(settings),
            next_step=f"scp-server store --port {self._address[1]} --input FILE_OR_FOLDER",
        )
        if self._transcoder.missing:
            log.info("codecs.missing", hint=self._transcoder.missing)
        if not _is_loopback(self._address[0]) and not settings.access.known_peers_only:
            log.warning(
                "server.open_to_network",
                dicom_host=self._address[0],
                hint="whoever reaches this address and is none of the peers may do everything; to let in "
                "known peers only, write write_lines to the settings file, with their titles and addresses",
                write_lines=KNOWN_PEERS_LINES,
            )

    def reload(self, settings: Settings) -> list[Change]:
        """Take over other settings for the associations that come, all or none; returns what changed.

        Raises SettingsError naming each key that cannot change while the server runs, or ConfigurationError;
        then everything stays as it was.
        """
        changed = reloadable_changes(self.settings, settings)
        if not changed:
            return []
        _raise_descriptor_limit(settings)
        service = self._build_storage_service(settings)
        fresh = self._build_manager(settings, service)
        self._manager.reconfigure(fresh.config, fresh.services)
        self._destinations.reconfigure(build_destinations_config(settings))
        self._release.service = service
        self._adopter.limits = build_storage_service_config(settings).tap_limits
        self._storage.layout = LayoutTemplate(settings.storage.layout)
        self.settings = settings
        return changed

    def _build_manager(self, settings: Settings, service: StorageService) -> AssociationManager:
        return build_manager(
            settings,
            self._storage,
            self._index,
            self._measures,
            service,
            self._destinations,
            self._transcoder,
        )

    def _build_storage_service(self, settings: Settings) -> StorageService:
        return build_storage_service(
            settings,
            self._storage,
            self._index,
            self._measures,
            self._quarantine,
            self._deletions,
            self._unsettled,
        )

    def _compare(self, started_at_ns: int) -> None:
        """Compare storage and index in a task of its own, until it has ended or the server stops."""
        comparison = Comparison(
            self._storage,
            self._index,
            self._adopter,
            objects_per_second=self.settings.index.compare_objects_per_second,
            started_at_ns=started_at_ns,
        )
        task = asyncio.create_task(comparison.run(), name="runtime.compare")

        async def end() -> None:
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("archive.not_compared", error=str(error))

        self._running.push_async_callback(end)

    async def stop(self) -> bool:
        """Drain and close; returns whether every operation ended by itself. A second time does nothing.

        Cancelled while it drains, it leaves the server open, to be stopped again.
        """
        if not self._serving:
            return True
        self.health.not_ready("the server stops")
        await self._listener.stop()
        clean = await self._manager.drain(self.settings.drain_timeout_seconds)
        self._serving = False
        await self._running.aclose()
        log.info("server.stopped", clean=clean)
        return clean

    async def __aenter__(self) -> Self:
        """`start`."""
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """`stop`."""
        await self.stop()


def _raise_descriptor_limit(settings: Settings) -> int:
    limits = settings.limits
    return raise_descriptor_limit(
        limits.max_connections, limits.max_associations, settings.most_outbound_associations
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
