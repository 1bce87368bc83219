"""`scp-server quarantine list|show|release|drop`, of a running server or of a folder that none runs on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scp_server.cli.control_client import CommandFailed, ControlClient, NoServerRuns, running_server
from scp_server.cli.data_dir import data_folder, offline_settings
from scp_server.cli.offline_commands import Asked, OfflineCommands
from scp_server.cli.output import ExitCode, complain, say, say_json, status_meaning, status_text
from scp_server.errors import SCPServerError
from scp_server.observability.text import printable
from scp_server.storage.quarantine import QUARANTINE

_NANOSECONDS = 1_000_000_000
_REASON_CHARACTERS = 64


@contextmanager
def _asked(data_dir: Path) -> Iterator[Asked]:
    """The running server; where none runs, the folder itself, locked for as long as the block runs."""
    with running_server(data_dir) as server:
        if server is not None:
            yield server
            return
    with _folder(data_dir) as offline:
        yield offline


@contextmanager
def _folder(data_dir: Path) -> Iterator[Asked]:
    from scp_server.runtime.build import build_quarantine
    from scp_server.runtime.control_commands import drop_object, list_page, show_object
    from scp_server.runtime.process import DataFolderLock

    if not (data_dir / QUARANTINE).is_dir():
        # Nothing is made in a folder that was perhaps only mistyped.
        raise NoServerRuns(f"data_dir: no server runs on {data_dir}, and there is no quarantine in it")
    lock = DataFolderLock(data_dir)
    lock.acquire()
    try:
        quarantine = build_quarantine(offline_settings(data_dir), None)
        commands = {
            "open": lambda _: quarantine.open(),
            "close": lambda _: quarantine.close(),
            "quarantine.list": lambda arguments: list_page(quarantine, arguments["after"]),
            "quarantine.show": lambda arguments: show_object(quarantine, arguments["id"]),
            "quarantine.drop": lambda arguments: drop_object(quarantine, arguments["id"]),
        }
        with OfflineCommands(commands) as offline:
            try:
                offline.ask("open")
                yield offline
            finally:
                offline.ask("close")
    finally:
        lock.release()


def run_list(data_dir: Path | None, *, as_json: bool) -> ExitCode:
    """Print every object in quarantine, the oldest first."""
    objects: list[dict[str, Any]] = []
    with _asked(data_folder(data_dir)) as server:
        after = ""
        while True:
            page = server.ask("quarantine.list", after=after)
            objects += page["objects"]
            after = page["next"]
            if not after:
                break
    totals = page["totals"]
    if as_json:
        say_json({"objects": objects, "totals": totals})
        return ExitCode.OK
    for each in objects:
        say(_line(each))
    say(
        f"{totals['objects']} of at most {totals['max_objects']} objects, "
        f"{totals['bytes']} of at most {totals['max_bytes']} bytes"
    )
    return ExitCode.OK


def run_show(object_id: str, data_dir: Path | None, *, as_json: bool) -> ExitCode:
    """Print all that is known of one object."""
    folder = data_folder(data_dir)
    with _asked(folder) as server:
        record = server.ask("quarantine.show", id=_checked(object_id))
    if as_json:
        say_json(record)
        return ExitCode.OK
    shown = {
        "id": record["id"],
        "received": _time(record["received_at_ns"]),
        "reason": f"{status_text(record['status'])} {record['reason']}",
        "release attempts": record["release_attempts"],
        "from": f"{record['calling_ae_title']} at {record['peer_host']}, port {record['peer_port']}",
        "called": record["called_ae_title"],
        "SOP class": record["sop_class_uid"],
        "SOP instance": record["sop_instance_uid"],
        "transfer syntax": record["transfer_syntax_uid"],
        "data set": f"{record['dataset_bytes']} bytes from byte {record['dataset_offset_bytes']} on",
        "digest": f"{record['digest_algorithm']} {record['digest']}",
        "file": str(folder / record["file"]),
    }
    for name, value in shown.items():
        say(f"{name + ':':<18}{printable(str(value))}")
    return ExitCode.OK


def run_release(ids: Sequence[str], data_dir: Path | None, *, as_json: bool) -> ExitCode:
    """Bring objects through the front door again; what is refused again stays. Needs the running server."""
    with ControlClient(data_folder(data_dir)) as server:
        return _each("release", server, ids, as_json=as_json)


def run_drop(ids: Sequence[str], data_dir: Path | None, *, as_json: bool) -> ExitCode:
    """Delete objects from quarantine for ever."""
    with _asked(data_folder(data_dir)) as server:
        return _each("drop", server, ids, as_json=as_json)


def _each(what: str, server: Asked, ids: Sequence[str], *, as_json: bool) -> ExitCode:
    results: list[dict[str, Any]] = []
    code = ExitCode.OK
    for object_id in ids:
        try:
            result = server.ask(f"quarantine.{what}", id=_checked(object_id))
        except SCPServerError as error:
            result = {"id": object_id, "error": str(error)}
        results.append(result)
        done = "error" not in result and result.get("released", True)
        code = code if done else ExitCode.FAILED
        if not as_json:
            _say_result(what, result)
    if as_json:
        say_json({"results": results})
    return code


def _say_result(what: str, result: dict[str, Any]) -> None:
    if "error" in result:
        complain(f"{result['id']}: {result['error']}")
    elif what == "drop":
        say(f"{result['id']}: dropped")
    elif result["released"]:
        say(f"{result['id']}: released")
    else:
        meaning = result["reason"] or status_meaning(result["status"])
        say(f"{result['id']}: still in quarantine, {status_text(result['status'])} {printable(meaning)}")


def _checked(object_id: str) -> str:
    """An id as the quarantine knows it. Raises CommandFailed."""
    from scp_server.storage.layout import checked_arrival_id

    try:
        return checked_arrival_id(object_id)
    except ValueError as error:
        raise CommandFailed("request", str(error)) from error


def _line(each: dict[str, Any]) -> str:
    if "error" in each:
        return f"{each['id']}  {printable(each['error'])}"
    reason = printable(each["reason"])[:_REASON_CHARACTERS]
    sender = printable(each["calling_ae_title"])
    return (
        f"{each['id']}  {_time(each['received_at_ns'])}  {sender:<16}  {each['dataset_bytes']:>12}  "
        f"{status_text(each['status'])} {reason}"
    )


def _time(nanoseconds: int) -> str:
    try:
        return datetime.fromtimestamp(nanoseconds // _NANOSECONDS, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return "unknown time"
