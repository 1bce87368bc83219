"""docs/detector.md, followed to the letter: its files are written, its commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from scp_server.testing.archive import Archive
from scp_server.testing.dicos_objects import dicos_ct, dicos_tdr

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/detector.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w.-]+)`\n```(?:python|toml)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


async def test_the_page_makes_a_detector_that_works(tmp_path: Path) -> None:
    bag = dicos_ct(pixels=bytes(2 * 4 * 16 * 16 - 2) + b"\xff\xff")
    assert await Archive.at(tmp_path / "data").store([bag, dicos_tdr(bag)]) == [0, 0]
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    said = []
    for program, *arguments in COMMANDS:
        done = subprocess.run(
            [sys.executable, *(["-m", "scp_server"] if program == "scp-server" else []), *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))),
                "SCP_SERVER_DATA_DIR": str(tmp_path / "data"),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stdout}{done.stderr}"
        said.append(done.stdout)
    tested, listed, replayed = said
    assert "1 passed" in tested
    assert (
        "process, at most 20 s, 1 at once; sop_classes dicos; modalities CT; 2048 MiB; detector ACME 1.0"
        in listed
    )
    assert "2 parts looked at: 1 examined (nothing was done)" in replayed
    assert f"{bag.sop_instance_uid} part 1: examined: ALARM, 1 objects, 1 of alarm" in replayed
