"""Calls a callback in a process of its own: killed at its deadline, and limited in memory."""

from __future__ import annotations

import os
import pickle
import sys
from typing import Final

from scp_server.child_processes import ChildConfig, ChildLost, ChildProcesses, ChildTooSlow
from scp_server.observability.logs import get_logger
from scp_server.pipeline.callback_answer import FORKED, Answer
from scp_server.pipeline.stepping import DeadlinePassed

log = get_logger(__name__)

_PROGRAM: Final = "scp_server.pipeline.callback_process"
_MAX_ANSWER_BYTES: Final = 8 << 20


class ProcessLost(Exception):
    """The process crashed, or answered nothing that makes sense."""


class RaisedThere(Exception):
    """The callback raised in its process; the text has the type, and a note the traceback from there. `place`
    is type and place alone."""

    def __init__(self, text: str, place: str) -> None:
        super().__init__(text)
        self.place = place


class CallbackProcesses:
    """The processes of one callback. What it is given goes there pickled, and an `Answer` comes back."""

    def __init__(
        self, name: str, import_name: str, processes: int, seconds: float, memory_bytes: int
    ) -> None:
        self._name = name
        self._children = ChildProcesses(
            ChildConfig(
                program=_PROGRAM,
                arguments=(import_name,),
                processes=processes,
                job_seconds=seconds,
                memory_bytes=memory_bytes,
                # The module that the callback is in is to be found there as it was here.
                environment={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        )

    async def call(self, arguments: tuple[object, ...]) -> Answer:
        """How the call ended. Raises DeadlinePassed, ProcessLost, and RaisedThere for what it raised."""
        try:
            kind, pieces = await self._children.ask(
                b"", pickle.dumps(arguments), _MAX_ANSWER_BYTES, used_up=FORKED
            )
        except ChildTooSlow:
            raise DeadlinePassed from None
        except ChildLost as lost:
            raise ProcessLost(f"its process was lost: {lost}") from lost
        if kind == FORKED:
            # Copies end when they come back; those that do not were killed with the process.
            log.error("callback.forked", callback=self._name)
        try:
            answer = pickle.loads(b"".join(pieces))
        except Exception as error:
            raise ProcessLost(f"its process made no sense: {type(error).__name__}") from error
        if not isinstance(answer, Answer):
            raise ProcessLost("its process answered something else")
        if answer.raised:
            raised = RaisedThere(answer.raised, answer.place)
            raised.add_note(answer.traceback)
            raise raised
        return answer

    async def close(self) -> None:
        """End the processes. No call may be under way."""
        await self._children.close()
