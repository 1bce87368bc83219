"""Other settings for a running server: all of them or none, and associations that run keep theirs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from scp_server.errors import ConfigurationError
from scp_server.observability.logs import captured_logs
from scp_server.runtime.daemon import serve
from scp_server.runtime.reload import FIXED, RELOADABLE, changes, reload, reloadable_changes
from scp_server.runtime.server import Server
from scp_server.settings import Settings, SettingsError, load_settings
from scp_server.settings.schema import keys_of
from scp_server.testing import wire
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from scp_server.testing.wire import ProposedContext

MakeSettings = Callable[..., Settings]
VERIFICATION = [ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))]
WAIT_SECONDS = 20.0


async def _is_let_in(server: Server, **request: Any) -> bool:
    async with await ScriptedPeer.connect(*server.address) as peer:
        try:
            await peer.associate(VERIFICATION, **request)
        except AssertionError:
            return False
        await peer.release()
    return True


async def test_new_rules_hold_for_new_associations_and_not_for_those_that_run(
    make_settings: MakeSettings,
) -> None:
    async with Server(make_settings()) as server:
        async with await ScriptedPeer.connect(*server.address) as running:
            await running.associate(VERIFICATION, called_ae_title="ANYTHING")
            changed = server.reload(make_settings(access={"require_called_ae_title": True}))
            assert [(change.key, change.before, change.after) for change in changed] == [
                ("access.require_called_ae_title", False, True)
            ]
            assert not await _is_let_in(server, called_ae_title="ANYTHING")
            assert await _is_let_in(server, called_ae_title="SCP_SERVER")
            assert await running.echo() == 0x0000
        server.reload(make_settings())
        assert await _is_let_in(server, called_ae_title="ANYTHING")


async def test_a_socket_that_has_not_asked_yet_gets_the_new_rules(make_settings: MakeSettings) -> None:
    async with Server(make_settings()) as server, await ScriptedPeer.connect(*server.address) as peer:
        server.reload(make_settings(access={"require_called_ae_title": True}))
        with pytest.raises(AssertionError):
            await peer.associate(VERIFICATION, called_ae_title="ANYTHING")


async def test_a_lower_cap_ends_nobody_and_lets_nobody_more_in(make_settings: MakeSettings) -> None:
    async with Server(make_settings()) as server:
        async with await ScriptedPeer.connect(*server.address) as running:
            await running.associate(VERIFICATION)
            server.reload(make_settings(limits={"max_associations": 1}))
            assert not await _is_let_in(server)
            assert await running.echo() == 0x0000
            await running.release()
            await running.wait_eof()
        assert await _is_let_in(server)


async def test_the_policy_for_duplicates_changes_with_the_next_association(
    make_settings: MakeSettings,
) -> None:
    first, second = ct_image(seed=1, sop_instance_uid="1.2.3"), ct_image(seed=2, sop_instance_uid="1.2.3")
    async with Server(make_settings()) as server:
        async with await ScriptedPeer.connect(*server.address) as peer:
            await peer.associate(storage_contexts(first))
            assert await peer.store(first) == 0x0000
            server.reload(make_settings(storage={"duplicates": "parts"}))
            assert await peer.store(second) == 0xC111
        async with await ScriptedPeer.connect(*server.address) as peer:
            await peer.associate(storage_contexts(second))
            assert await peer.store(second) == 0x0000
        assert len(await server.index.parts("1.2.3")) == 2


async def test_other_rules_hold_for_the_next_association(make_settings: MakeSettings) -> None:
    objects = [ct_image(seed=seed) for seed in range(3)]
    rules = [{"name": "id", "set": {"PatientID": "CHANGED"}}]
    needed = [{"name": "needed", "attributes": ["PatientComments"]}]
    async with Server(make_settings()) as server:
        async with await ScriptedPeer.connect(*server.address) as peer:
            await peer.associate(storage_contexts(objects[0]))
            server.reload(make_settings(coerce=rules))
            assert await peer.store(objects[0]) == 0x0000
        async with await ScriptedPeer.connect(*server.address) as peer:
            await peer.associate(storage_contexts(objects[1]))
            assert await peer.store(objects[1]) == 0x0000
        server.reload(make_settings(require_attributes=needed))
        async with await ScriptedPeer.connect(*server.address) as peer:
            await peer.associate(storage_contexts(objects[2]))
            assert await peer.store(objects[2]) == 0xC000
        parts = [await server.index.parts(each.sop_instance_uid) for each in objects]
    assert [[part.stored_digest is not None for part in each] for each in parts] == [[False], [True], []]


async def test_another_layout_holds_for_the_next_object_and_leaves_the_last_found(
    make_settings: MakeSettings,
) -> None:
    first, second = ct_image(seed=1), ct_image(seed=2)
    async with Server(make_settings()) as server:
        async with await ScriptedPeer.connect(*server.address) as peer:
            await peer.associate(storage_contexts(first))
            assert await peer.store(first) == 0x0000
            server.reload(make_settings(storage={"layout": "{modality}/{series_uid}/{instance_uid}"}))
            assert await peer.store(second) == 0x0000
            assert await peer.store(first) == 0x0000
        stored = {each.location async for each in server.storage.list()}
        parts = [await server.index.parts(each.sop_instance_uid) for each in (first, second)]
        locations = [part.location for of_one in parts for part in of_one]
        assert len(locations) == 2
        assert stored == set(locations)
        assert locations[0].count("/") == 4
        assert locations[1].startswith(f"objects/CT/{second.series_instance_uid}/{second.sop_instance_uid}-")


async def test_the_budget_of_the_process_follows(make_settings: MakeSettings) -> None:
    async with Server(make_settings()) as server:
        server.reload(
            make_settings(limits={"process_buffer_bytes": 4 << 20, "half_open_buffer_bytes": 8 << 20})
        )
        assert server._manager.budget.limit_bytes == 4 << 20
        assert server._manager._max_request_bytes == 8 << 20


async def test_what_needs_a_restart_is_named_and_nothing_changes(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    async with Server(make_settings()) as server:
        before = server.settings
        other = make_settings(
            listen={"port": 11_113},
            data_dir=tmp_path / "other",
            limits={"max_pdu_bytes": 16_384},
            access={"require_called_ae_title": True},
        )
        with pytest.raises(SettingsError) as refused:
            server.reload(other)
        assert [problem.key for problem in refused.value.problems] == [
            "data_dir",
            "listen.port",
            "limits.max_pdu_bytes",
        ]
        assert all("restart" in problem.text for problem in refused.value.problems)
        assert server.settings is before
        assert await _is_let_in(server, called_ae_title="ANYTHING")


async def test_caps_above_the_descriptors_of_the_process_change_nothing(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Server(make_settings()) as server:

        def refuse(_connections: int, _associations: int, _outbound: int) -> int:
            raise ConfigurationError("limits.max_connections: too many")

        monkeypatch.setattr("scp_server.runtime.server.raise_descriptor_limit", refuse)
        wanted = make_settings(limits={"max_connections": 9_999}, access={"require_called_ae_title": True})
        with captured_logs() as logs:
            assert not await reload(server, lambda: wanted)
        assert logs[-1]["problems"] == [{"problem": "limits.max_connections: too many"}]
        assert await _is_let_in(server, called_ae_title="ANYTHING")


def test_every_name_in_the_tables_is_a_setting_or_a_section() -> None:
    keys = set(keys_of(Settings))
    known = keys | {key.split(".")[0] for key in keys}
    assert RELOADABLE - known <= {"peers"}
    assert set(FIXED) <= keys


@pytest.mark.parametrize("key", sorted(keys_of(Settings)))
def test_every_setting_is_either_taken_over_or_refused_by_name(key: str, make_settings: MakeSettings) -> None:
    section, _, name = key.rpartition(".")
    settings = make_settings()
    holder = getattr(settings, section) if section else settings
    other = holder.model_copy(update={name: object()})
    changed = settings.model_copy(update={section: other}) if section else other
    first = key.split(".")[0]
    if key not in FIXED and (key in RELOADABLE or first in RELOADABLE):
        assert [change.key for change in reloadable_changes(settings, changed)] == [key]
    else:
        with pytest.raises(SettingsError, match=key):
            reloadable_changes(settings, changed)


def test_a_secret_that_changes_is_not_shown() -> None:
    class Section(BaseModel):
        password: SecretStr

    (change,) = changes(Section(password=SecretStr("one")), Section(password=SecretStr("two")))
    assert "one" not in str(change)
    assert "two" not in str(change)
    assert changes(Section(password=SecretStr("one")), Section(password=SecretStr("one"))) == []


class Hangups:
    """A daemon in this process, its settings file, and what it logs."""

    def __init__(self, config: Path, logs: list[dict[str, Any]]) -> None:
        self.config = config
        self.logs = logs

    async def expect(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until `event` was logged `count` times; the last of them."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(found := [record for record in self.logs if record["event"] == event]) < count:
                await asyncio.sleep(0.005)
        return found[-1]

    def hang_up(self, text: str) -> None:
        self.config.write_text(text)
        os.kill(os.getpid(), signal.SIGHUP)


async def test_sighup_takes_over_a_file_or_says_what_is_wrong_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured: list[tuple[object, str]] = []
    monkeypatch.setattr(
        "scp_server.runtime.reload.configure_logging", lambda *arguments: configured.append(arguments)
    )
    config = tmp_path / "scp.toml"
    config.write_text("")
    overrides = {"listen": {"port": 0}, "http": {"port": 0}, "data_dir": str(tmp_path / "data")}

    def load() -> Settings:
        return load_settings(config, overrides)

    with captured_logs() as logs:
        daemon = Hangups(config, logs)
        running = asyncio.create_task(serve(load(), load))
        await daemon.expect("server.ready")
        daemon.hang_up('drain_timeout_seconds = 1\n[log]\nlevel = "debug"\n')
        reloaded = await daemon.expect("settings.reloaded")
        assert reloaded["changed"] == {
            "drain_timeout_seconds": {"before": 30.0, "after": 1.0},
            "log.level": {"before": "info", "after": "debug"},
        }
        assert configured == [(None, "debug")]
        daemon.hang_up("drain_timeout_seconds = -1\n[log]\nlevle = 1\n")
        rejected = await daemon.expect("settings.rejected")
        assert [(one["line"], one["key"]) for one in rejected["problems"]] == [
            (1, "drain_timeout_seconds"),
            (3, "log.levle"),
        ]
        daemon.hang_up('[storage]\ndurability = "process"\n[log]\nlevel = "error"\n')
        rejected = await daemon.expect("settings.rejected", 2)
        assert [one["key"] for one in rejected["problems"]] == ["storage.durability"]
        assert configured == [(None, "debug")]
        daemon.hang_up('drain_timeout_seconds = 1\n[log]\nlevel = "debug"\n')
        assert (await daemon.expect("settings.reloaded", 2))["changed"] == {}
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == 0


async def test_a_fault_of_ours_while_reloading_is_logged_and_ends_nothing(
    make_settings: MakeSettings,
) -> None:
    def fail() -> Settings:
        raise RuntimeError("a bug")

    async with Server(make_settings()) as server:
        with captured_logs() as logs:
            assert not await reload(server, fail)
        assert logs[-1]["problems"] == [{"problem": "unexpected: RuntimeError"}]
        assert await _is_let_in(server)
