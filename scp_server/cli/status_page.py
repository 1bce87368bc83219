"""The page of `scp-server status`: what the server reported, laid out for a terminal of any size.

Every text that began with a peer goes into a rich Text, which reads no markup, and is printable.
"""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from scp_server.observability.text import printable

_WIDE_COLUMNS = 110
"""From here on a line has room for everything."""
_FACT_LINES = 6
_HEADINGS = 2
"""Lines above the rows of a list: its title and its column heads."""
_LEAST_PROBLEMS = 4
"""Lines that the last problems get on a page that is too small, where there are so many."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LEVEL_STYLES = {"warning": "yellow", "error": "red", "critical": "bold red"}
_LABEL = "bold cyan"
_NAME_CHARACTERS = 12
"""What is always seen of an AE title."""
_LABEL_CHARACTERS = len("since start")
_FIRST_KEYS = ("status", "error", "reason", "text", "message", "calling_ae_title", "peer_host")
"""What says most, before a narrow line ends."""
_NOT_SHOWN_KEYS = frozenset({"timestamp", "level", "event", *_FIRST_KEYS})


def size(value: float) -> str:
    """Bytes for people: `12 B`, `1.5 MiB`."""
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes everything")


def duration(seconds: float) -> str:
    """Seconds for people: `0:00:07`, `3 d 04:05:06`."""
    whole = int(seconds)
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    clock = f"{rest // 60:02}:{rest % 60:02}"
    return f"{days} d {hours:02}:{clock}" if days else f"{hours}:{clock}"


def page(report: dict[str, Any], columns: int, lines: int | None) -> RenderableType:
    """The whole report, in at most so many lines; None leaves nothing out."""
    associations, problems = report["associations"]["list"], report["problems"]
    rows = problem_rows = None
    if lines is not None:
        rows, problem_rows = _shares(
            lines, len(associations) + bool(report["associations"]["left_out"]), len(problems)
        )
    return Group(
        _title(report),
        _facts(report),
        Text(),
        *_associations(report["associations"], columns, rows),
        Text(),
        *_problems(problems, problem_rows),
    )


def _shares(lines: int, associations: int, problems: int) -> tuple[int, int]:
    """How many rows associations and problems get: the latter at least a few, what is left over freely."""
    # Title, facts, two blank lines, the associations' headings, the problems' title.
    room = max(2, lines - 1 - _FACT_LINES - 2 - _HEADINGS - 1)
    least = min(problems, _LEAST_PROBLEMS, room // 2)
    rows = min(max(1, associations), room - max(1, least))
    return rows, room - rows


def _title(report: dict[str, Any]) -> Text:
    server = report["server"]
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{printable(server['ae_title'])}", style="bold green")
    text.append(f"  up {duration(server['uptime_seconds'])}  pid {server['pid']}")
    text.append(f"  version {server['version']}  {printable(server['data_dir'])}", style="dim")
    return text


def _facts(report: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style=_LABEL, no_wrap=True, min_width=_LABEL_CHARACTERS)
    table.add_column(no_wrap=True, overflow="ellipsis")
    now, totals = report["associations"], report["totals"]
    table.add_row(
        "now", _plain(f"{now['now']} of {now['max']} associations, {now['connections']} connections")
    )
    rates = [
        f"{rate['operations_per_second']:.1f}/s {size(rate['bytes_per_second'])}/s (last {seconds} s)"
        for seconds, rate in report["rates"].items()
    ]
    table.add_row("rates", _plain("   ".join(rates)))
    table.add_row(
        "since start",
        _plain(
            f"{totals['operations']} operations ({totals['operations_failed']} failed), "
            f"{size(totals['dataset_bytes'])}, {totals['associations_accepted']} associations "
            f"({totals['associations_rejected']} rejected)"
        ),
    )
    table.add_row("kept", _plain(_kept(report["index"])))
    table.add_row("quarantine", _quarantine(report["quarantine"]))
    table.add_row("space", _plain(_space(report["space"])))
    return table


def _kept(index: dict[str, int] | None) -> str:
    if index is None:
        return "the index does not answer"
    return (
        f"{index['instances']} instances ({index['parts']} parts), {index['series']} series, "
        f"{index['studies']} studies, {size(index['bytes'])}"
    )


def _quarantine(totals: dict[str, int]) -> Text:
    if not totals["max_bytes"] and not totals["objects"]:
        return _plain("off")
    full = totals["bytes"] >= totals["max_bytes"] or totals["objects"] >= totals["max_objects"]
    style = "bold red" if full else "yellow" if totals["objects"] else ""
    return Text(
        f"{totals['objects']} objects, {size(totals['bytes'])} of {size(totals['max_bytes'])}", style=style
    )


def _space(space: dict[str, int] | None) -> str:
    if space is None:
        return "unknown"
    share = 100 * space["free_bytes"] / max(1, space["total_bytes"])
    return f"{size(space['free_bytes'])} free of {size(space['total_bytes'])} ({share:.0f} %)"


def _associations(associations: dict[str, Any], columns: int, rows: int | None) -> list[RenderableType]:
    listed = associations["list"]
    if not listed:
        return [_heading("associations"), Text("none", style="dim")]
    fits = rows is None or len(listed) + bool(associations["left_out"]) <= rows
    shown = listed if rows is None or fits else listed[: max(0, rows - 1)]
    wide = columns >= _WIDE_COLUMNS
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for name in ("calling", *(("called",) if wide else ()), "peer"):
        least = _NAME_CHARACTERS if name == "calling" else None
        table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=least)
    for name in ("since", "operations", "received"):
        table.add_column(name, no_wrap=True, justify="right")
    if wide:
        table.add_column("kind", no_wrap=True)
        table.add_column("id", no_wrap=True, style="dim")
    for each in shown:
        cells = [
            _plain(each["calling_ae_title"]),
            *([_plain(each["called_ae_title"])] if wide else []),
            _plain(f"{each['peer_host']}:{each['peer_port']}"),
            _plain(duration(each["seconds"])),
            _plain(f"{each['operations']}{'*' if each['running'] else ''}"),
            _plain(size(each["dataset_bytes"])),
        ]
        if wide:
            cells += [_plain("DICOS" if each["dicos"] else "DICOM"), _plain(each["id"])]
        table.add_row(*cells)
    parts: list[RenderableType] = [_heading("associations (* at work)"), table]
    more = len(listed) - len(shown) + associations["left_out"]
    if more:
        parts.append(Text(f"and {more} more", style="dim"))
    return parts


def _problems(problems: list[dict[str, Any]], rows: int | None) -> list[RenderableType]:
    if not problems:
        return [_heading("last warnings and errors"), Text("none", style="dim")]
    newest = list(reversed(problems))
    shown = newest if rows is None else newest[:rows]
    return [_heading("last warnings and errors, the newest first"), *(_problem(each) for each in shown)]


def _problem(problem: dict[str, Any]) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{str(problem.get('timestamp', ''))[11:19]} ", style="dim")
    level = str(problem.get("level", ""))
    text.append(printable(str(problem.get("event", ""))), style=_LEVEL_STYLES.get(level, ""))
    first = [key for key in _FIRST_KEYS if key in problem]
    for key in (*first, *(key for key in problem if key not in _NOT_SHOWN_KEYS)):
        text.append(f" {printable(key)}=", style="dim")
        text.append(printable(str(problem[key])))
    return text


def _heading(text: str) -> Text:
    return Text(text, style=_LABEL)


def _plain(text: str) -> Text:
    return Text(printable(text), no_wrap=True, overflow="ellipsis")
