"""The ring of the last problems."""

from __future__ import annotations

import io

from scp_server.observability.logs import captured_logs, configure_logging, get_logger
from scp_server.observability.recent import RECENT_PROBLEMS, forget_problems, recent_problems


def test_the_last_problems_are_remembered_and_no_more() -> None:
    forget_problems()
    with captured_logs():
        configure_logging("json", "info", io.StringIO())
        log = get_logger("test")
        log.info("nothing.special")
        for number in range(RECENT_PROBLEMS + 5):
            log.warning("disk.slow", number=number, patient_name="DOE")
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            log.exception("operation.failed")
    found = recent_problems()
    assert len(found) == RECENT_PROBLEMS
    assert [each["event"] for each in found[-2:]] == ["disk.slow", "operation.failed"]
    assert found[-2]["number"] == RECENT_PROBLEMS + 4
    assert not any("exception" in each or "patient_name" in each for each in found)
    forget_problems()
