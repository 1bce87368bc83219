"""A start on a disk that does not give everything: clearly said, nothing deleted, and it serves."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from scp_server import Server
from scp_server.observability.logs import captured_logs
from scp_server.testing.daemon import expect_stored
from scp_server.testing.objects import ct_image
from tests.integration.faults import associated, expect_well, settings_of


async def test_a_start_goes_on_over_a_directory_in_flight_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    kept, newcomer = ct_image(seed=1), ct_image(seed=2)
    async with Server(settings_of(data_dir)) as server, await associated(server, kept) as peer:
        assert await peer.store(kept) == 0x0000
    (file,) = (data_dir / "objects").rglob("*.dcm")
    series = str(file.parent.relative_to(data_dir))
    ledger = data_dir / "incoming" / "directories.7"
    ledger.write_text(f"{series}\n")
    real = os.scandir

    def scandir(path: Any = ".") -> Any:
        if str(path).endswith(series):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with captured_logs() as logs:
        async with Server(settings_of(data_dir)) as server, await associated(server, newcomer) as peer:
            await expect_well(server, peer)
            assert await peer.store(newcomer) == 0x0000
    monkeypatch.undo()
    (record,) = [record for record in logs if record["event"] == "recovery.not_examined"]
    assert (record["location"], record["error"]) == (series, "cannot list: Input/output error")
    assert ledger.exists()
    expect_stored(data_dir, [kept, newcomer])
    async with Server(settings_of(data_dir)) as server:
        assert (await server.index.totals()).parts == 2
    assert not ledger.exists()
