"""`docs/rules.md`: its settings are valid, and its code verifies what a webhook rule signs."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from scp_server.pipeline.builtin.webhook import cloud_event, secret_bytes, signature
from scp_server.settings import check_file
from scp_server.testing.objects import ct_image
from tests.unit.pipeline.events import delivery, stored

PAGE = (Path(__file__).parents[3] / "docs" / "rules.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.mark.parametrize("number", range(len(blocks("toml"))))
def test_every_table_of_settings_is_valid(tmp_path: Path, number: int) -> None:
    config = tmp_path / "c.toml"
    config.write_text(blocks("toml")[number], encoding="utf-8")
    assert check_file(config) == []


def test_the_code_that_verifies_tells_what_is_genuine() -> None:
    (code,) = blocks("python")
    namespace: dict[str, Any] = {}
    exec(compile(code, "docs/rules.md", "exec"), namespace)
    is_genuine = namespace["is_genuine"]
    secret, now, body = secret_bytes("whsec_a2V5"), int(time.time()), b'{"specversion":"1.0"}'

    def headers(key: bytes, timestamp: int) -> dict[str, str]:
        signed = signature(key, "id", timestamp, body)
        return {"webhook-id": "id", "webhook-timestamp": str(timestamp), "webhook-signature": signed}

    assert is_genuine(secret, headers(secret, now), body)
    assert not is_genuine(secret, headers(b"other", now), body)
    assert not is_genuine(secret, headers(secret, now), body + b" ")
    assert not is_genuine(secret, headers(secret, now - 301), body)
    assert not is_genuine(secret, headers(secret, now) | {"webhook-timestamp": str(now + 1)}, body)
    assert not is_genuine(secret, headers(secret, now) | {"webhook-id": "other"}, body)


def test_the_event_that_is_shown_has_the_attributes_of_a_real_one() -> None:
    (shown,) = map(json.loads, blocks("json"))
    event = stored(ct_image(rows=1, columns=1), "objects/1.dcm")
    posted = json.loads(cloud_event(delivery(event), "urn:scp-server:ARCHIVE"))
    assert list(shown) == list(posted)
    assert shown["data"].keys() <= posted["data"].keys()
