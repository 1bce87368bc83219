"""Other settings for a running server: all of them, or none.

`RELOADABLE` says what may change while the server runs. Whatever else differs is named, with the reason, and
nothing is changed at all: a server that runs on half of a file would be worse than one that says no.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel

from scp_server.errors import ConfigurationError
from scp_server.observability.logs import configure_logging, get_logger
from scp_server.settings import Problem, Settings, SettingsError
from scp_server.settings.load import plain_problems
from scp_server.settings.show import flat, shown

log = get_logger(__name__)

RELOADABLE = frozenset(
    {
        "access",
        "close_timeout_seconds",
        "coerce",
        "drain_timeout_seconds",
        "forward",
        "limits",
        "log",
        "negotiation",
        "peers",
        "query",
        "remotes",
        "require_attributes",
        "retrieve",
        "storage.dicos_duplicates",
        "storage.duplicates",
        "storage.layout",
        "timeouts",
        "validation",
        "webhook",
    }
)
"""Keys, and whole sections, that may change; they hold for new associations, those that run keep theirs.
`storage.layout` holds for every object that is begun after it."""
FIXED: Mapping[str, str] = {
    "validation.threads": "the threads are there",
    "limits.max_pdu_bytes": "sockets that have not asked yet enforce what they were made with",
}
"""Keys inside a reloadable section that may not change, and why."""
_NEEDS_RESTART = "cannot change while the server runs; restart it"


@dataclass(frozen=True, slots=True)
class Change:
    """One key whose value differs; `before` and `after` are plain data with secrets masked."""

    key: str
    before: Any
    after: Any

    @property
    def problem(self) -> str:
        """Why it may not change while the server runs; empty when it may."""
        if self.key in FIXED:
            return f"{_NEEDS_RESTART} ({FIXED[self.key]})"
        return "" if self.key in RELOADABLE or self.key.split(".")[0] in RELOADABLE else _NEEDS_RESTART


def changes(before: BaseModel, after: BaseModel) -> list[Change]:
    """What differs between two settings, in the order of declaration."""
    old, new = flat(before), flat(after)
    return [Change(key, shown(old[key]), shown(new[key])) for key in new if old[key] != new[key]]


def reloadable_changes(before: Settings, after: Settings) -> list[Change]:
    """`changes`, all of which may be made. Raises SettingsError that names each that may not."""
    found = changes(before, after)
    problems = [Problem("settings", None, change.key, change.problem) for change in found if change.problem]
    if problems:
        raise SettingsError(problems)
    return found


class Reloadable(Protocol):
    """What takes other settings: the server."""

    def reload(self, settings: Settings) -> list[Change]: ...

    async def reloaded(self) -> None:
        """Wait until every process of the server has taken over what it was given."""
        ...


async def reload(server: Reloadable, load: Callable[[], Settings]) -> bool:
    """Read the settings again and let the server have them; logs what came of it and returns whether it did.

    `load` runs in a thread, for files may be slow. Never raises for what settings say.
    """
    try:
        settings = await asyncio.to_thread(load)
        changed = server.reload(settings)
        await server.reloaded()
    except SettingsError as error:
        log.error("settings.rejected", problems=plain_problems(error.problems))
        return False
    except ConfigurationError as error:
        log.error("settings.rejected", problems=[{"problem": str(error)}])
        return False
    except Exception as error:  # the signals after this one must still be heard
        log.exception("settings.rejected", problems=[{"problem": f"unexpected: {type(error).__name__}"}])
        return False
    if any(change.key.startswith("log.") for change in changed):
        worker = 0 if settings.workers > 1 else None
        configure_logging(settings.log.format, settings.log.level, worker=worker)
    # Above INFO: seen also where the level is, or has become, warning.
    log.warning(
        "settings.reloaded",
        changed={change.key: {"before": change.before, "after": change.after} for change in changed},
    )
    return True
