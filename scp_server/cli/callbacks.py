"""`scp-server callbacks` and `scp-server replay`: which callbacks there are, and what they would do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scp_server.cli.control_client import running_server
from scp_server.cli.delete import uid_scope
from scp_server.cli.maintenance import MAX_LISTED, load
from scp_server.cli.output import ExitCode, complain, say, say_json
from scp_server.cli.query import read_query
from scp_server.errors import ConfigurationError
from scp_server.observability.text import printable

if TYPE_CHECKING:
    from scp_server.index.base import Scope
    from scp_server.pipeline.callback import Callback
    from scp_server.runtime.replay import HeaderFilter, Replayed
    from scp_server.settings import Settings


def run_callbacks(config: Path | None, data_dir: Path | None, *, as_json: bool) -> ExitCode:
    """Print every callback that the settings and the installed packages bring, in the order of calls."""
    from scp_server.pipeline.callbacks import describe
    from scp_server.runtime.build import build_callback_limits, build_callback_registry

    settings = load(config, data_dir)
    registry = build_callback_registry(settings)
    described = describe(registry.callbacks, build_callback_limits(settings))
    running = _running_names(settings)
    for each in described:
        each["active"] = None if running is None else each["name"] in running
    others = sorted(set(running or ()) - {each.name for each in registry.callbacks})
    if as_json:
        say_json({"server_runs": running is not None, "callbacks": described, "only_in_server": others})
        return ExitCode.OK
    for each in described:
        say(_line(each))
    for name in others:
        say(f"{name}: the running server has it, and these settings do not")
    say(_total(len(described), running))
    return ExitCode.OK


def _running_names(settings: Settings) -> list[str] | None:
    """The callbacks of the server that runs on the data folder; None where none runs."""
    with running_server(settings.data_dir) as server:
        return None if server is None else [str(name) for name in server.ask("callbacks")]


def _line(each: Mapping[str, Any]) -> str:
    filters = [
        f"{name} {', '.join(each[name])}"
        for name in ("sop_classes", "modalities", "calling_ae_titles", "called_ae_titles")
        if each[name]
    ]
    details = [
        f"{each['stage']}, order {each['order']}",
        f"{each['function']} ({each['source']})",
        f"{each['run_in']}, at most {each['timeout_seconds']:g} s, {each['concurrency']} at once",
        *filters,
    ]
    if each["memory_bytes"] is not None:
        details.append(f"{each['memory_bytes'] / (1 << 20):.0f} MiB")
    if each["algorithm"] is not None:
        details.append(f"detector {' '.join(each['algorithm'])}")
    if each["on_failure"] is not None:
        details.append(f"on failure {each['on_failure']}")
    if each["active"] is False:
        details.append("the running server does not have it: restart it")
    return printable(f"{each['name']}: {'; '.join(details)}")


def _total(count: int, running: Sequence[str] | None) -> str:
    server = "no server runs" if running is None else f"the running server has {len(running)}"
    return f"{count} callbacks in the settings; {server}"


def run_replay(
    name: str,
    config: Path | None,
    data_dir: Path | None,
    *,
    study: str | None,
    series: str | None,
    instance: str | None,
    query: str | None,
    everything: bool,
    apply: bool,
    as_json: bool,
) -> ExitCode:
    """Show what a callback does with stored objects, or have it called. 1 when it failed for any."""
    from scp_server.runtime.build import build_callback_registry
    from scp_server.runtime.replay import check_replay

    scope, chosen = _chosen(study, series, instance, query, everything=everything)
    settings = load(config, data_dir)
    found = [each for each in build_callback_registry(settings).callbacks if each.name == name]
    if not found:
        raise ConfigurationError(f"there is no callback {printable(name)}; `scp-server callbacks` lists them")
    check_replay(found[0], apply=apply)
    return asyncio.run(_replay(settings, found[0], scope, chosen, apply=apply, as_json=as_json))


def _chosen(
    study: str | None, series: str | None, instance: str | None, query: str | None, *, everything: bool
) -> tuple[Scope | None, HeaderFilter | None]:
    given = [each for each in (study, series, instance, query) if each is not None]
    if len(given) + everything != 1:
        raise ConfigurationError("give one of --study, --series, --instance, --query and --all")
    if query is not None:
        from scp_server.objects.header_matching import header_matcher

        return None, header_matcher(read_query(query))
    return (None if everything else uid_scope(study, series, instance)), None


async def _replay(
    settings: Settings,
    callback: Callback,
    scope: Scope | None,
    chosen: HeaderFilter | None,
    *,
    apply: bool,
    as_json: bool,
) -> ExitCode:
    from scp_server.objects.dictionary import sequence_tags
    from scp_server.observability.measures import CallbackCounts
    from scp_server.pipeline.instances import Archive, StoredFiles
    from scp_server.pipeline.running import CallbackRunner
    from scp_server.runtime.build import build_callback_limits, build_index
    from scp_server.runtime.replay import Replay

    index = build_index(settings)
    files = StoredFiles(settings.data_dir)
    runner = CallbackRunner(callback, build_callback_limits(settings), CallbackCounts())
    results: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    await index.open_to_read()
    sequence_tags(True)
    try:
        replay = Replay(runner, index, Archive(files, files), apply=apply)
        async with aclosing(replay.run(scope, chosen)) as replayed:
            async for each in replayed:
                counts[each.outcome.value] = counts.get(each.outcome.value, 0) + 1
                _take(each, results, as_json=as_json)
    finally:
        await runner.close()
        await index.close()
    failed = counts.get("failed", 0)
    if as_json:
        cut = sum(counts.values()) > len(results)
        document = {"callback": callback.name, "applied": apply, "objects": results, "counts": counts}
        say_json({**document, "objects_cut": cut})
    else:
        say(_summary(callback, counts, replay.looked_at, apply=apply))
    if not replay.looked_at:
        complain("nothing is stored there")
    return ExitCode.FAILED if failed or not replay.looked_at else ExitCode.OK


def _take(each: Replayed, results: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        if len(results) >= MAX_LISTED:
            return
        results.append(
            {
                "sop_instance_uid": each.part.sop_instance_uid,
                "part_number": each.part.part_number,
                "outcome": each.outcome.value,
                "detail": list(each.detail),
            }
        )
        return
    detail = f": {'; '.join(each.detail)}" if each.detail else ""
    say(printable(f"{each.part.sop_instance_uid} part {each.part.part_number}: {each.outcome.value}{detail}"))


def _summary(callback: Callback, counts: Mapping[str, int], looked_at: int, *, apply: bool) -> str:
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "meant for none"
    dry = "" if apply else " (nothing was done)"
    return f"{callback.name}: {looked_at} parts looked at: {told}{dry}"
