"""The server as the process: signals, exit codes, and what systemd is told."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from scp_server.errors import ConfigurationError, IndexFailure, SCPServerError, StorageError
from scp_server.observability.logs import configure_logging, get_logger
from scp_server.runtime.loop import collector_at_ease, loop_factory
from scp_server.runtime.reload import reload
from scp_server.runtime.server import Server
from scp_server.runtime.systemd import Notifier, inherited_sockets
from scp_server.settings import Settings

log = get_logger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIGURATION = 2

_REJECTED = "; the last reload was rejected, see the log"

Load = Callable[[], Settings]


async def serve(settings: Settings, load: Load | None = None) -> int:
    """Run a server until SIGTERM or SIGINT; a second signal ends the process. Returns the exit code.

    At SIGHUP the settings that `load` returns are taken over; without `load` the signal is left alone.
    """
    notifier = Notifier(os.environ)
    try:
        return await _serve(settings, load, notifier)
    finally:
        notifier.close()


async def _serve(settings: Settings, load: Load | None, notifier: Notifier) -> int:
    loop = asyncio.get_running_loop()
    stopping, hangup = asyncio.Event(), asyncio.Event()

    def signalled(number: signal.Signals) -> None:
        if stopping.is_set():
            log.warning("server.killed", signal=number.name)
            os._exit(EXIT_FAILED)
        log.info("server.stopping", signal=number.name)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled, number)
    if load is not None:
        # From the beginning: a SIGHUP before the server is ready must not end the process.
        loop.add_signal_handler(signal.SIGHUP, hangup.set)
    try:
        sockets = inherited_sockets(os.environ)
        try:
            server = Server(settings, sockets)
            await server.start()
        except BaseException:
            sockets.close()
            raise
    except (ConfigurationError, IndexFailure, StorageError) as error:
        log.critical("server.not_started", error=str(error))
        notifier.status(f"Not started: {error}")
        return EXIT_CONFIGURATION
    with collector_at_ease():
        notifier.ready(_running(server))
        notifier.feed_watchdog()
        reloads = asyncio.create_task(_reload_at(hangup, server, load, notifier), name="settings reload")
        await stopping.wait()
        reloads.cancel()
        await asyncio.wait({reloads})
        notifier.stopping("Ending what runs")
        return await _stop(server)


async def _stop(server: Server) -> int:
    """Stop within the times that the settings give; returns the exit code.

    Threads that wait for a disk cannot be ended, and would keep the process from ending: it does without.
    """
    settings = server.settings
    seconds = settings.drain_timeout_seconds + settings.close_timeout_seconds
    ending = asyncio.create_task(server.stop(), name="server stop")
    await asyncio.wait({ending}, timeout=seconds)
    if not ending.done():
        log.critical(
            "server.stop_failed",
            error=f"storage or index did not close within {seconds:g} s: their disk does not answer",
        )
        os._exit(EXIT_FAILED)
    try:
        ending.result()
    except SCPServerError as error:
        log.critical("server.stop_failed", error=str(error))
        return EXIT_FAILED
    return EXIT_OK


async def _reload_at(hangup: asyncio.Event, server: Server, load: Load | None, notifier: Notifier) -> None:
    """Reload whenever `hangup` is set, one after another; several signals at once are one."""
    while load is not None:
        await hangup.wait()
        hangup.clear()
        notifier.reloading()
        taken_over = await reload(server, load)
        notifier.ready(_running(server) + ("" if taken_over else _REJECTED))


def _running(server: Server) -> str:
    (host, port), (http_host, http_port) = server.address, server.http_address
    return f"Accepting DICOM on {host} port {port}, HTTP on {http_host} port {http_port}"


def run(settings: Settings, load: Load | None = None) -> int:
    """`serve` in an event loop of its own, uvloop's where there is one."""
    configure_logging(settings.log.format, settings.log.level, worker=0 if settings.workers > 1 else None)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(serve(settings, load))
