"""The client commands against an archive that shares no code with this one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt
from typer.testing import CliRunner

from scp_server.cli.main import app

RUNNER = CliRunner()
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def received() -> dict[str, bytes]:
    return {}


@pytest.fixture
def port(received: dict[str, bytes]) -> Iterator[int]:
    def handle_store(event: Any) -> int:
        received[str(event.request.AffectedSOPInstanceUID)] = event.request.DataSet.getvalue()
        return 0xA700 if event.request.AffectedSOPInstanceUID == "1.2.3.2" else 0x0000

    ae = AE("ARCHIVE")
    ae.require_called_aet = True
    ae.add_supported_context("1.2.840.10008.1.1")
    ae.add_supported_context(CT, EXPLICIT)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handle_store)])
    assert server is not None
    yield server.server_address[1]
    server.shutdown()


def invoke(command: str, port: int, *more: str) -> Any:
    return RUNNER.invoke(app, [command, "--port", str(port), "--ae-title", "ARCHIVE", "--json", *more])


def test_echo_succeeds(port: int) -> None:
    result = invoke("echo", port)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["status"] == "0x0000"


def test_rejected_association_is_exit_3(port: int) -> None:
    result = invoke("echo", port, "--ae-title", "SOMEBODY")
    assert result.exit_code == 3
    assert "rejected" in json.loads(result.stdout)["error"]


def test_store_sends_data_sets_as_they_lie_and_reports_each(
    port: int, received: dict[str, bytes], study: Path, part10: Any
) -> None:
    data = bytes(range(256)) * 4_000
    (study / "large.dcm").write_bytes(part10(data, instance="1.2.3.9"))
    (study / "refused.dcm").write_bytes(part10(transfer_syntax="1.2.840.10008.1.2.4.70", instance="1.2.3.8"))
    result = invoke("store", port, "--input", str(study))
    assert result.exit_code == 1
    files = {Path(file["file"]).name: file for file in json.loads(result.stdout)["files"]}
    assert {name: (file["outcome"], file["status"]) for name, file in files.items()} == {
        "a.dcm": ("stored", "0x0000"),
        "b.dcm": ("failed", "0xA700"),
        "large.dcm": ("stored", "0x0000"),
        "refused.dcm": ("refused", None),
        "readme.txt": ("skipped", None),
        "empty": ("skipped", None),
    }
    assert received["1.2.3.9"] == data
    assert "1.2.3.8" not in received
