"""A plug-in with ten callbacks that do nothing: what calling them costs is what is left."""

from __future__ import annotations

from scp_server.pipeline.callback import callback


async def nothing(_instance: object) -> None:
    """Do nothing with a stored instance."""


for _number in range(10):
    callback(stage="stored", name=f"nothing-{_number}")(nothing)
