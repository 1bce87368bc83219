"""What counting costs for one C-STORE: every measure that its way through the server touches.

    python benchmarks/measures.py [reads]

`reads` is how many times the object's bytes were read from the socket; each costs an addition and, where it
reached the service, three readings of the clock.
"""

from __future__ import annotations

import sys
import time

from scp_server.observability.measures import Measures, StageClock
from scp_server.protocol.message import CStoreRQ

OBJECTS = 50_000


def count_object(measures: Measures, request: CStoreRQ, reads: int) -> None:
    """What `net`, `services` and `index` do to count one object that is kept."""
    associations = measures.associations
    for _ in range(reads):
        associations.received_bytes += 65_536
    stages = StageClock()
    for _ in range(reads):
        stages.received()
        stages.parsed()
        stages.persisted()
    stages.received()
    stages.parsed()
    stages.persisted()
    measures.index.waiting += 1
    started = time.perf_counter()
    measures.index.batch_entries.observe(1)
    measures.index.batch_seconds.observe(time.perf_counter() - started)
    measures.index.waiting -= 1
    stages.indexed()
    measures.reception.recorded(stages)
    measures.operations.ended(measures.peers.of(None), request, 0x0000, 0.004, 65_536 * reads)


def main() -> None:
    """Print microseconds for an object."""
    reads = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    measures = Measures()
    request = CStoreRQ(message_id=1, affected_sop_class_uid="1.2", affected_sop_instance_uid="1.2.3")
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(OBJECTS):
            count_object(measures, request, reads)
        best = min(best, (time.perf_counter() - started) / OBJECTS)
    print(f"{best * 1e6:.2f} us for an object of {reads} reads")


if __name__ == "__main__":
    main()
