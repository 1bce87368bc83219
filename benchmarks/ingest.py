"""Ingest beside other servers: how fast objects are taken, what that costs, and how far the goals are.

    python -m benchmarks.ingest --short         two minutes: one round of short turns
    python -m benchmarks.ingest                 five rounds with 1 to 32 senders, 1 GiB and 10 GiB objects
    python -m benchmarks.ingest --workload ct small --server scp_server orthanc
    python -m benchmarks.ingest --workload growth      this server alone, from 0 to 1 000 000 instances
    python -m benchmarks.ingest --from DIR/ingest.json --publish    a run's figures into docs/ and README.md

Servers take turns in an order that rotates, each turn with an empty archive. `benchmarks/README.md` says how
to read what comes out, and what it does not show.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.circumstances import about
from benchmarks.figures import Figures, Sample, rotated
from benchmarks.ingest_report import publish, write
from benchmarks.ingest_suite import (
    FULL,
    SERVERS,
    SHORT,
    WORKLOADS,
    Plan,
    Server,
    Session,
    sessions,
)

MEMORY_FOLDER = Path("/dev/shm")


class Run:
    """Sessions, one after the other, and their figures."""

    def __init__(self, figures: Figures, plan: Plan, memory: Path, disk: Path) -> None:
        self._figures = figures
        self._plan = plan
        self._folders = {"memory": memory, "disk": disk}
        self._missing: set[str] = set()
        self._kept = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kept.close()

    def session(self, session: Session, server: Server) -> None:
        """Start a server, measure, and end it; what fails becomes a note."""
        with ExitStack() as stack:
            on_disk = session.where == "disk"
            # Whole archives deleted would slow whoever creates files after that on the same disk.
            archives = self._kept if on_disk else stack
            made = tempfile.TemporaryDirectory(prefix="scp-ingest-", dir=self._folders[session.where])
            folder = Path(archives.enter_context(made))
            if on_disk:
                os.sync()
            try:
                peer = server.start(folder)
            except RuntimeError as error:
                self._fail(session, server, str(error))
                return
            if peer is None:
                if server.name not in self._missing:
                    print(f"{server.name} is not installed", file=sys.stderr)
                self._missing.add(server.name)
                return
            stack.enter_context(peer)
            first_sender = 0
            for workload, at in session.steps:
                if not server.takes(workload, at):
                    continue
                try:
                    samples = workload.measure(peer, server, at, self._plan, first_sender)
                except (OSError, RuntimeError) as error:
                    samples = [Sample(workload.name, at, server.name, {}, (str(error),))]
                self._figures.samples += samples
                first_sender += at if workload.by_senders else 1

    def _fail(self, session: Session, server: Server, problem: str) -> None:
        self._figures.samples += [
            Sample(workload.name, at, server.name, {}, (problem,)) for workload, at in session.steps
        ]


def measure(figures: Figures, plan: Plan, options: argparse.Namespace) -> None:
    """Let every server have its turns."""
    wanted = options.workload or [each.name for each in WORKLOADS if not each.on_demand]
    servers = [each for each in SERVERS if not options.server or each.key in options.server]
    planned = [
        (turn, session, server)
        for turn in range(plan.rounds)
        for session in sessions(plan, wanted)
        for server in rotated([each for each in servers if session.concerns(each)], turn)
        if turn == 0 or session.repeated
    ]
    columns = (TextColumn("{task.description:60}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # It draws only when it is told to: a thread of its own would take part in what is measured.
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
    with Run(figures, plan, options.memory, options.disk) as run, bar:
        task = bar.add_task("", total=len(planned))
        for turn, session, server in planned:
            what = f"round {turn + 1} of {plan.rounds}, {session.name}: {server.name}"
            bar.update(task, description=what, refresh=True)
            if not sys.stderr.isatty():
                print(what, file=sys.stderr, flush=True)
            run.session(session, server)
            bar.advance(task)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--workload", nargs="+", choices=[each.name for each in WORKLOADS])
    parser.add_argument("--server", nargs="+", choices=[each.key for each in SERVERS])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--instances", type=int, help="of the workload growth")
    parser.add_argument(
        "--memory", type=Path, default=MEMORY_FOLDER, help="where archives lie that no disk shall slow"
    )
    parser.add_argument(
        "--disk",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where those lie that are to be durable, best a fresh filesystem",
    )
    parser.add_argument("--output", type=Path, help="folder for ingest.json, ingest.md and ingest.png")
    parser.add_argument("--from", dest="source", type=Path, help="an ingest.json, instead of measuring")
    parser.add_argument("--publish", action="store_true", help="into docs/figures.md, docs/ and README.md")
    options = parser.parse_args()
    plan = (SHORT if options.short else FULL).changed(options.rounds, options.seconds, options.instances)
    if options.source:
        figures = Figures.from_json(options.source.read_text("utf-8"))
    else:
        figures = Figures(about(plan, options.memory, options.disk))
        try:
            measure(figures, plan, options)
        except KeyboardInterrupt:
            print("interrupted; these are the figures so far", file=sys.stderr)
    output = options.output or Path(tempfile.mkdtemp(prefix="ingest-"))
    print(write(figures, output))
    print(f"written to {output}", file=sys.stderr)
    if options.publish:
        publish(figures, Path(__file__).resolve().parents[1])


if __name__ == "__main__":
    main()
