"""Plug-ins whose callbacks do nothing: what calling them costs is what is left.

`plugins = ["benchmarks.noop_callbacks:SPREAD"]` is ten as a site might have them, `STORED` ten that are all
told of every object, which is the most that ten in the event loop can cost, and `THREAD` a plain function.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from scp_server.pipeline.callback import callback


def _nothing(stage: str, name: str, modalities: tuple[str, ...] = ()) -> Callable[[object], Awaitable[None]]:
    @callback(stage=stage, name=name, modalities=modalities)
    async def nothing(_subject: object) -> None:
        pass

    return nothing


SPREAD = [
    *(_nothing("received", name) for name in ("first-look", "second-look", "third-look")),
    _nothing("received", "look-at-ct", ("CT",)),
    *(_nothing("stored", name) for name in ("stored", "stored-too")),
    _nothing("association_complete", "complete"),
    _nothing("study_settled", "settled"),
    _nothing("associated", "begins"),
    _nothing("ended", "ends"),
]
STORED = [_nothing("stored", f"stored-{number}") for number in range(10)]


@callback(stage="stored", name="in-a-thread")
def nothing_in_a_thread(_subject: object) -> None:
    """Do nothing, where it might block."""


THREAD = [nothing_in_a_thread]
