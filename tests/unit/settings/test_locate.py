from __future__ import annotations

import tomllib
from typing import Any

import pytest

from scp_server.settings.locate import key_lines, line_of

DOCUMENT = '''\
# [comment] a = 1
top = """
[not.a.table]
x = 1
"""
"quoted.key" = 'literal # no comment'
dotted.inner = 1

[table]  # comment
list = [
  "a", # ]
  "b]",
]
after = 1
inline = { one = 1, two = { three = "x,y" } }
[ table . "sub" ]
key = 1979-05-27T07:32:00Z
text = \'\'\'
[no]
\'\'\'
last = 1.5
[[peers]]
name = "a"
[[peers]]
name = "b"
[peers.more]
deep = true
'''


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [leaf for at, item in enumerate(value) for leaf in leaves(item, (*path, at))]
    return [path]


def test_every_key_that_tomllib_finds_has_the_line_on_which_it_is_written() -> None:
    lines = key_lines(DOCUMENT)
    written = DOCUMENT.splitlines()
    for leaf in leaves(tomllib.loads(DOCUMENT)):
        assert str(leaf[-1]) in written[lines[leaf] - 1], leaf


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("table",), 9),
        (("table", "after"), 14),
        (("table", "inline", "two", "three"), 15),
        (("table", "sub"), 16),
        (("table", "sub", "last"), 21),
        (("peers", 0, "name"), 23),
        (("peers", 1, "name"), 25),
        (("peers", 1, "more", "deep"), 27),
        (("dotted", "inner"), 7),
    ],
)
def test_lines_count_through_texts_and_lists_of_several_lines(path: tuple[str | int, ...], line: int) -> None:
    assert key_lines(DOCUMENT)[path] == line


def test_unknown_path_has_the_line_of_the_table_around_it() -> None:
    lines = key_lines(DOCUMENT)
    assert line_of(lines, ("table", "list", 1)) == 10
    assert line_of(lines, ("table", "nothing")) == 9
    assert line_of(lines, ("nothing",)) is None
