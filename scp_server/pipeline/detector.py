"""`@detector`: what makes a function one that the server has examine images, and report on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from scp_server.errors import ConfigurationError
from scp_server.pipeline.callback import DetectorTerms, Function, RunIn, make_callback, note
from scp_server.pipeline.stages import Stage

F = TypeVar("F", bound=Function)


def detector(
    *,
    algorithm: Sequence[str],
    name: str | None = None,
    sop_classes: Sequence[str] = ("dicos",),
    modalities: Sequence[str] = ("CT",),
    calling_ae_titles: Sequence[str] = (),
    called_ae_titles: Sequence[str] = (),
    timeout_seconds: float | None = None,
    concurrency: int | None = None,
    memory_bytes: int | None = None,
    attempts: int = 2,
    abort_report: bool = True,
) -> Callable[[F], F]:
    """Have a function examine every image that comes; returns it unchanged.

    It is a plain function at the top of a module, is given a view of the image, all its parts, and returns or
    yields each `Detection`. It runs in a process of its own, once the association that brought the image has
    ended; the report of what it found is stored as if it had been received from a peer whose AE title is
    `name` (16 characters of it). `algorithm` is manufacturer, version and parameters, as the report names
    them. After `attempts` that failed, or the first one where the image cannot be read, the report is an
    ABORT, unless `abort_report` says that there is none, and the delivery a dead letter. Everything else is
    as in `callback`. Raises ConfigurationError, naming function and parameter.
    """

    def tag(function: F) -> F:
        words = tuple(algorithm)
        problem = ""
        if isinstance(algorithm, str) or len(words) < 2 or not all(isinstance(one, str) for one in words):
            problem = "algorithm: must be manufacturer, version and parameters, a list of texts"
        elif any("\\" in one for one in words):
            problem = "algorithm: a backslash cannot be in it"
        elif isinstance(attempts, bool) or attempts < 1:
            problem = "attempts: must be at least 1"
        if problem:
            raise ConfigurationError(f"detector {getattr(function, '__qualname__', function)}: {problem}")
        made = make_callback(
            function,
            stage=Stage.ASSOCIATION_COMPLETE,
            name=name,
            filters={
                "sop_classes": sop_classes,
                "modalities": modalities,
                "calling_ae_titles": calling_ae_titles,
                "called_ae_titles": called_ae_titles,
            },
            timeout_seconds=timeout_seconds,
            concurrency=concurrency,
            run_in=RunIn.PROCESS,
            memory_bytes=memory_bytes,
            detector=DetectorTerms(words, attempts, abort_report),
        )
        note(function, made)
        return function

    return tag
