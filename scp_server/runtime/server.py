"""The server as one object: started, ready, drained, stopped."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from scp_server.errors import ConfigurationError
from scp_server.index.base import Index
from scp_server.net.listener import Listener, bind_shared, bound_addresses
from scp_server.objects.dictionary import sequence_tags
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import Measures
from scp_server.observability.rates import Rates
from scp_server.pipeline.instances import Archive, StoredFiles
from scp_server.pipeline.log_reader import LogReader
from scp_server.pipeline.sending import Source
from scp_server.runtime.acceptor import Acceptor
from scp_server.runtime.build import (
    build_callbacks,
    build_index,
    build_quarantine,
    build_storage,
    build_storage_service_config,
    build_unsettled_limits,
    build_validator,
)
from scp_server.runtime.control import ControlConfig, ControlServer
from scp_server.runtime.control_commands import callback_commands, outbox_commands, quarantine_commands
from scp_server.runtime.delivering import Deliveries
from scp_server.runtime.findings_commands import findings_commands
from scp_server.runtime.maintenance.adoption import Adopter
from scp_server.runtime.maintenance.commands import MaintenanceCommands
from scp_server.runtime.maintenance.comparison import Comparison
from scp_server.runtime.maintenance.deletion import Deletions
from scp_server.runtime.process import DataFolderLock, raise_descriptor_limit
from scp_server.runtime.recovery import recover
from scp_server.runtime.reload import Change, reloadable_changes
from scp_server.runtime.rules import Rules
from scp_server.runtime.scans import scan_commands
from scp_server.runtime.settling import Settler, settle_left_over
from scp_server.runtime.sight import Sight
from scp_server.runtime.status import StatusReporter
from scp_server.runtime.systemd import InheritedSockets
from scp_server.runtime.workers.desk import Desk
from scp_server.runtime.workers.group import Workers
from scp_server.runtime.workers.shares import ceiling_of_all_bytes, share_of
from scp_server.runtime.workers.worker_process import Inheritance, WorkerProcess
from scp_server.services.release import QuarantineRelease
from scp_server.services.reports import DetectorReports
from scp_server.services.storage import ArrivalClock
from scp_server.services.unsettled import UnsettledObjects
from scp_server.services.validation import StoredValidation
from scp_server.settings import Settings
from scp_server.storage.base import Storage
from scp_server.storage.pruning import PruneCounts
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

    def __init__(
        self,
        settings: Settings,
        sockets: InheritedSockets | None = None,
        *,
        callbacks: Sequence[object] = (),
    ) -> None:
        """`callbacks` are functions decorated with `@callback`, beside those of plug-ins. `sockets` that were
        opened for us take the place of `listen` and `http`, and are the server's. Raises ConfigurationError.
        """
        sockets = sockets or InheritedSockets()
        self.settings = settings
        self.health = HealthState()
        self._lock = DataFolderLock(settings.data_dir)
        self._prunes = PruneCounts(settings.workers) if settings.workers > 1 else None
        self._storage = build_storage(settings, prunes=self._prunes)
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
        self._validator = build_validator(settings, self._measures)
        config = build_storage_service_config(settings)
        self._adopter = Adopter(
            self._storage,
            self._index,
            config.tap_limits,
            self._deletions,
            self._not_yet_indexed,
            StoredValidation(self._validator, config.validation),
        )
        self._workers = Workers(settings, self._start_worker, self._recover_from, self._measures.workers)
        if callbacks and settings.workers > 1:
            raise ConfigurationError(
                "callbacks: functions that are given as an argument are called by one worker only; name them "
                "in plugins, from where every one of several workers loads them"
            )
        self._callbacks = build_callbacks(settings, self._measures, callbacks)
        self._acceptor = Acceptor(
            share_of(settings, 0),
            self._storage,
            self._index,
            self._measures,
            self._quarantine,
            self._deletions,
            self._callbacks,
            ArrivalClock(self._workers.new_name()),
            unsettled=self._unsettled,
            validator=self._validator,
        )
        self._release = QuarantineRelease(self._quarantine, self._acceptor.service)
        self._reports = DetectorReports(self._index, self._acceptor.service, settings.listen.ae_title)
        source = Source(self._storage, self._acceptor.transcoder)
        self._rules = Rules(source, self._index, self._acceptor.destinations, self._measures)
        self._deliveries = Deliveries(settings, self._index.event_log, self._measures.outbox)
        self._manager = self._acceptor.manager
        rates = Rates(self._measures.operations, time.monotonic)
        self._sight = Sight(
            self._measures,
            self.health,
            self._manager,
            self._storage,
            self._quarantine,
            rates,
            self._workers,
            settings.workers,
        )
        status = StatusReporter(settings, self._manager, rates, self._index, self._quarantine, self._statuses)
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
                **callback_commands(self._callbacks.registry),
                **outbox_commands(self._deliveries.desk),
                **quarantine_commands(self._quarantine, self._release),
                **findings_commands(self._index),
                **maintenance.commands,
                **scan_commands(self._index.event_log),
            },
            maintenance.long_commands,
        )
        self._inherited = sockets.dicom
        self._listener = Listener(self._manager, settings.listen.host, settings.listen.port)
        self._reloading: asyncio.Task[None] | None = None
        routes = [metrics_route(self._sight.scrape)]
        if settings.events.max_followers:
            routes.append(self._deliveries.followers.route)
        app = health_app(self.health, *routes)
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
        rules = self._rules.prepare(settings)
        if self._prunes is not None:
            self._prunes.open()
            running.callback(self._prunes.close)
            running.push_async_callback(self._workers.stop)
            await self._workers.start()
        await self._storage.open()
        running.push_async_callback(self._storage.close)
        await self._quarantine.open()
        running.push_async_callback(self._quarantine.close)
        await self._index.open()
        running.push_async_callback(self._index.close)
        running.callback(self._validator.close)
        running.push_async_callback(self._acceptor.transcoder.close)
        running.push_async_callback(self._acceptor.destinations.close)
        self._rules.take(rules)
        running.push_async_callback(self._rules.close)
        await self._callbacks.start()
        running.push_async_callback(self._callbacks.close)
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
            validator=self._validator,
        )
        self._settler.start()
        running.push_async_callback(self._settler.stop)
        await self._deliver()
        self._sight.start()
        running.push_async_callback(self._sight.stop)
        await self._control.start()
        running.push_async_callback(self._control.stop)
        self._http_address = await self._http.start()
        running.push_async_callback(self._http.stop)
        running.push_async_callback(self._deliveries.followers.close)
        started_at_ns = time.time_ns()
        await self._listen()
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
            memory_ceiling_bytes=ceiling_of_all_bytes(settings) + self._deliveries.ceiling_bytes,
            workers=settings.workers,
            next_step=f"scp-server store --port {self._address[1]} --input FILE_OR_FOLDER",
        )
        if missing := self._acceptor.transcoder.missing:
            log.info("codecs.missing", hint=missing)
        if not _is_loopback(self._address[0]) and not settings.access.known_peers_only:
            log.warning(
                "server.open_to_network",
                dicom_host=self._address[0],
                hint="whoever reaches this address and is none of the peers may do everything; to let in "
                "known peers only, write write_lines to the settings file, with their titles and addresses",
                write_lines=KNOWN_PEERS_LINES,
            )
        if not _is_loopback(self._http_address[0]) and settings.events.admits_anybody:
            log.warning(
                "events.open_to_network",
                http_host=self._http_address[0],
                hint="whoever reaches this address may follow GET /events and learns UIDs and AE titles; set "
                "events.token or events.token_file, or events.max_followers = 0",
            )

    async def _listen(self) -> None:
        """Bind, and have all workers do so, then accept.

        Last, for whoever is let in now stays: nothing may fail after it.
        """
        listen, running = self.settings.listen, self._running
        bound = [] if self._inherited is None else [self._inherited]
        if self._prunes is not None and self._inherited is None:
            bound = await bind_shared(listen.host, listen.port)
            for each in bound:
                running.callback(each.close)
        self._listener = Listener(self._manager, listen.host, listen.port, bound)
        await self._workers.prepare(() if self._inherited else bound_addresses(bound))
        self._address = await self._listener.start()
        running.push_async_callback(self._listener.stop)
        await self._workers.accept()

    async def _deliver(self) -> None:
        """Once all that a crash left is in the index, and before anything else is."""
        archive = Archive(self._storage, StoredFiles(self.settings.data_dir))
        events = LogReader(self._index.event_log)
        callbacks = self._callbacks.subscribers(archive, events, self._reports)
        await self._deliveries.start(tuple(self._rules.subscribers.values()), callbacks)
        self._running.push_async_callback(self._deliveries.stop)

    def reload(self, settings: Settings) -> list[Change]:
        """Take over other settings for the associations that come, all or none; returns what changed.

        Raises SettingsError naming each key that cannot change while the server runs, or ConfigurationError;
        then everything stays as it was.
        """
        changed = reloadable_changes(self.settings, settings)
        if not changed:
            return []
        _raise_descriptor_limit(settings)
        rules = self._rules.prepare(settings)
        self._acceptor.reload(share_of(settings, 0))
        self._rules.take(rules)
        self._deliveries.reload(tuple(rules.values()))
        self._release.service = self._reports.service = self._acceptor.service
        config = build_storage_service_config(settings)
        self._adopter.limits = config.tap_limits
        self._adopter.validation = StoredValidation(self._validator, config.validation)
        self.settings = settings
        if settings.workers > 1:
            before = self._reloading
            self._reloading = asyncio.create_task(self._reload_workers(before), name="workers.reload")
        return changed

    async def reloaded(self) -> None:
        """Wait until all workers have what `reload` gave them; those that cannot take it are replaced."""
        if self._reloading is not None:
            await asyncio.wait({self._reloading})

    async def _reload_workers(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        await self._workers.reload(self.settings)

    # -- what workers need

    async def _start_worker(self, number: int, writer: str) -> WorkerProcess:
        if self._prunes is None:
            raise RuntimeError("a lone worker starts no others")
        listening = -1 if self._inherited is None else self._inherited.fileno()
        inheritance = Inheritance(self._prunes.descriptor, self._lock.descriptor, listening)
        desk = Desk(self._manager, self._deletions, self._quarantine.book)
        return await WorkerProcess.start(number, writer, desk, self._index, inheritance)

    async def _not_yet_indexed(self, locations: Sequence[str]) -> set[str]:
        return await self._storage.not_yet_indexed(locations) | await self._workers.not_yet_indexed(locations)

    async def _statuses(self) -> tuple[list[dict[str, Any]], dict[str, int]]:
        return await self._workers.statuses(), self._workers.departed_totals

    async def _recover_from(self, writer: str) -> None:
        """Deal with what a worker that ended has left. Raises an SCPServerError; it may be done again."""
        await self._storage.take_over(writer)
        await self._quarantine.take_over(writer)
        config = build_storage_service_config(self.settings)
        async with self._adopter.turn:
            await recover(
                self._storage,
                self._index,
                config,
                self._deletions,
                self._quarantine,
                self._adopter.orphans_among,
                self._validator,
            )
        if self._index.event_log.keeps:
            await self._index.event_log.end_open_associations(f"{writer}-")

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
        await self.reloaded()
        seconds = self.settings.drain_timeout_seconds
        clean, others_clean = await asyncio.gather(
            self._manager.drain(seconds), self._workers.drain(seconds, self.settings.close_timeout_seconds)
        )
        clean = clean and others_clean
        await self._workers.stop()
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
