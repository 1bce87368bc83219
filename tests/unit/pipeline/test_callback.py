"""What `@callback` notes, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from scp_server import callback
from scp_server.errors import ConfigurationError
from scp_server.pipeline.callback import OnFailure, RunIn, callbacks_of
from scp_server.pipeline.registry import CallbackSources, load_callbacks
from scp_server.pipeline.stages import Stage


def plain(instance: Any) -> None:
    del instance


async def coroutine(instance: Any) -> None:
    del instance


def test_a_decorated_function_stays_what_it_is() -> None:
    decorated = callback(stage="received", order=3, on_failure="ignore")(plain)
    assert decorated is plain
    assert plain(1) is None  # type: ignore[func-returns-value]
    (noted,) = callbacks_of(plain)
    assert (noted.name, noted.stage, noted.order) == ("plain", Stage.RECEIVED, 3)
    assert (noted.on_failure, noted.timeout_seconds) == (OnFailure.IGNORE, None)


def test_an_async_function_runs_in_the_loop_and_a_plain_one_in_a_thread() -> None:
    async def one(instance: Any) -> None: ...

    def other(instance: Any) -> None: ...

    assert callbacks_of(callback("stored")(one))[0].run_in is RunIn.LOOP
    assert callbacks_of(callback("stored")(other))[0].run_in is RunIn.THREAD


def test_an_object_that_is_called_has_a_name_of_its_choice() -> None:
    class Counter:
        async def __call__(self, connection: Any) -> None: ...

    counter = callback("connected", name="counter")(Counter())
    (noted,) = callbacks_of(counter)
    assert (noted.name, noted.run_in) == ("counter", RunIn.LOOP)
    assert noted.import_name.endswith("Counter")


def test_a_method_is_refused_for_who_would_be_its_self() -> None:
    class Rules:
        @callback("received", name="of_class")
        async def look(self, *instance: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="a method cannot be one"):
        callback("received")(Rules().look)
    with pytest.raises(ConfigurationError, match="is a method"):
        load_callbacks(CallbackSources([Rules().look], entry_points=False))


def test_one_function_may_be_at_two_stages() -> None:
    @callback("connected", name="came")
    @callback("disconnected", name="went")
    def both(connection: Any) -> None: ...

    assert {each.name for each in callbacks_of(both)} == {"came", "went"}


def test_a_second_argument_of_a_durable_stage_is_the_delivery() -> None:
    def one(instance: Any, more: int = 0) -> None: ...

    def two(instance: Any, delivery: Any) -> None: ...

    assert not callbacks_of(callback("stored")(one))[0].takes_delivery
    assert callbacks_of(callback("stored")(two))[0].takes_delivery


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (plain, {"stage": "recieved"}, "plain: stage: 'recieved' is none of"),
        (plain, {"stage": "echo", "modalities": ["CT"]}, "modalities: is for the stages received, stored"),
        (plain, {"stage": "connected", "calling_ae_titles": ["A"]}, "calling_ae_titles: connected knows"),
        (plain, {"stage": "stored", "sop_classes": "CT"}, "sop_classes: must be a list"),
        (plain, {"stage": "stored", "sop_classes": ["CTImage"]}, "plain: sop_classes: 'CTImage' is no UID"),
        (plain, {"stage": "stored", "run_in": "loop"}, "run_in: a plain function"),
        (coroutine, {"stage": "stored", "run_in": "thread"}, "run_in: an async function"),
        (coroutine, {"stage": "stored", "run_in": "process"}, "run_in: an async function"),
        (lambda one: None, {"stage": "stored", "name": "a", "run_in": "process"}, "can be imported"),
        (lambda one: None, {"stage": "stored"}, "name: '<lambda>'"),
        (plain, {"stage": "stored", "timeout_seconds": 0}, "timeout_seconds: must be greater"),
        (plain, {"stage": "stored", "concurrency": -1}, "concurrency: must be greater"),
        (plain, {"stage": "stored", "memory_bytes": 1 << 30}, "memory_bytes: is for run_in"),
        (plain, {"stage": "stored", "on_failure": "ignore"}, "on_failure: is for the stages associated, re"),
        (lambda: None, {"stage": "stored", "name": "a"}, "takes no argument"),
        (lambda a, b: None, {"stage": "received", "name": "a"}, "given one argument"),
        (int, {"stage": "stored"}, "is no function"),
    ],
)
def test_wrong_use_names_function_and_parameter(function: Any, arguments: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        callback(**arguments)(function)
