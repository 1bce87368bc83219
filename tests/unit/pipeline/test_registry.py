"""Where callbacks come from, and in which order they are called."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scp_server import callback
from scp_server.errors import ConfigurationError
from scp_server.pipeline.registry import CallbackSources, load_callbacks
from scp_server.pipeline.stages import Stage

PLUGIN = """
from scp_server import callback

@callback("stored")
async def of_plugin(instance): ...

@callback("received")
def other(instance): ...

def undecorated(instance): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def made(name: str, stage: str = "received", order: int = 0) -> Any:
    def function(instance: Any) -> None: ...

    return callback(stage, name=name, order=order)(function)


def names(sources: CallbackSources, stage: Stage | None = None) -> list[str]:
    registry = load_callbacks(sources)
    return [each.name for each in (registry.callbacks if stage is None else registry.at(stage))]


def test_callbacks_of_a_stage_are_in_the_order_of_order_then_name() -> None:
    given = [made("c", order=-1), made("b"), made("a"), made("z", "stored", -5), made("d", order=2)]
    sources = CallbackSources(given, entry_points=False)
    assert names(sources, Stage.RECEIVED) == ["c", "a", "b", "d"]
    assert names(sources, Stage.STORED) == ["z"]


def test_a_plug_in_is_a_module_or_a_function_of_one(folder: Path) -> None:
    assert names(CallbackSources(plugins=["my_plugin"], entry_points=False)) == ["of_plugin", "other"]
    assert names(CallbackSources(plugins=["my_plugin:other"], entry_points=False)) == ["other"]


def test_a_package_that_is_installed_takes_part_by_its_entry_point(folder: Path) -> None:
    information = folder / "my_plugin-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my_plugin\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[scp_server.callbacks]\nmine = my_plugin\n")
    (registered, other) = load_callbacks(CallbackSources()).callbacks
    assert (registered.name, registered.source) == ("of_plugin", "entry point mine")
    assert other.name == "other"
    assert names(CallbackSources(entry_points=False)) == []
    # Named in the settings as well, it is still one callback.
    assert names(CallbackSources(plugins=["my_plugin"])) == ["of_plugin", "other"]
    (information / "entry_points.txt").write_text("[scp_server.callbacks]\nmine = my_plugin:nothing\n")
    with pytest.raises(ConfigurationError, match="entry point mine: my_plugin:nothing cannot be loaded"):
        load_callbacks(CallbackSources())


def test_two_callbacks_of_one_name_are_refused_with_both_named() -> None:
    with pytest.raises(ConfigurationError, match=r"callback twice: .*\(argument\) has the name of .*name="):
        load_callbacks(CallbackSources([made("twice"), made("twice", "stored")], entry_points=False))


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ("not_there", "plugins: not_there: not_there cannot be loaded: ModuleNotFoundError"),
        ("my_plugin:missing", "plugins: my_plugin:missing: my_plugin has no missing"),
        ("my_plugin:undecorated", "undecorated is no callback; decorate it"),
        ("broken", "plugins: broken: broken cannot be loaded: ZeroDivisionError"),
        ("json", "plugins: json: json is no callback"),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_named(folder: Path, plugin: str, words: str) -> None:
    (folder / "broken.py").write_text("1 / 0")
    with pytest.raises(ConfigurationError, match=words):
        load_callbacks(CallbackSources(plugins=[plugin], entry_points=False))
