"""Callbacks that misbehave: each way has its bound, its count and its line in the log."""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scp_server import Reject, callback
from scp_server.observability.logs import captured_logs, configure_logging
from scp_server.observability.measures import CallbackCounts
from scp_server.pipeline.callback import callbacks_of, find_function
from scp_server.pipeline.forking import FORKED_EXIT_CODE
from scp_server.pipeline.running import CallbackFailed, CallbackLimits, CallbackRunner
from scp_server.pipeline.subjects import ConnectionFacts

SUBJECT = ConnectionFacts("192.0.2.7", 104, 1)
Start = Callable[..., CallbackRunner]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Makes a runner of a decorated function; its counts are `counts`, and it is closed at the end."""
    runners = []

    def start(function: Any, **limits: Any) -> CallbackRunner:
        runner = CallbackRunner(
            callbacks_of(function)[-1],
            CallbackLimits(**{"blocking_seconds": 60.0, **limits}),
            CallbackCounts(),
        )
        runners.append(runner)
        return runner

    yield start
    for runner in runners:
        await runner.close()


async def failure(runner: CallbackRunner) -> tuple[str, dict[str, Any]]:
    """The outcome of a call that fails, and its line."""
    with captured_logs() as lines, pytest.raises(CallbackFailed) as caught:
        await runner.run(SUBJECT)
    (line,) = [line for line in lines if line["event"] == "callback.failed"]
    assert line["callback"] == runner.callback.name
    assert line["peer_host"] == "192.0.2.7"
    assert line["outcome"] == caught.value.outcome.value
    assert runner.counts.outcomes[caught.value.outcome] == 1
    assert runner.counts.running == 0
    return caught.value.outcome.value, line


# -- in the loop


async def test_one_that_returns_is_counted_and_nothing_else_happens(start: Start) -> None:
    seen = []

    @callback("connected")
    async def good(connection: Any) -> None:
        seen.append(connection)
        await asyncio.sleep(0)

    runner = start(good)
    await runner.run(SUBJECT)
    assert seen == [SUBJECT]
    assert runner.counts.outcomes["returned"] == 1
    assert sum(runner.counts.seconds.counts) == 1


async def test_one_that_raises_is_named_with_type_and_line_and_its_words_are_for_debug_alone(
    start: Start,
) -> None:
    @callback("connected")
    async def bad(connection: Any) -> None:
        await asyncio.sleep(0)
        raise KeyError("DOE^JANE")

    with captured_logs() as lines, pytest.raises(CallbackFailed) as caught:
        await start(bad).run(SUBJECT)
    told = {line["level"]: line for line in lines}
    place = f"KeyError at {__file__}:{bad.__code__.co_firstlineno + 3}"
    assert (told["error"]["outcome"], told["error"]["error"]) == ("raised", place)
    assert "DOE" not in str(told["error"]) + str(caught.value)
    assert told["debug"]["error"] == "KeyError: 'DOE^JANE'"
    assert caught.value.detail == "callback bad: KeyError: 'DOE^JANE'"
    assert len(lines) == 2


async def test_a_timeout_of_its_own_is_what_it_raised(start: Start) -> None:
    @callback("connected")
    async def bad(connection: Any) -> None:
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    outcome, _ = await failure(start(bad))
    assert outcome == "raised"


async def test_one_that_would_end_the_server_or_its_caller_has_only_failed(start: Start) -> None:
    @callback("connected", name="leaves")
    async def leaves(connection: Any) -> None:
        await asyncio.sleep(0)
        sys.exit("enough")

    @callback("connected", name="leaves_at_once")
    async def leaves_at_once(connection: Any) -> None:
        sys.exit("enough")

    @callback("connected", name="cancelled")
    async def cancelled(connection: Any) -> None:
        other = asyncio.create_task(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(other.cancel)
        await other

    for function, kind in (
        (leaves, "SystemExit"),
        (leaves_at_once, "SystemExit"),
        (cancelled, "CancelledError"),
    ):
        outcome, line = await failure(start(function))
        assert outcome == "raised"
        assert line["error"].startswith(f"{kind} at {__file__}:")


@pytest.mark.parametrize("swallows", [False, True])
async def test_one_that_never_returns_is_cancelled_at_its_deadline_and_then_closed(
    start: Start, swallows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scp_server.pipeline.stepping.GRACE_SECONDS", 0.02)
    ended = []

    @callback("connected", timeout_seconds=0.02)
    async def endless(connection: Any) -> None:
        try:
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if not swallows:
                        raise
        finally:
            ended.append(True)

    outcome, line = await failure(start(endless))
    assert (outcome, line["error"]) == ("timed_out", "it took longer than 0.02 s")
    assert ended == [True]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_one_that_returns_in_its_grace_was_too_late_all_the_same(start: Start) -> None:
    @callback("connected", timeout_seconds=0.02)
    async def late(connection: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)

    assert (await failure(start(late)))[0] == "timed_out"


async def test_who_calls_it_may_be_cancelled(start: Start) -> None:
    waiting = asyncio.Event()

    @callback("connected")
    async def endless(connection: Any) -> None:
        waiting.set()
        await asyncio.Event().wait()

    runner = start(endless)
    call = asyncio.create_task(runner.run(SUBJECT))
    await waiting.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert runner.counts.running == 0


async def test_a_task_group_and_a_timeout_work_as_anywhere(start: Start) -> None:
    done = []

    @callback("connected")
    async def grouped(connection: Any) -> None:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(asyncio.sleep(0, number)).add_done_callback(
                    lambda task: done.append(task.result())
                )

    await start(grouped).run(SUBJECT)
    assert sorted(done) == [0, 1, 2]


async def test_one_that_blocks_the_loop_is_named_and_counted(start: Start) -> None:
    @callback("connected")
    async def blocking(connection: Any) -> None:
        await asyncio.sleep(0)
        time.sleep(0.03)

    runner = start(blocking, blocking_seconds=0.02)
    with captured_logs() as lines:
        await runner.run(SUBJECT)
    (line,) = [line for line in lines if line["event"] == "callback.blocked_loop"]
    assert line["callback"] == "blocking"
    assert 0.02 < line["seconds"] < 5
    assert runner.counts.blocked == 1
    assert runner.counts.outcomes["returned"] == 1


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_one_that_returns_something_is_nonsense(start: Start, kind: str) -> None:
    @callback("connected")
    async def nonsense(connection: Any) -> int:
        return 0xC000

    @callback("connected")
    def plain_nonsense(connection: Any) -> str:
        return "refuse"

    outcome, line = await failure(start(nonsense if kind == "async" else plain_nonsense))
    assert outcome == "nonsense"
    assert line["error"] == f"it returned {'int' if kind == 'async' else 'str'}, and must return None"


async def test_calls_in_turn_are_as_many_at_once_as_it_allows_and_waiting_counts(start: Start) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    @callback("received", concurrency=1, timeout_seconds=0.05)
    async def slow(instance: Any) -> None:
        entered.set()
        await leave.wait()

    runner = start(slow)
    first = asyncio.create_task(runner.in_turn(SUBJECT))
    await entered.wait()
    second = asyncio.create_task(runner.in_turn(SUBJECT))
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(each) for each in results] == [CallbackFailed, CallbackFailed]
    assert runner.counts.outcomes["timed_out"] == 2
    entered.clear()
    third = asyncio.create_task(runner.in_turn(SUBJECT))
    await entered.wait()
    leave.set()
    await third


async def test_the_copy_that_a_fork_leaves_ends_and_is_named(start: Start, tmp_path: Path) -> None:
    copies = []

    @callback("connected")
    async def forking(connection: Any) -> None:
        copies.append(os.fork())

    runner = start(forking)
    log_file = tmp_path / "log"
    with log_file.open("w") as stream:
        configure_logging("json", "info", stream)
        try:
            await runner.run(SUBJECT)
        finally:
            configure_logging("json", "info")
    (copy,) = copies
    _, status = os.waitpid(copy, 0)
    assert os.waitstatus_to_exitcode(status) == FORKED_EXIT_CODE
    (line,) = map(json.loads, log_file.read_text().splitlines())
    assert (line["event"], line["callback"], line["pid"]) == ("callback.forked", "forking", copy)
    assert runner.counts.outcomes["returned"] == 1


# -- in a thread


async def test_a_plain_one_runs_in_a_thread_and_may_reject(start: Start) -> None:
    threads = []

    @callback("received")
    def plain(instance: Any) -> None:
        threads.append(threading.current_thread())
        raise Reject(0xC001, "no")

    runner = start(plain)
    for _ in range(2):
        with pytest.raises(Reject, match="no"):
            await runner.run(SUBJECT)
    assert threads[0] is not threading.main_thread()
    assert threads[0] is threads[1], "a thread is kept for the next call"
    assert runner.counts.outcomes["rejected"] == 2


async def test_threads_that_never_return_are_abandoned_counted_and_bounded(start: Start) -> None:
    leave = threading.Event()

    @callback("connected", timeout_seconds=0.02)
    def endless(connection: Any) -> None:
        leave.wait(30)

    runner = start(endless, max_abandoned_threads=2)
    with captured_logs() as lines:
        for _ in range(3):
            with pytest.raises(CallbackFailed):
                await runner.run(SUBJECT)
    assert [line["outcome"] for line in lines] == ["timed_out", "timed_out", "lost"]
    assert lines[2]["error"] == "2 calls of it have not come back"
    assert runner.counts.abandoned == 2
    leave.set()
    async with asyncio.timeout(10):
        while runner.counts.abandoned:
            await asyncio.sleep(0.001)
    await runner.run(SUBJECT)
    assert runner.counts.outcomes["returned"] == 1


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(3), KeyboardInterrupt()])
async def test_what_a_thread_raises_does_not_end_the_server(start: Start, error: BaseException) -> None:
    @callback("connected")
    def ending(connection: Any) -> None:
        raise error

    outcome, line = await failure(start(ending))
    assert outcome == "raised"
    assert type(error).__name__ in line["error"]


# -- in a process


PLUGIN = """
import os, subprocess, time
from scp_server import Reject

def good(connection):
    assert connection.peer_host == "192.0.2.7"
    print("not into the answer")

def raises(connection):
    raise KeyError("there")

def rejects(connection):
    raise Reject(0xA900, "no", quarantine=True)

def endless(connection):
    started = subprocess.Popen(["sleep", "600"])
    open(__file__ + ".pid", "w").write(str(started.pid))
    time.sleep(600)

def forks(connection):
    with open(__file__ + ".pids", "a") as file:
        file.write(f"{os.getpid()} ")
    if os.fork() == 0:
        time.sleep(600)

def hungry(connection):
    bytearray(1 << 30)

def crashes(connection):
    os.abort()

def nonsense(connection):
    return {"status": 0}

def alone(connection):
    lock = os.open(__file__ + ".lock", os.O_CREAT | os.O_EXCL)
    time.sleep(0.03)
    os.unlink(__file__ + ".lock")

def together(connection):
    other = __file__ + ".fifo"
    try:
        os.mkfifo(other)
    except FileExistsError:
        # Opened by both, or by neither.
        open(other).read()
    else:
        open(other, "w").write("here")
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A function of the plug-in, decorated to run in a process."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bad_plugin.py").write_text(PLUGIN)

    def get(name: str, stage: str = "connected", seconds: float = 20.0, **more: Any) -> Any:
        function = find_function(f"bad_plugin:{name}")
        return callback(stage, run_in="process", timeout_seconds=seconds, **more)(function)

    yield get
    sys.modules.pop("bad_plugin", None)


async def test_one_in_a_process_gets_its_subject_and_may_reject(start: Start, plugin: Any) -> None:
    runner = start(plugin("good"))
    await runner.run(SUBJECT)
    await runner.run(SUBJECT)
    assert runner.counts.outcomes["returned"] == 2
    with pytest.raises(Reject) as caught:
        await start(plugin("rejects", "received")).run(SUBJECT)
    assert (caught.value.status, caught.value.comment, caught.value.quarantine) == (0xA900, "no", True)


@pytest.mark.parametrize(
    ("name", "outcome", "words"),
    [
        ("raises", "raised", "KeyError at "),
        ("hungry", "raised", "MemoryError"),
        ("crashes", "lost", "its process was lost"),
        ("nonsense", "nonsense", "it returned dict"),
    ],
)
async def test_a_process_that_misbehaves_costs_its_call_alone(
    start: Start, plugin: Any, name: str, outcome: str, words: str
) -> None:
    runner = start(plugin(name, memory_bytes=768 << 20))
    found, line = await failure(runner)
    assert found == outcome
    assert words in line["error"]


async def test_a_process_that_never_returns_is_killed_with_what_it_started(
    start: Start, plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[asyncio.subprocess.Process] = []
    create = asyncio.create_subprocess_exec

    async def creating(*arguments: Any, **more: Any) -> asyncio.subprocess.Process:
        started.append(await create(*arguments, **more))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", creating)
    assert (await failure(start(plugin("endless", seconds=3.0))))[0] == "timed_out"
    (process,) = started
    assert process.returncode == -9
    what_it_started = int((tmp_path / "bad_plugin.py.pid").read_text())
    assert _dies(what_it_started)


async def test_a_process_that_forks_is_named_and_ends_with_its_copies(
    start: Start, plugin: Any, tmp_path: Path
) -> None:
    runner = start(plugin("forks"))
    for _ in range(2):
        with captured_logs() as lines:
            await runner.run(SUBJECT)
        assert [(line["event"], line["callback"]) for line in lines] == [("callback.forked", "forks")]
    originals = {int(one) for one in (tmp_path / "bad_plugin.py.pids").read_text().split()}
    assert len(originals) == 2, "the process was used again"
    assert all(map(_dies, originals))
    assert runner.counts.outcomes["returned"] == 2


def _dies(process_id: int) -> bool:
    """Whether a process ends, or has ended; waits for it."""
    try:
        descriptor = os.pidfd_open(process_id)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)


async def test_as_many_processes_as_allowed_run_at_once(start: Start, plugin: Any) -> None:
    runner = start(plugin("alone"), processes=1)
    assert runner.concurrency == 1
    await asyncio.gather(*(runner.run(SUBJECT) for _ in range(4)))
    together = start(plugin("together", concurrency=2), processes=1)
    assert together.concurrency == 2
    await asyncio.gather(*(together.run(SUBJECT) for _ in range(2)))


async def test_a_process_may_use_as_much_memory_as_the_setting_says(start: Start, plugin: Any) -> None:
    _, line = await failure(start(plugin("hungry"), process_memory_bytes=768 << 20))
    assert "MemoryError" in line["error"]
    await start(plugin("hungry"), process_memory_bytes=8 << 30).run(SUBJECT)
