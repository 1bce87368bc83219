"""The program of a process that calls one callback: see `child_program` for its jobs and answers.

A job's content is what the callback is given, pickled; the answer an `Answer`, pickled. The callback's module
is imported with the first job, so that what goes wrong there is an answer, too.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from typing import Final

from scp_server.child_program import Jobs
from scp_server.pipeline.callback import find_function
from scp_server.pipeline.callback_answer import ANSWERED, FORKED, Answer
from scp_server.pipeline.examination import Examination
from scp_server.pipeline.raised import type_and_place
from scp_server.pipeline.verdicts import NotDelivered, Reject, Undeliverable

_MAX_TEXT_CHARACTERS: Final = 2_000


class _Forks:
    """How often this process has forked, and whether it is the copy that a fork made."""

    def __init__(self) -> None:
        self.count = 0
        self.is_copy = False
        os.register_at_fork(after_in_parent=self._count, after_in_child=self._note_copy)

    def _count(self) -> None:
        self.count += 1

    def _note_copy(self) -> None:
        self.is_copy = True


def main(memory_bytes: int, job_seconds: int, import_name: str) -> None:
    """Answer jobs until there are no more."""
    forks = _Forks()
    jobs = Jobs(memory_bytes, job_seconds)
    for _, content in jobs:
        answer = _called(import_name, content)
        if forks.is_copy:
            os._exit(0)
        jobs.answer(FORKED if forks.count else ANSWERED, pickle.dumps(answer))


def _called(import_name: str, content: bytes) -> Answer:
    try:
        arguments = pickle.loads(content)
        function = find_function(import_name)
        if isinstance(arguments[0], Examination):
            arguments[0].examine(function)
            return Answer(report=arguments[0].report)
        result = function(*arguments)
        changes = getattr(arguments[0], "changes", None)
        return Answer(returned=None if result is None else type(result).__name__, changes=changes)
    except (Reject, NotDelivered, Undeliverable) as verdict:
        return Answer(verdict=verdict)
    except BaseException as error:
        raised = f"{type(error).__name__}: {error}"[:_MAX_TEXT_CHARACTERS]
        return Answer(raised=raised, place=_place(error, import_name), traceback=_where(error))


def _place(error: BaseException, import_name: str) -> str:
    """See `type_and_place`; only the type where there is no function, or no memory."""
    try:
        return type_and_place(error, find_function(import_name))
    except Exception:
        return type(error).__name__


def _where(error: BaseException) -> str:
    """The end of the traceback as text; nothing where there is not even memory for that."""
    try:
        return "".join(traceback.format_exception(error))[-_MAX_TEXT_CHARACTERS:]
    except MemoryError:
        return ""


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
