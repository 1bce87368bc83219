"""What a callback raised, told without its words, which may name a patient: they are logged at DEBUG only."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable


def type_and_place(error: BaseException, function: Callable[..., object]) -> str:
    """Its type, and the last line of the function's own file that it came through, or else of any file."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [place for place in places if code is not None and place[0] == code.co_filename]
    kind = type(error).__name__
    if not places:
        return kind
    path, line = (own or places)[-1]
    return f"{kind} at {path}:{line}"
