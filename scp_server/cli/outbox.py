"""`scp-server outbox list|retry|drop`, of a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scp_server.cli.control_client import ControlClient
from scp_server.cli.data_dir import data_folder
from scp_server.cli.output import ExitCode, say, say_json
from scp_server.errors import ConfigurationError
from scp_server.observability.text import printable


def run_list(data_dir: Path | None, *, as_json: bool) -> ExitCode:
    """Print where each subscription is."""
    with ControlClient(data_folder(data_dir)) as server:
        states: list[dict[str, Any]] = server.ask("outbox.list")
    if as_json:
        say_json({"subscriptions": states})
        return ExitCode.OK
    if not states:
        say("no subscriptions: no rule forwards or posts, and no callback is called after storing")
    for state in states:
        for line in _lines(state):
            say(line)
    return ExitCode.OK


def run_retry(
    name: str, event_id: int | None, data_dir: Path | None, *, everything: bool, as_json: bool
) -> ExitCode:
    """Have what failed be tried at once."""
    if (event_id is not None) == everything:
        raise ConfigurationError("say either --event ID or --all")
    arguments = {} if event_id is None else {"event_id": event_id}
    return _ask("retry", "to be tried", name, data_dir, arguments, as_json=as_json)


def run_drop(
    name: str,
    event_id: int | None,
    data_dir: Path | None,
    *,
    all_dead: bool,
    subscription: bool,
    as_json: bool,
) -> ExitCode:
    """Have something be given up for good."""
    if (event_id is not None) + all_dead + subscription != 1:
        raise ConfigurationError("say one of --event ID, --all-dead and --subscription")
    if event_id is not None:
        return _ask("drop", "dropped", name, data_dir, {"event_id": event_id}, as_json=as_json)
    command = "drop_dead" if all_dead else "drop_subscription"
    return _ask(command, "dropped", name, data_dir, {}, as_json=as_json)


def _ask(
    command: str, done: str, name: str, data_dir: Path | None, arguments: dict[str, int], *, as_json: bool
) -> ExitCode:
    with ControlClient(data_folder(data_dir)) as server:
        result: dict[str, Any] = server.ask(f"outbox.{command}", name=name, **arguments)
    if as_json:
        say_json({"subscription": name, **result})
    else:
        say(f"{printable(name)}: {result['events']} events {done}")
    return ExitCode.OK


def _lines(state: dict[str, Any]) -> list[str]:
    name, behind = printable(state["name"]), state["behind"]
    if not state["is_active"]:
        return [
            f"{name}: not in use any more, {behind} events behind, {state['parked']} parked, "
            f"{state['dead']} dead; --subscription drops it"
        ]
    lines = [f"{name}: {behind} events behind, {state['parked']} parked, {state['dead']} dead"]
    if state["circuit"] == "open":
        lines[0] += ", DOWN"
    if state["oldest_waiting_seconds"] is not None:
        lines.append(f"  the oldest waits for {state['oldest_waiting_seconds']:.0f} s")
    if state["retry_in_seconds"] is not None:
        lines.append(f"  next try in {state['retry_in_seconds']:.0f} s")
    if state["last_error"] and (state["parked"] or state["dead"] or state["circuit"] == "open"):
        lines.append(f"  {printable(state['last_error'])}")
    return lines
