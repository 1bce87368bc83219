from __future__ import annotations

import io
import json
import logging
import os
import select
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from scp_server.observability.logs import _library_handler, captured_logs, configure_logging, get_logger
from scp_server.observability.render import MAX_VALUE_TEXT, safe_value

FORGED = 'SCANNER\n{"level":"critical","event":"server.hacked"}\r\x1b[2J'


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Whatever a test configures ends with it."""
    with captured_logs():
        yield


def json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_begins_with_time_level_and_event() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    get_logger("x").info("association.accepted", contexts=3, rate=1.5, none=None, flags=(True, b"\x00"))
    [event] = json_lines(stream)
    assert list(event)[:3] == ["timestamp", "level", "event"]
    assert event["timestamp"].endswith("Z")
    assert (event["level"], event["event"]) == ("info", "association.accepted")
    assert (event["contexts"], event["rate"], event["none"], event["flags"]) == (
        3,
        1.5,
        None,
        [True, "\\x00"],
    )


@pytest.mark.parametrize("format", ["json", "console"])
def test_forged_ae_title_cannot_make_a_line_in_either_format(format: Any) -> None:
    stream = io.StringIO()
    configure_logging(format, "info", stream)
    get_logger("x").warning("association.rejected", calling_ae_title=FORGED, nested={"a": [FORGED]})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "\r" not in text


def test_console_value_cannot_pretend_to_be_another_key() -> None:
    stream = io.StringIO()
    configure_logging("console", "info", stream)
    get_logger("x").info("store.done", calling_ae_title='A" status=0x0000', status="0xA700")
    assert 'calling_ae_title="A\\" status=0x0000" status=0xA700\n' in stream.getvalue()


def test_lines_of_an_exception_cannot_pretend_to_be_lines_of_the_log() -> None:
    stream = io.StringIO()
    configure_logging("console", "info", stream)
    try:
        raise ValueError(FORGED)
    except ValueError:
        get_logger("x").exception("operation.failed")
    first, *below = stream.getvalue().split("\n")[:-1]
    assert "operation.failed" in first
    assert below
    assert all(line.startswith("    | ") for line in below)
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(("level", "shown"), [("debug", True), ("info", False), ("error", False)])
def test_identities_appear_at_debug_only_and_passcodes_never(level: str, shown: bool) -> None:
    stream = io.StringIO()
    configure_logging("json", "debug", stream)
    write = getattr(get_logger("x"), level)
    write("object.stored", patient_name="DOE^JANE", passcode="hunter2", nested={"patient_id": "4711", "n": 1})
    [event] = json_lines(stream)
    assert ("patient_name" in event) is shown
    assert ("patient_id" in event["nested"]) is shown
    assert event["nested"]["n"] == 1
    assert "hunter2" not in stream.getvalue()


def test_level_filters_and_can_be_changed_for_loggers_that_exist() -> None:
    stream = io.StringIO()
    log = get_logger("x")
    bound = log.bind(association_id="a-1")
    configure_logging("json", "warning", stream)
    log.info("a.hidden")
    bound.info("a.hidden")
    configure_logging("json", "debug", stream)
    bound.debug("a.shown", n=1)
    [event] = json_lines(stream)
    assert (event["event"], event["association_id"], event["n"]) == ("a.shown", "a-1", 1)


def test_libraries_and_warnings_go_the_same_way_from_warning_on() -> None:
    stream = io.StringIO()
    configure_logging("json", "debug", stream)
    library = logging.getLogger("somelibrary.part")
    library.info("INSERT %s", "DOE^JANE")
    library.error("lost\n%s", FORGED)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("careful", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    error, warning = json_lines(stream)
    assert (error["level"], error["logger"]) == ("error", "somelibrary.part")
    assert warning["level"] == "warning"
    assert "careful" in warning["message"]
    assert "DOE" not in stream.getvalue()


def test_library_record_that_cannot_be_formatted_is_still_reported() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    # Not through the root logger, where the test runner's own handler would raise first.
    _library_handler.emit(logging.LogRecord("lib", logging.ERROR, "", 1, "%d", ("no number",), None))
    [event] = json_lines(stream)
    assert "could not be formatted" in event["message"]


class BrokenStream(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_broken_or_closed_stream_never_raises() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (BrokenStream(), closed):
        configure_logging("json", "info", stream)
        get_logger("x").error("a.b")


def test_pipe_without_a_reader_loses_lines_and_nothing_else() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", closefd=False) as stream:
        configure_logging("json", "info", stream)
        os.close(reader)
        for _ in range(3):
            get_logger("x").error("a.b")
    os.close(writer)


def test_full_pipe_does_not_block_and_says_afterwards_what_was_dropped() -> None:
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "w", closefd=False) as stream:
            configure_logging("json", "info", stream)
            log = get_logger("x")
            for number in range(2_000):
                log.info("a.full", number=number, filler="x" * 900)
            os.set_blocking(reader, False)
            received = b""
            while True:
                try:
                    received += os.read(reader, 1 << 20)
                except BlockingIOError:
                    break
            log.info("a.after")
            received += os.read(reader, 1 << 20)
    finally:
        os.close(reader)
        os.close(writer)
    events = [json.loads(line) for line in received.decode().splitlines()]
    written = [event["number"] for event in events if event["event"] == "a.full"]
    [dropped] = [event for event in events if event["event"] == "log.dropped"]
    assert written == list(range(len(written)))
    assert dropped["lines"] + len(written) == 2_000
    assert events[-1]["event"] == "a.after"


def test_stream_that_cannot_encode_gets_escapes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    configure_logging("console", "info", stream)
    get_logger("x").info("a.b", name="Müller")
    stream.flush()
    assert b"name=M\\xfcller" in raw.getvalue()


def test_safe_value_bounds_depth_length_and_what_json_cannot_hold() -> None:
    deep: list[Any] = []
    for _ in range(50):
        deep = [deep]
    assert len(json.dumps(safe_value(deep))) < 100
    assert len(safe_value("x" * 10_000)) == MAX_VALUE_TEXT
    assert len(safe_value(list(range(1_000)))) == 64
    assert safe_value(float("nan")) == "nan"
    assert safe_value(ValueError("a\nb")) == "a\\x0ab"


def test_value_whose_text_fails_does_not_raise() -> None:
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError

    assert "Hostile" in safe_value(Hostile())


def test_captured_logs_collects_instead_of_writing() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    log = get_logger("x")
    with captured_logs() as events:
        log.debug("a.b", n=1)
    log.info("a.after")
    assert [(event["event"], event["n"]) for event in events] == [("a.b", 1)]
    assert [event["event"] for event in json_lines(stream)] == ["a.after"]


@pytest.mark.parametrize(("call", "expected"), [("info", ""), ("error", "a.b")])
def test_unconfigured_only_warnings_are_written_and_structlog_stays_out(call: str, expected: str) -> None:
    program = (
        "import sys; from scp_server.observability.logs import get_logger; log = get_logger('x');"
        f"log.{call}('a.b'); print('structlog' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert expected in done.stderr
    assert bool(done.stderr) is bool(expected)
    assert done.stdout.strip() == str(bool(expected))


def test_the_worker_is_in_every_line_where_there_are_several() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream, worker=2)
    get_logger().info("a.b")
    logging.getLogger("library").warning("hello")
    configure_logging("json", "info", stream)
    get_logger().info("c.d")
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert (first["worker"], second["worker"]) == (2, 2)
    assert "worker" not in third


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize(
    "values",
    [
        {"text": "x" * 5_000},
        {"texts": ["x" * 1_000] * 64},
        {"deep": {f"key {n}": [{"a": "\u00e9" * 100}] * 64 for n in range(64)}},
        {f"key_{n}": "y" * 900 for n in range(300)},
    ],
)
def test_no_line_of_several_workers_is_longer_than_a_pipe_takes_whole(
    format: Any, values: dict[str, Any]
) -> None:
    stream = io.StringIO()
    configure_logging(format, "info", stream, worker=0)
    get_logger().info("a.b", **values)
    get_logger().info("c.d", text="z" * 1_000)
    long, short = stream.getvalue().splitlines()
    assert len(long.encode()) < select.PIPE_BUF
    assert "a.b" in long
    assert "z" * 1_000 in short
