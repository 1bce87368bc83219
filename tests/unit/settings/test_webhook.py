"""The `[[webhook]]` tables: what they may say, where a complaint points, and that no secret is shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from scp_server.errors import ConfigurationError
from scp_server.runtime.reload import changes
from scp_server.settings import check_file, load_settings, to_mapping
from scp_server.settings.show import to_toml

ONE = "[[webhook]]\nname = 'w'\nurl = 'https://example.org/hook'\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "c.toml"


def test_every_key_of_a_rule_is_read(config: Path) -> None:
    config.write_text(
        ONE + "[[webhook]]\nname = 'v'\nurl = 'http://example.org:81/x'\nallow_http = true\n"
        "kinds = ['object.stored', 'study.settled']\nsecret = 'whsec_a2V5'\nca_file = '/ca.pem'\n"
        "timeout_seconds = 2.5\nconcurrency = 9\nmodalities = ['CT']\n"
    )
    first, second = load_settings(config).webhook
    assert (first.name, first.url, first.kinds, first.signing_key) == (
        "w",
        "https://example.org/hook",
        (),
        None,
    )
    assert (first.timeout_seconds, first.concurrency, first.ca_file) == (10.0, 4, None)
    assert (second.url, second.kinds) == ("http://example.org:81/x", ("object.stored", "study.settled"))
    assert (second.signing_key, second.ca_file) == (b"key", Path("/ca.pem"))
    assert (second.timeout_seconds, second.concurrency, second.modalities) == (2.5, 9, ("CT",))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ONE + ONE, "5: webhook.1.name: is that of webhook.0"),
        (ONE.replace("https", "http"), "3: webhook.0.url: must be https, unless allow_http is true"),
        (
            ONE.replace("https://", "ftp://"),
            "3: webhook.0.url: must be a URL that begins with https:// or http://",
        ),
        (
            ONE.replace("https://example.org", "https:"),
            "3: webhook.0.url: must be a URL that begins with https:// or http://",
        ),
        (ONE.replace("example.org", "[::1"), "3: webhook.0.url: is no URL"),
        (ONE.replace("example.org", "example.org:x"), "3: webhook.0.url: is no URL"),
        (
            ONE.replace("example.org", "me:secret@example.org"),
            "3: webhook.0.url: must hold no user name and no password",
        ),
        (ONE + "kinds = ['object.stored', 'object.stored']\n", "4: webhook.0.kinds: names a kind twice"),
        (ONE + "secret = ''\n", "4: webhook.0.secret: must not be empty"),
        (ONE + "secret = 'whsec_SECRET'\n", "4: webhook.0.secret: must have Base64 behind whsec_"),
        (
            ONE + "secret = 'SECRET'\nsecret_file = '/x'\n",
            "5: webhook.0.secret_file: must not be given beside secret",
        ),
        (ONE + "concurrency = 65\n", "4: webhook.0.concurrency: must be at most 64, not 65"),
    ],
)
def test_a_complaint_names_line_and_key_and_no_secret(config: Path, text: str, complaint: str) -> None:
    config.write_text(text)
    (found,) = check_file(config)
    assert str(found).removeprefix(f"{config}:") == complaint


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1", "[::1]:8080"])
def test_http_to_this_machine_is_allowed(config: Path, host: str) -> None:
    config.write_text(ONE.replace("https://example.org", f"http://{host}"))
    assert check_file(config) == []


def test_a_secret_is_masked_wherever_it_is_shown(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    config.write_text(ONE + "secret = 'SECRET'\n")
    settings = load_settings(config)
    config.write_text(ONE + "secret = 'SECRET2'\n")
    (change,) = changes(settings, load_settings(config))
    with caplog.at_level(logging.DEBUG):
        shown = [repr(settings), to_toml(settings), str(to_mapping(settings)), repr(change)]
    assert change.key == "webhook"
    assert not any("SECRET" in text for text in shown)


@pytest.mark.parametrize(
    ("content", "key"),
    [(b"SECRET", b"SECRET"), (b"SECRET\n", b"SECRET"), (b" S\r\n", b" S"), (b"whsec_a2V5\n", b"key")],
)
def test_a_secret_may_lie_in_a_file(config: Path, content: bytes, key: bytes) -> None:
    secret = config.with_name("secret")
    secret.write_bytes(content)
    config.write_text(ONE + f"secret_file = '{secret}'\n")
    assert load_settings(config).webhook[0].signing_key == key


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff", "cannot be read: it is no text"),
        (b"\n", "must not be empty"),
        (b"S" * 4_097, "must have at most 4096 bytes"),
        (b"whsec_%%", "must have Base64 behind whsec_"),
    ],
)
def test_a_file_without_a_secret_is_named(config: Path, content: bytes | None, problem: str) -> None:
    secret = config.with_name("secret")
    if content is not None:
        secret.write_bytes(content)
    config.write_text(ONE + f"secret_file = '{secret}'\n")
    with pytest.raises(ConfigurationError) as raised:
        _ = load_settings(config).webhook[0].signing_key
    assert str(raised.value) == f"webhook w: secret_file {secret} {problem}"
