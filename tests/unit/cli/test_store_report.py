from __future__ import annotations

import io
import sys

import pytest

from scp_server.cli.store_report import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_standard_error_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(2_000_000, 2, at_terminal=True) as advance:
        advance(1_000_000, 0)
        advance(0, 1)
    assert "1/2 files" in terminal.getvalue()
    assert "1.0/2.0 MB" in terminal.getvalue()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("stream", "wanted"), [(io.StringIO(), True), (Terminal(), False)])
def test_progress_is_silent_elsewhere(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, wanted: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(10, 1, at_terminal=wanted) as advance:
        advance(10, 1)
    assert stream.getvalue() == ""
