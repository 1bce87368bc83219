"""The examples of docs/views.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scp_server.testing.dicos_objects import dicos_ct, dicos_dx, dicos_tdr

PAGE = (Path(__file__).parents[3] / "docs/views.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SAID = ["(4, 16, 16)", "(1.0, 1.0, 1.0)", "100 HIGH_THREAT EXPLOSIVE", "", "ALARM 2"]


@pytest.mark.parametrize(("example", "said"), list(zip(EXAMPLES, SAID, strict=True)))
def test_an_example_runs(
    example: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    image = dicos_ct()
    for name, one in (("bag", image), ("report", dicos_tdr(image)), ("image", dicos_dx())):
        Path(f"{name}.dcs").write_bytes(one.part10())
    exec(compile(example, "docs/views.md", "exec"), {})
    assert said in capsys.readouterr().out
