"""Statuses and their classes (PS3.7 Annex C)."""

from __future__ import annotations

import pytest

from scp_server.protocol.status import Status, StatusClass, status_class

WARNINGS = {0x0001, 0x0107, 0x0116, *range(0xB000, 0xC000)}
FAILURES = ({*range(0x0100, 0x0300)} | {*range(0xA000, 0xB000)} | {*range(0xC000, 0xD000)}) - WARNINGS


def expected(code: int) -> StatusClass:
    if code == 0:
        return StatusClass.SUCCESS
    if code in (0xFF00, 0xFF01):
        return StatusClass.PENDING
    if code == 0xFE00:
        return StatusClass.CANCEL
    return StatusClass.WARNING if code in WARNINGS else StatusClass.FAILURE


def test_every_code_has_the_class_the_standard_gives_it() -> None:
    """PS3.7 C."""
    assert [code for code in range(0x10000) if status_class(code) is not expected(code)] == []


def test_what_the_standard_does_not_define_is_a_failure() -> None:
    undefined = set(range(0x10000)) - WARNINGS - FAILURES - {0, 0xFE00, 0xFF00, 0xFF01}
    assert {status_class(code) for code in undefined} == {StatusClass.FAILURE}


@pytest.mark.parametrize("status", list(Status), ids=lambda status: status.name)
def test_a_status_can_be_used_as_its_code(status: Status) -> None:
    assert status_class(status) is expected(int(status))
