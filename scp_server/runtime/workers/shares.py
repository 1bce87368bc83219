"""One worker's share of the settings: what bounds all workers together is divided among them.

Divided are sockets, memory, sub-operations, associations to remotes and decoders, each so that the sum is the
setting, but that nobody's share is less than one. The caps on associations are not: the kernel spreads
connections unevenly, and a scanner must not be refused because its own fell to one process. The primary
counts those for all (`net/places.py`).
"""

from __future__ import annotations

from scp_server.runtime.build import memory_ceiling_bytes
from scp_server.settings import Settings


def share_of(settings: Settings, number: int) -> Settings:
    """The share of worker `number`, from 0, of `settings.workers`; the settings themselves for a lone one."""
    workers = settings.workers
    if workers == 1:
        return settings

    def share(whole: int) -> int:
        return max(1, whole // workers + (number < whole % workers))

    limits, codecs, retrieve = settings.limits, settings.codecs, settings.retrieve
    return settings.model_copy(
        update={
            "limits": limits.model_copy(
                update={
                    "max_connections": share(limits.max_connections),
                    "max_outbound_associations": share(limits.max_outbound_associations),
                    "max_changed_objects": share(limits.max_changed_objects),
                    "process_buffer_bytes": share(limits.process_buffer_bytes),
                    "half_open_buffer_bytes": share(limits.half_open_buffer_bytes),
                }
            ),
            "codecs": codecs.model_copy(
                update={
                    "processes": share(codecs.processes),
                    "max_objects": share(codecs.max_objects),
                }
            ),
            "retrieve": retrieve.model_copy(
                update={"max_waiting_suboperations": share(retrieve.max_waiting_suboperations)}
            ),
            "remotes": tuple(
                remote.model_copy(update={"max_associations": share(remote.max_associations)})
                for remote in settings.remotes
            ),
        }
    )


def ceiling_of_all_bytes(settings: Settings) -> int:
    """`memory_ceiling_bytes` of all workers together, whichever of them the associations fall to."""
    ceiling = memory_ceiling_bytes(share_of(settings, 0))
    without = settings.limits.model_copy(update={"max_associations": 0})
    for number in range(1, settings.workers):
        share = share_of(settings.model_copy(update={"limits": without}), number)
        ceiling += memory_ceiling_bytes(share)
    return ceiling
