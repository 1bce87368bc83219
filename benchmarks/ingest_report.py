"""Figures of `benchmarks.ingest` as a page, a picture, and in the documentation."""

from __future__ import annotations

from pathlib import Path

from benchmarks.figures import (
    OURS,
    Figures,
    goals_table,
    ratios_table,
    replaced,
    workload_table,
)
from benchmarks.ingest_suite import BOUNDS, GOALS, OURS_DURABLE, SERVERS, SINK, WORKLOADS
from benchmarks.picture import Panel, bars

TITLES = {each.name: each.title for each in WORKLOADS}
SHOWN = (1, 4, 16)
"""The numbers of senders that the picture has."""
FAST = ("ct", "small", "large", "associations", "echo")
PEERS = tuple(each.name for each in SERVERS if each.name not in {OURS, OURS_DURABLE, SINK})
MARK = "ingest"
WHY_MISSED = (
    'Where a goal is missed, the profile in docs/design.md, "One C-STORE, from socket to Success", says what '
    "binds, what was tried and what it gave, and how far the physical limit is."
)


def page(figures: Figures) -> str:
    """Everything, as Markdown."""
    parts = ["\n".join(f"- {name}: {text}" for name, text in figures.about.items())]
    if goals := goals_table(figures, GOALS, BOUNDS, TITLES):
        parts += ["### Goals", goals, WHY_MISSED]
    if ratios := headline(figures):
        parts += ["### How many times as fast as others", ratios]
    for workload in WORKLOADS:
        if workload.name not in {each.workload for each in figures.samples}:
            continue
        parts += [
            f"### {workload.title[0].upper()}{workload.title[1:]}",
            workload_table(figures, workload.name, workload.columns, workload.size_heading),
        ]
        if notes := figures.notes(workload.name):
            parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def headline(figures: Figures) -> str:
    """The ratios, with `durability = full` where everybody is durable."""
    fast = ratios_table(figures, FAST, TITLES, OURS, PEERS)
    durable = ratios_table(figures, ["durable"], TITLES, OURS_DURABLE, ["Orthanc, sync"])
    return "\n\n".join(filter(None, (fast, durable)))


def picture(figures: Figures) -> bytes:
    """The first figure of each workload as bars, a PNG; the sink is left out, it would dwarf the servers."""
    panels = []
    for workload in WORKLOADS:
        shown = workload.columns[0]
        found = {
            server: {
                at: spread.median
                for at in figures.sizes(workload.name)
                if at in SHOWN and (spread := figures.of(workload.name, at, server, shown.key))
            }
            for server in figures.servers(workload.name)
            if server != SINK
        }
        if workload.by_senders and any(found.values()):
            panels.append(
                Panel(
                    f"{workload.title}: {shown.heading}",
                    {key: value for key, value in found.items() if value},
                )
            )
    return bars(panels, OURS)


def write(figures: Figures, folder: Path) -> str:
    """Write ingest.json, ingest.md and ingest.png; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ingest.json").write_text(figures.to_json(), "utf-8")
    text = page(figures)
    (folder / "ingest.md").write_text(text, "utf-8")
    (folder / "ingest.png").write_bytes(picture(figures))
    return text


def publish(figures: Figures, top: Path) -> None:
    """Put them between the marks of docs/figures.md and README.md. Raises ValueError where one has none."""
    docs, readme = top / "docs" / "figures.md", top / "README.md"
    pages = {
        docs: f"\n{page(figures)}",
        readme: f"\n{headline(figures)}\n\nMeasured side by side in one run ({figures.about['date']}, "
        f"{figures.about['processor']}): [docs/figures.md](docs/figures.md) has all figures, and says how "
        "they are made.\n\n![the first figure of each workload](docs/ingest.png)\n",
    }
    changed = {path: replaced(path.read_text("utf-8"), MARK, content) for path, content in pages.items()}
    for path, text in changed.items():
        path.write_text(text, "utf-8")
    (docs.parent / "ingest.png").write_bytes(picture(figures))
