"""What the pipeline costs on the way in: servers with it and without take the same objects, in short turns.

    python -m benchmarks.pipeline                    sixteen rounds with 1, 4 and 16 senders
    python -m benchmarks.pipeline --rounds 8 --senders 4 --workload small

All forms of this server run beside each other from the beginning, and objects are sent to one after another,
for half a second or so each; the order rotates. `no events` keeps no log of events; `events` keeps it, and
nobody is subscribed; the others have a rule that forwards everything to where nobody listens, and callbacks
that do nothing (`benchmarks/noop_callbacks.py`): `spread` ten as a site might have them, over the stages of
an object and an association; `stored` ten that are all told of every object, which is the most that ten in
the event loop can cost; `thread` one plain function, which is called in a thread, since it might block.

What counts is the CPU that the server used for an object, what it delivers afterwards included: it hardly
depends on what else the machine does. `of no events` is the share of its rate that a server which has a
processor to itself keeps: the CPU of `no events` by its own, each over all rounds of equal numbers of
objects. Beside it are the medians of the rates, whose ratios lie far apart on a machine that is not idle.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import number, rotated, table
from benchmarks.load import StoreWork, Until, apply_load
from benchmarks.peers import Peer, start_ours

OBJECTS_OF_A_TURN = {"small": 960, "ct": 480}
"""Of all senders together: about half a second."""
SETTLE_SECONDS = 0.4
"""After the last answer: what the outbox still has to do is begun within LAZY_SECONDS."""
GOAL = 0.9
"""Least share: ten callbacks and the rule take no more than a tenth of the rate."""
MEANT = ("spread", "stored")
"""Whom the goal is for."""
PLAIN = "no events"


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
    """For an object."""
    problems: list[str]


def forms(dead_port: int) -> list[Form]:
    """The plain one first."""
    remote = {"ae_title": "DEAD", "host": "127.0.0.1", "port": dead_port}
    rule = {"name": "everything", "to": ["DEAD"]}
    forwarding = {"SCP_SERVER_REMOTES": json.dumps([remote]), "SCP_SERVER_FORWARD": json.dumps([rule])}
    return [
        Form(PLAIN, {"SCP_SERVER_EVENTS__ENABLED": "false"}),
        Form("events", {}),
        *(
            Form(each.lower(), {"SCP_SERVER_PLUGINS": f'["benchmarks.noop_callbacks:{each}"]', **forwarding})
            for each in ("SPREAD", "STORED", "THREAD")
        ),
    ]


@contextmanager
def running(wanted: list[Form], memory: Path) -> Iterator[dict[str, Peer]]:
    """A server of each form, with an empty archive."""
    with ExitStack() as stack:
        peers = {}
        for form in wanted:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="scp-pipeline-", dir=memory))
            peers[form.name] = stack.enter_context(start_ours(Path(folder), form.variables))
        yield peers


def turn(peer: Peer, workload: str, senders: int, first_number: int) -> Figure:
    """Send a turn's objects."""
    each = OBJECTS_OF_A_TURN[workload] // senders
    work = StoreWork(workload, first_number=first_number)
    load = apply_load(peer, work, senders, Until(operations=each), settle_seconds=SETTLE_SECONDS)
    problems = [*load.problems, *map(hex, load.refused)]
    return Figure(load.per_second, 1_000 * load.cpu_seconds / (load.successes or 1), problems)


def measure(
    workload: str, senders: int, options: argparse.Namespace, wanted: list[Form]
) -> dict[str, list[Figure]]:
    """The figures of every form, one of each round; the first round is not counted."""
    found: dict[str, list[Figure]] = {form.name: [] for form in wanted}
    with running(wanted, options.memory) as peers:
        for round_number in range(options.rounds + 1):
            print(f"{workload}, {senders} senders, round {round_number}", file=sys.stderr)
            first_number = round_number * (OBJECTS_OF_A_TURN[workload] // senders + 1)
            for form in rotated(wanted, round_number):
                figure = turn(peers[form.name], workload, senders, first_number)
                if round_number:
                    found[form.name].append(figure)
    return found


def share_kept(plain: list[Figure], form: list[Figure]) -> float:
    """Of the rate of `plain`, by the CPU that each uses."""
    return sum(each.cpu_milliseconds for each in plain) / sum(each.cpu_milliseconds for each in form)


def rows(workload: str, senders: int, found: Mapping[str, list[Figure]]) -> list[list[str]]:
    """A row for each form."""
    plain = found[PLAIN]
    made = []
    for name, figures in found.items():
        rates = [each.per_second for each in figures]
        cpu = [each.cpu_milliseconds for each in figures]
        ratios = [each.per_second / base.per_second for each, base in zip(figures, plain, strict=True)]
        made.append(
            [
                workload,
                str(senders),
                name,
                f"{number(statistics.mean(cpu), 3)} ({number(min(cpu), 3)} to {number(max(cpu), 3)})",
                f"{share_kept(plain, figures):.2f}",
                number(statistics.median(rates)),
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
    parser.add_argument("--workload", nargs="+", choices=OBJECTS_OF_A_TURN, default=[*OBJECTS_OF_A_TURN])
    parser.add_argument("--senders", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--form", nargs="+", help="only these, beside the plain one")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="where archives lie")
    options = parser.parse_args()
    lines, missed = [], False
    # Bound and not listened on: whoever connects is refused, and nobody else takes the port meanwhile.
    with closing(socket.socket()) as dead:
        dead.bind(("127.0.0.1", 0))
        wanted = [
            each
            for each in forms(dead.getsockname()[1])
            if each.name == PLAIN or not options.form or each.name in options.form
        ]
        for workload in options.workload:
            for senders in options.senders:
                found = measure(workload, senders, options, wanted)
                lines += rows(workload, senders, found)
                shares = [share_kept(found[PLAIN], found[name]) for name in MEANT if name in found]
                missed = missed or min(shares, default=1.0) < GOAL
    headings = ["objects", "senders", "server", "CPU each, ms", "of no events", "a second", "rates' ratio"]
    print(table([*headings, "notes"], lines))
    sys.exit(int(missed))


if __name__ == "__main__":
    main()
