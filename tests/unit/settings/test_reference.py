from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from scp_server.settings import Settings, load_settings
from scp_server.settings.reference import example, main, markdown
from scp_server.settings.schema import keys_of

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("path", "text"), [("docs/settings.md", markdown()), ("config/example.toml", example())]
)
def test_documents_are_up_to_date(path: str, text: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == text


def test_every_setting_is_documented_with_a_description() -> None:
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    for key in keys_of(Settings).values():
        assert f"| `{key.name}`<br>`{key.variable}` |" in text
        assert len(key.description) > 15, key.name


def test_example_with_its_keys_uncommented_is_the_defaults(tmp_path: Path) -> None:
    lines = (ROOT / "config/example.toml").read_text(encoding="utf-8").splitlines()
    uncommented = [line[1:] if line.startswith("#") and line[1:2].isalpha() else line for line in lines]
    path = tmp_path / "all.toml"
    path.write_text("\n".join(uncommented))
    assert load_settings(path) == Settings()
    written = tomllib.loads(path.read_text())
    for key in keys_of(Settings).values():
        table = written
        *sections, name = key.name.split(".")
        for section in sections:
            table = table[section]
        assert (name in table) is (key.default is not None), key.name


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.toml")), ids=lambda path: path.name)
def test_example_configurations_load(path: Path) -> None:
    settings = load_settings(path)
    assert (settings == Settings()) is (path.name == "example.toml")


def test_the_configurations_that_are_promised_are_there() -> None:
    names = {path.name for path in (ROOT / "config").glob("*.toml")}
    assert {"example.toml", "hospital.toml", "dicos-checkpoint.toml"} <= names


def test_reference_writes_both_files(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "config").mkdir()
    main(tmp_path)
    assert (tmp_path / "docs/settings.md").read_text(encoding="utf-8") == markdown()
    assert (tmp_path / "config/example.toml").read_text(encoding="utf-8") == example()
