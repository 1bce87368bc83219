"""Makes `docs/settings.md` and `config/example.toml` from the settings.

`python -m scp_server.settings.reference` writes them; a test fails where they differ from what this makes.
"""

from __future__ import annotations

import sys
import textwrap
from itertools import groupby
from pathlib import Path

from scp_server.settings.models import Settings
from scp_server.settings.schema import Key, Kind, all_keys_of, keys_of, sections_of, tables_of
from scp_server.settings.show import toml_value

_INTRODUCTION = """\
# Settings

Settings come from a TOML file (`serve --config FILE`), over it the environment, over it the options of
the command line; the later one wins. A key that does not exist is an error wherever it stands, and so is
a value of another type. `scp-server config check FILE` names every problem with file, line and key, and
`scp-server config show` prints the effective settings.

In the environment a key is `SCP_SERVER_` and its name in capitals, with `__` between the levels. A list
is JSON or its items between commas. Every variable has a second form that ends in `_FILE` and names a
file that holds the value. Credentials that systemd passes (`LoadCredential=`) are read too, when their
name is `scp_server.` and the key, as in `scp_server.log.level`; a variable wins over them. The variables
that Kubernetes adds for a service called scp-server are recognised and ignored.

Sizes are in bytes and times in seconds, as the names say. `config/example.toml` holds every key with its
default.
"""


def markdown() -> str:
    """The text of `docs/settings.md`."""
    parts = [_INTRODUCTION]
    for section, keys in _by_section():
        parts.append(f"## {f'`[{section}]`' if section else 'Top level'}\n")
        if section:
            parts.append(sections_of(Settings)[section] + "\n")
        rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
        rows += [
            f"| `{key.name}`<br>`{key.variable}` | {_values_of(key)} | {_default_of(key)} | "
            f"{key.description} |"
            for key in keys
        ]
        parts.append("\n".join(rows) + "\n")
    for name, keys in _by_table():
        parts.append(f"## `[[{name}]]`\n")
        whole = keys_of(Settings)[name]
        parts.append(_TABLES.format(meaning=whole.description, name=name, variable=whole.variable) + "\n")
        rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
        rows += [
            f"| `{key.name}` | {_values_of(key)} | {_default_of(key)} | {key.description} |" for key in keys
        ]
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


_TABLES = """\
{meaning} As many of these tables as needed. In the environment
they are `{variable}`, a JSON list of objects."""


def example() -> str:
    """The text of `config/example.toml`: every key with its default, commented out."""
    lines = ["# Every setting with its default. Take the # away before a key to change it.", ""]
    for section, keys in _by_section():
        if section:
            lines += [f"# {sections_of(Settings)[section]}", f"[{section}]", ""]
        for key in keys:
            lines += textwrap.wrap(key.description, 108, initial_indent="# ", subsequent_indent="# ")
            name = key.name.rpartition(".")[2]
            lines += [
                f"# {name} is not set" if key.default is None else f"#{name} = {toml_value(key.default)}",
                "",
            ]
    for name, keys in _by_table():
        lines += textwrap.wrap(
            f"{keys_of(Settings)[name].description} As many of these tables as "
            "needed. This one shows the defaults.",
            108,
            initial_indent="# ",
            subsequent_indent="# ",
        )
        lines += [f"# [[{name}]]", "#"]
        for key in keys:
            lines += textwrap.wrap(key.description, 106, initial_indent="#   # ", subsequent_indent="#   # ")
            short = key.name.rpartition(".")[2]
            is_set = key.default is not None
            lines += [f"#   {short} = {toml_value(key.default)}" if is_set else f"#   # {short} is not set"]
        lines += [""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _by_section() -> list[tuple[str, list[Key]]]:
    keys = [key for key in keys_of(Settings).values() if key.kind is not Kind.TABLES]
    return [(section, list(members)) for section, members in groupby(keys, key=_section_of)]


def _by_table() -> list[tuple[str, list[Key]]]:
    keys = all_keys_of(Settings).values()
    return [(name, [key for key in keys if key.section == name]) for name in tables_of(Settings)]


def _section_of(key: Key) -> str:
    return key.section


def _values_of(key: Key) -> str:
    if key.kind is Kind.CHOICE:
        return ", ".join(f"`{choice}`" for choice in key.choices)
    return str(key.kind.value)


def _default_of(key: Key) -> str:
    return "not set" if key.default is None else f"`{toml_value(key.default)}`"


def main(root: Path) -> None:
    """Write both files below `root`, the top of the source tree."""
    (root / "docs" / "settings.md").write_text(markdown(), encoding="utf-8")
    (root / "config" / "example.toml").write_text(example(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd())
