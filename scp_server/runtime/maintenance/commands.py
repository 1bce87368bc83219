"""What can be asked over the control socket of an archive that is being served."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from scp_server.errors import SCPServerError
from scp_server.index.base import Index, Level, Scope
from scp_server.objects.uids import clean_uid, is_valid_uid
from scp_server.runtime.control import Command, LongCommand, WrongArguments, only, text
from scp_server.runtime.control_telling import Telling
from scp_server.runtime.maintenance.adoption import Adopter
from scp_server.runtime.maintenance.deletion import Deletions
from scp_server.runtime.maintenance.deletion_record import measure
from scp_server.runtime.maintenance.findings import Findings
from scp_server.runtime.maintenance.verify import Verification, VerifyOptions
from scp_server.storage.base import Storage

PAGE = 50
"""Objects that a verification looks at without a pause: some milliseconds."""
READ_TOGETHER = 1
"""Objects that a verification reads at once, so that the storage's other threads are there for newcomers."""


class MaintenanceCommands:
    """`delete`, `delete.measure` and `index.verify` on the archive of a running server."""

    def __init__(
        self,
        storage: Storage,
        index: Index,
        deletions: Deletions,
        adopter: Adopter,
        *,
        objects_per_second: int,
    ) -> None:
        self._storage = storage
        self._index = index
        self._deletions = deletions
        self._adopter = adopter
        self._objects_per_second = objects_per_second
        self._verifying = asyncio.Lock()

    @property
    def commands(self) -> dict[str, Command]:
        """Those that are answered at once."""
        return {"delete.measure": self._measure}

    @property
    def long_commands(self) -> dict[str, LongCommand]:
        """Those that tell how far they are."""
        return {"delete": self._delete, "index.verify": self._verify}

    async def _measure(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return asdict(await measure(self._index, _scope(arguments)))

    async def _delete(self, arguments: Mapping[str, Any], telling: Telling) -> dict[str, Any]:
        """Once decided, it goes on whether or not anybody listens."""
        return asdict(await self._deletions.delete(_scope(arguments), telling))

    async def _verify(self, arguments: Mapping[str, Any], telling: Telling) -> dict[str, Any]:
        """Tells its findings one by one; the answer is how much was looked at. One at a time."""
        options = _options(arguments)

        async def breathe(objects: int) -> None:
            await telling.settle()
            await asyncio.sleep(objects / self._objects_per_second)

        if self._verifying.locked():
            raise SCPServerError("another verification is running")
        async with self._verifying:
            report = await Verification(
                self._storage,
                self._index,
                self._deletions,
                self._adopter,
                options,
                Findings(lambda finding: telling.add(asdict(finding))),
                telling,
                breathe=breathe,
                page=PAGE,
                read_together=READ_TOGETHER,
            ).run()
        return {"objects": report.objects, "parts": report.parts}


def _scope(arguments: Mapping[str, Any]) -> Scope:
    only(arguments, "level", "uid")
    try:
        level = Level(text(arguments, "level"))
    except ValueError as error:
        raise WrongArguments("level is none of study, series and instance") from error
    uid = clean_uid(text(arguments, "uid"))
    if not is_valid_uid(uid):
        raise WrongArguments("uid is no UID")
    return Scope(level, uid)


def _options(arguments: Mapping[str, Any]) -> VerifyOptions:
    only(arguments, "digest", "repair", "drop_danglers")
    for name, value in arguments.items():
        if not isinstance(value, bool):
            raise WrongArguments(f"{name} is neither true nor false")
    options = VerifyOptions(**arguments)
    options.check()
    return options
