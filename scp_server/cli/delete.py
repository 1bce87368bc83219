"""`scp-server delete`, by the running server or in a folder that none runs on."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from scp_server.cli.control_client import running_server
from scp_server.cli.maintenance import load, progress_bar
from scp_server.cli.output import ExitCode, complain, say, say_json
from scp_server.errors import ConfigurationError, SCPServerError
from scp_server.observability.text import peer_text, printable

if TYPE_CHECKING:
    from scp_server.cli.control_client import ControlClient
    from scp_server.index.base import Scope
    from scp_server.runtime.maintenance.carrying_out import Removed
    from scp_server.runtime.maintenance.deletion_record import Extent
    from scp_server.settings import Settings


class _NotConfirmed(SCPServerError):
    """Whoever was asked said no."""


def run_delete(
    config: Path | None,
    data_dir: Path | None,
    *,
    study: str | None,
    series: str | None,
    instance: str | None,
    yes: bool,
    as_json: bool,
) -> ExitCode:
    """Delete, and tell what went. 1 when nothing lies there, or something could not be removed."""
    scope = uid_scope(study, series, instance)
    if not yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigurationError("nobody can be asked here: say --yes")
    settings = load(config, data_dir)
    with running_server(settings.data_dir) as server:
        if server is not None:
            return _delete_running(server, scope, yes=yes, as_json=as_json)
    return asyncio.run(_delete_offline(settings, scope, yes=yes, as_json=as_json))


def uid_scope(study: str | None, series: str | None, instance: str | None) -> Scope:
    """What the one of the options that is given means. Raises ConfigurationError."""
    from scp_server.index.base import Level, Scope
    from scp_server.objects.uids import clean_uid, is_valid_uid

    levels = {Level.STUDY: study, Level.SERIES: series, Level.INSTANCE: instance}
    given = [(level, uid) for level, uid in levels.items() if uid is not None]
    if len(given) != 1:
        raise ConfigurationError("give one of --study, --series and --instance")
    level, uid = given[0]
    uid = clean_uid(uid)
    if not is_valid_uid(uid):
        raise ConfigurationError(f"--{level.value}: {peer_text(uid)} is no UID")
    return Scope(level, uid)


async def _delete_offline(settings: Settings, scope: Scope, *, yes: bool, as_json: bool) -> ExitCode:
    from scp_server.runtime.build import build_index, index_path
    from scp_server.runtime.maintenance.carrying_out import Removed
    from scp_server.runtime.maintenance.deletion import Deletions
    from scp_server.runtime.maintenance.deletion_record import measure
    from scp_server.runtime.maintenance.folder import offline_storage

    async with offline_storage(settings) as storage:
        if not index_path(settings).is_file():
            raise ConfigurationError(f"{settings.data_dir} has no index: `index rebuild` makes one")
        index = build_index(settings)
        deletions = Deletions(settings.data_dir, storage, index)
        try:
            await index.open()
            await deletions.finish()
            extent = await measure(index, scope)
            removed = Removed()
            if extent.parts:
                if not yes:
                    await asyncio.to_thread(_ask, scope, extent)
                with progress_bar(as_json=as_json) as progress:
                    removed = await deletions.delete(scope, progress)
        finally:
            await deletions.stop()
            await index.close()
    return _tell(scope, removed, as_json=as_json)


def _delete_running(server: ControlClient, scope: Scope, *, yes: bool, as_json: bool) -> ExitCode:
    """The same, done by the server that runs on the folder."""
    from scp_server.runtime.maintenance.carrying_out import Removed
    from scp_server.runtime.maintenance.deletion_record import Extent

    named = {"level": scope.level.value, "uid": scope.uid}
    extent = Extent(**server.ask("delete.measure", **named))
    removed = Removed()
    if extent.parts:
        if not yes:
            _ask(scope, extent)
        try:
            with progress_bar(as_json=as_json) as progress:
                result = server.follow("delete", named, progress)
        except KeyboardInterrupt:
            complain("interrupted; what is decided the server carries out: see archive.deleted in its log")
            return ExitCode.FAILED
        removed = Removed(**{**result, "extent": Extent(**result["extent"])})
    return _tell(scope, removed, as_json=as_json)


def _tell(scope: Scope, removed: Removed, *, as_json: bool) -> ExitCode:
    extent = removed.extent
    name = f"{scope.level.value} {scope.uid}"
    if not extent.parts:
        complain(f"there is no {name}")
    if as_json:
        plain = asdict(extent)
        failed = {"files_failed": removed.failures, "failed": removed.failed}
        say_json({"level": scope.level.value, "uid": scope.uid, **plain, "files": removed.files, **failed})
    else:
        for location, reason in removed.failed.items():
            say(f"failed: {location}: {printable(reason)}")
        if extent.parts:
            say(f"deleted {name}: {_text(extent)}; {removed.files} files")
    return ExitCode.OK if extent.parts and not removed.failures else ExitCode.FAILED


def _text(extent: Extent) -> str:
    return (
        f"{extent.instances} instances ({extent.parts} parts, {extent.bytes / 1e6:.1f} MB) "
        f"in {extent.series} series of {extent.studies} studies"
    )


def _ask(scope: Scope, extent: Extent) -> None:
    """Raises _NotConfirmed unless the answer is yes."""
    question = f"Delete {scope.level.value} {scope.uid}: {_text(extent)}? [y/N] "
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if answer.strip().lower() not in ("y", "yes"):
        raise _NotConfirmed("nothing was deleted")
