"""The server as one object: started, ready, drained, stopped."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from scp_server.errors import ConfigurationError, IndexFailure, SCPServerError, StorageError
from scp_server.index.base import Index
from scp_server.net.listener import Listener
from scp_server.objects.dictionary import sequence_tags
from scp_server.observability.logs import configure_logging, get_logger
from scp_server.runtime.build import (
    build_index,
    build_manager,
    build_storage,
    build_storage_service_config,
    memory_ceiling_bytes,
)
from scp_server.runtime.maintenance.comparison import Comparison
from scp_server.runtime.maintenance.deletion import finish_deletions
from scp_server.runtime.process import DataFolderLock, raise_descriptor_limit
from scp_server.runtime.recovery import recover
from scp_server.settings import Settings
from scp_server.web.health import HealthState, health_app
from scp_server.web.server import HttpServer

log = get_logger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIGURATION = 2


class Server:
    """A DICOM and DICOS server in the current event loop.

    ::

        async with Server(Settings(listen={"port": 0}, data_dir="/data")) as server:
            print(server.address)

    Leaving the block drains: operations that run may end, within `drain_timeout_seconds`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.health = HealthState()
        self._lock = DataFolderLock(settings.data_dir)
        self._storage = build_storage(settings)
        self._index = build_index(settings)
        self._manager = build_manager(settings, self._storage, self._index)
        self._listener = Listener(self._manager, settings.listen.host, settings.listen.port)
        self._http = HttpServer(settings.http.host, settings.http.port, health_app(self.health))
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
        """Host and port of `/healthz` and `/readyz`."""
        return self._http_address

    @property
    def index(self) -> Index:
        """What is kept, for asking."""
        return self._index

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
        descriptors = raise_descriptor_limit(settings.limits.max_connections)
        self._lock.acquire()
        running.callback(self._lock.release)
        await self._storage.open()
        running.push_async_callback(self._storage.close)
        await self._index.open()
        running.push_async_callback(self._index.close)
        # A tenth of a second, which the first object in implicit VR would cost everybody.
        await asyncio.to_thread(sequence_tags, True)
        # Before anything is adopted: what was to be deleted is no orphan.
        await finish_deletions(settings.data_dir, self._storage, self._index)
        await recover(self._storage, self._index, build_storage_service_config(settings))
        self._http_address = await self._http.start()
        running.push_async_callback(self._http.stop)
        started_at_ns = time.time_ns()
        # Last, for whoever is let in now stays: nothing may fail after it.
        self._address = await self._listener.start()
        running.push_async_callback(self._listener.stop)
        self._serving = True
        if settings.index.compare_at_start:
            self._compare(started_at_ns)
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
        if not _is_loopback(settings.listen.host):
            log.warning(
                "server.open_to_network",
                dicom_host=self._address[0],
                hint="anyone who reaches this address may store; neither TLS nor access rules exist yet",
            )

    def _compare(self, started_at_ns: int) -> None:
        """Compare storage and index in a task of its own, until it has ended or the server stops."""
        comparison = Comparison(
            self._storage,
            self._index,
            build_storage_service_config(self.settings).tap_limits,
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


async def serve(settings: Settings) -> int:
    """Run a server until SIGTERM or SIGINT; a second signal ends the process. Returns the exit code."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def signalled(number: signal.Signals) -> None:
        if stopping.is_set():
            log.warning("server.killed", signal=number.name)
            os._exit(EXIT_FAILED)
        log.info("server.stopping", signal=number.name)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled, number)
    try:
        server = Server(settings)
        await server.start()
    except (ConfigurationError, IndexFailure, StorageError) as error:
        log.critical("server.not_started", error=str(error))
        return EXIT_CONFIGURATION
    await stopping.wait()
    try:
        await server.stop()
    except SCPServerError as error:
        log.critical("server.stop_failed", error=str(error))
        return EXIT_FAILED
    return EXIT_OK


def run(settings: Settings) -> int:
    """`serve` in an event loop of its own, uvloop's where there is one."""
    configure_logging(settings.log.format, settings.log.level)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(serve(settings))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
