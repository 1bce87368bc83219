"""`outbox` against a running server, and where none runs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scp_server.cli.control_client import ControlClient
from scp_server.cli.main import app
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts

RUNNER = CliRunner()
DOWN = "forward:night:PACS"
REFUSED = "webhook:ward"
PATIENCE_SECONDS = 20


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SCP_SERVER_"):
            monkeypatch.delenv(name)


def _run(data_dir: Path, *arguments: str) -> tuple[int, str]:
    result = RUNNER.invoke(app, ["outbox", *arguments, "--data-dir", str(data_dir)])
    return result.exit_code, result.output


async def _answer_400(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 400 no\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def _until(data_dir: Path, name: str, **wanted: object) -> None:
    """Wait until a subscription is so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with ControlClient(data_dir) as server:
                states = {state["name"]: state for state in server.ask("outbox.list")}
            if wanted.items() <= states[name].items():
                return
            await asyncio.sleep(0.02)


async def _store(daemon: DaemonProcess, webhook: asyncio.Server) -> None:
    async with webhook, await ScriptedPeer.connect("127.0.0.1", daemon.ready.dicom_port) as peer:
        image = ct_image()
        await peer.associate(storage_contexts(image))
        assert await peer.store(image) == 0x0000
        await peer.release()
        # In a thread: the webhook is answered by this loop.
        await asyncio.to_thread(asyncio.run, _until(daemon.data_dir, DOWN, circuit="open", behind=2))
        await asyncio.to_thread(asyncio.run, _until(daemon.data_dir, REFUSED, dead=1, behind=0))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """A server that forwards to a remote which is down, and posts to a receiver that takes nothing."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        runner = asyncio.Runner()
        with runner:
            webhook = runner.run(asyncio.start_server(_answer_400, "127.0.0.1", 0))
            port = webhook.sockets[0].getsockname()[1]
            config = tmp_path / "scp-server.toml"
            config.write_text(
                f"""
                [[remotes]]
                ae_title = "PACS"
                host = "127.0.0.1"
                port = {nobody.getsockname()[1]}
                [[forward]]
                name = "night"
                to = ["PACS"]
                [[webhook]]
                name = "ward"
                url = "http://127.0.0.1:{port}/"
                kinds = ["object.stored"]
                """
            )
            daemon = DaemonProcess(tmp_path / "data", "--config", str(config))
            with daemon:
                runner.run(_store(daemon, webhook))
                yield daemon


def _states(data_dir: Path) -> dict[str, dict[str, Any]]:
    code, output = _run(data_dir, "list", "--json")
    assert code == 0
    return {state["name"]: state for state in json.loads(output)["subscriptions"]}


def test_what_is_down_and_what_is_dead_is_shown_tried_again_and_dropped(daemon: DaemonProcess) -> None:
    data_dir = daemon.data_dir
    code, output = _run(data_dir, "list")
    assert code == 0
    assert f"{REFUSED}: 0 events behind, 0 parked, 1 dead" in output
    assert f"{DOWN}: 2 events behind, 0 parked, 0 dead, DOWN" in output
    assert "next try in" in output
    states = _states(data_dir)
    assert states[DOWN]["circuit"] == "open"
    assert states[DOWN]["last_error"]
    assert states[REFUSED]["last_error"] == "status 400"

    assert _run(data_dir, "retry", DOWN, "--all") == (0, f"{DOWN}: 0 events to be tried\n")
    assert _run(data_dir, "retry", REFUSED, "--event", "99")[0] == 1
    assert _run(data_dir, "drop", REFUSED, "--subscription")[0] == 1
    assert _run(data_dir, "drop", "webhook:other", "--subscription")[0] == 1
    code, output = _run(data_dir, "drop", REFUSED, "--all-dead", "--json")
    assert (code, json.loads(output)) == (0, {"subscription": REFUSED, "events": 1})
    assert _states(data_dir)[REFUSED]["dead"] == 0
    assert _run(data_dir, "drop", REFUSED, "--event", "2")[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        *(["list"], ["retry", DOWN, "--all"], ["drop", DOWN, "--all-dead"]),
        *(["retry", DOWN], ["retry", DOWN, "--all", "--event", "1"], ["drop", DOWN]),
        ["drop", DOWN, "--event", "1", "--subscription"],
    ],
)
def test_without_a_server_or_a_choice_it_is_wrong_usage(tmp_path: Path, arguments: list[str]) -> None:
    code, output = _run(tmp_path, *arguments)
    assert code == 2
    assert "no server runs" in output or "say" in output
