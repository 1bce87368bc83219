"""What the pipeline costs on the way in: the same ingest with it and without, in turns.

    python -m benchmarks.pipeline                    five rounds of five seconds, with 1, 4 and 16 senders
    python -m benchmarks.pipeline --rounds 3 --seconds 2 --senders 4 --workload small

Three forms of this server, each turn with an empty archive: `no events` keeps no log of events; `events`
keeps it, and nobody is subscribed; `pipeline` has ten callbacks on stored objects that do nothing, and a rule
that forwards everything to where nobody listens. The order rotates. Rates are medians of the rounds; the
ratios are those of each round to its `no events`, and their median: compare nothing else.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import number, rotated, table
from benchmarks.load import StoreWork, Until, apply_load
from benchmarks.peers import start_ours

WORKLOADS = ("small", "ct")
GOAL = 0.9
"""Least ratio: the pipeline takes no more than a tenth of the rate."""


@dataclass(frozen=True, slots=True)
class Form:
    """A way to run the server."""

    name: str
    variables: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Figure:
    """What one turn gave."""

    per_second: float
    cpu_milliseconds: float
    problems: list[str]


def forms(dead_port: int) -> list[Form]:
    """The plain one first."""
    remote = {"ae_title": "DEAD", "host": "127.0.0.1", "port": dead_port}
    rule = {"name": "everything", "to": ["DEAD"]}
    return [
        Form("no events", {"SCP_SERVER_EVENTS__ENABLED": "false"}),
        Form("events", {}),
        Form(
            "pipeline",
            {
                "SCP_SERVER_PLUGINS": json.dumps(["benchmarks.noop_callbacks"]),
                "SCP_SERVER_REMOTES": json.dumps([remote]),
                "SCP_SERVER_FORWARD": json.dumps([rule]),
            },
        ),
    ]


def turn(form: Form, workload: str, senders: int, seconds: float, memory: Path) -> Figure:
    """Start a server of that form, send to it, and end it."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="scp-pipeline-", dir=memory))
        peer = stack.enter_context(start_ours(Path(folder), form.variables))
        load = apply_load(peer, StoreWork(workload), senders, Until(seconds=seconds))
    done = load.successes or 1
    return Figure(load.per_second, 1_000 * load.cpu_seconds / done, [*load.problems, *map(hex, load.refused)])


def measure(
    workload: str, senders: int, options: argparse.Namespace, wanted: list[Form]
) -> dict[str, list[Figure]]:
    """The figures of every form, one of each round."""
    found: dict[str, list[Figure]] = {form.name: [] for form in wanted}
    for round_number in range(options.rounds):
        for form in rotated(wanted, round_number):
            print(f"{workload}, {senders} senders, round {round_number + 1}: {form.name}", file=sys.stderr)
            found[form.name].append(turn(form, workload, senders, options.seconds, options.memory))
    return found


def rows(workload: str, senders: int, found: Mapping[str, list[Figure]]) -> list[list[str]]:
    """A row for each form."""
    plain = next(iter(found.values()))
    made = []
    for name, figures in found.items():
        rates = [each.per_second for each in figures]
        ratios = [each.per_second / base.per_second for each, base in zip(figures, plain, strict=True)]
        made.append(
            [
                workload,
                str(senders),
                name,
                f"{number(statistics.median(rates))} ({number(min(rates))} to {number(max(rates))})",
                number(statistics.median(each.cpu_milliseconds for each in figures), 2),
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                "; ".join(sorted({problem for each in figures for problem in each.problems})),
            ]
        )
    return made


def main() -> None:
    """Measure and print; exits with 1 where the pipeline misses its goal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--senders", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="where archives lie")
    options = parser.parse_args()
    lines, missed = [], False
    # Bound and not listened on: whoever connects is refused, and nobody else takes the port meanwhile.
    with closing(socket.socket()) as dead:
        dead.bind(("127.0.0.1", 0))
        wanted = forms(dead.getsockname()[1])
        for workload in options.workload:
            for senders in options.senders:
                found = measure(workload, senders, options, wanted)
                lines += rows(workload, senders, found)
                plain, *_, whole = found.values()
                ratio = statistics.median(
                    each.per_second / base.per_second for each, base in zip(whole, plain, strict=True)
                )
                missed = missed or ratio < GOAL
    headings = ["objects", "senders", "server", "a second", "CPU each, ms", "of no events", "notes"]
    print(table(headings, lines))
    sys.exit(int(missed))


if __name__ == "__main__":
    main()
