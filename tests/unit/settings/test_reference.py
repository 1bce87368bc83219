from __future__ import annotations

import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from scp_server.settings import Settings, load_settings
from scp_server.settings.reference import example, main, markdown
from scp_server.settings.schema import Kind, all_keys_of, keys_of, tables_of

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("path", "text"), [("docs/settings.md", markdown()), ("config/example.toml", example())]
)
def test_documents_are_up_to_date(path: str, text: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == text


def test_every_setting_is_documented_with_a_description() -> None:
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    for key in keys_of(Settings).values():
        described = f"| `{key.name}`<br>`{key.variable}` |"
        assert (f"## `[[{key.name}]]`" if key.kind is Kind.TABLES else described) in text
        assert key.variable in text
    for name, key in all_keys_of(Settings).items():
        assert f"| `{name}`" in text or key.kind is Kind.TABLES, name
        assert len(key.description) > 15, name


def test_example_with_its_keys_uncommented_is_the_defaults(tmp_path: Path) -> None:
    lines = (ROOT / "config/example.toml").read_text(encoding="utf-8").splitlines()
    uncommented = [line[1:] if line.startswith("#") and line[1:2].isalpha() else line for line in lines]
    path = tmp_path / "all.toml"
    path.write_text("\n".join(uncommented))
    assert load_settings(path) == Settings()
    written = tomllib.loads(path.read_text())
    for key in keys_of(Settings).values():
        if key.kind is Kind.TABLES:
            continue
        table = written
        *sections, name = key.name.split(".")
        for section in sections:
            table = table[section]
        assert (name in table) is (key.default is not None), key.name


def test_example_shows_a_table_of_each_array_with_the_defaults() -> None:
    text = (ROOT / "config/example.toml").read_text(encoding="utf-8")
    for name, model in tables_of(Settings).items():
        _, _, shown = text.partition(f"# [[{name}]]\n")
        lines = [line.removeprefix("#").strip() for line in shown.partition("\n\n")[0].splitlines()]
        written = tomllib.loads("\n".join(lines))
        keys = keys_of(model)
        for key in keys.values():
            assert (key.name in written) is (key.default is not None), key.name
            assert f"# {key.name} is not set" in lines or key.default is not None
        assert written == {
            key.name: list(key.default) if isinstance(key.default, tuple) else key.default
            for key in keys.values()
            if key.default is not None
        }


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.toml")), ids=lambda path: path.name)
def test_example_configurations_load(path: Path) -> None:
    settings = load_settings(path)
    assert (settings == Settings()) is (path.name == "example.toml")


def test_the_configurations_that_are_promised_are_there() -> None:
    names = {path.name for path in (ROOT / "config").glob("*.toml")}
    assert {"example.toml", "hospital.toml", "dicos-checkpoint.toml", "forwarding.toml"} <= names


def test_reference_writes_both_files(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "config").mkdir()
    main(tmp_path)
    assert (tmp_path / "docs/settings.md").read_text(encoding="utf-8") == markdown()
    assert (tmp_path / "config/example.toml").read_text(encoding="utf-8") == example()


@pytest.mark.parametrize("page", ["docs/deploying.md", "docs/operating.md"])
def test_settings_files_written_in_the_documents_load(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    written = re.findall(r"^ *cat >\S+\.toml <<'END'\n(.*?)^ *END$", text, re.MULTILINE | re.DOTALL)
    assert written
    for number, lines in enumerate(written):
        path = tmp_path / f"{number}.toml"
        path.write_text(textwrap.dedent(lines))
        load_settings(path)
