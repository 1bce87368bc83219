"""Callbacks that fork: the copy of the server must end before it does anything in the server's name.

`os.fork` in a callback leaves a second process with the server's sockets and its index open. Should it come
back from the callback, it ends there. A copy that runs another program, or ends by itself, disturbs nobody.
"""

from __future__ import annotations

import os
from typing import Final

from scp_server.observability.logs import get_logger

log = get_logger(__name__)

FORKED_EXIT_CODE: Final = 70
"""Of the copy (EX_SOFTWARE)."""


class _Process:
    """Whether this is the process that callbacks were called in, or a copy of it that one of them made."""

    def __init__(self) -> None:
        self.is_copy = False
        self._is_watched = False

    def watch(self) -> None:
        if not self._is_watched:
            self._is_watched = True
            os.register_at_fork(after_in_child=self._copied)

    def _copied(self) -> None:
        self.is_copy = True


process: Final = _Process()
"""To be asked after every step of a callback; a look costs an attribute."""


def watch_forks() -> None:
    """Have `process` know of every fork from now on. More than once is no more than once."""
    process.watch()


def end_copy(callback_name: str) -> None:
    """End this process, which is a copy, without anything that a server does at its end."""
    try:
        log.error("callback.forked", callback=callback_name, pid=os.getpid())
    finally:
        os._exit(FORKED_EXIT_CODE)
