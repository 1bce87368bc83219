"""The `[[peers]]` tables: what they may say, and where a complaint about one points."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scp_server.settings import Settings, SettingsError, check_file, load_settings, to_mapping, to_toml

ONE = '[[peers]]\nae_title = "CT1"\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "c.toml"


def problem(config: Path, text: str) -> str:
    config.write_text(text)
    (found,) = check_file(config)
    return str(found).removeprefix(f"{config}:")


def test_every_key_of_a_peer_is_read(config: Path) -> None:
    config.write_text(
        '[access]\nknown_peers_only = true\n[[peers]]\nae_title = " CT1 "\naddress = "10.1.0.0/16"\n'
        'allow = ["store"]\nduplicates = "replace"\nidle_seconds = 5\ndicos = "always"\n'
        '[[peers]]\naddress = "fd00::1"\n'
    )
    settings = load_settings(config)
    assert settings.access.known_peers_only
    first, second = settings.peers
    assert (first.ae_title, first.address, first.allow) == ("CT1", "10.1.0.0/16", ("store",))
    assert (first.duplicates, first.idle_seconds, first.dicos) == ("replace", 5.0, "always")
    assert (first.name, second.name) == ("CT1@10.1.0.0/16", "fd00::1")
    assert (second.ae_title, second.duplicates, second.idle_seconds) == (None, None, None)
    assert (second.allow, second.dicos) == (("echo", "store", "find", "get", "move"), "auto")
    assert not Settings().access.known_peers_only
    assert Settings().peers == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ONE + "adress = '::1'\n", "3: peers.0.adress: is no setting; did you mean peers.address?"),
        (ONE + "port = 1\n", "3: peers.0.port: is no setting"),
        (
            ONE + "address = '10.1.2.3/16'\n",
            "3: peers.0.address: has bits set behind its prefix; the network is 10.1.0.0/16",
        ),
        (
            ONE + "address = 'ct1.hospital'\n",
            "3: peers.0.address: must be an address or a network, such as 10.1.2.3, 10.1.0.0/16 or fd00::/8",
        ),
        (
            ONE + "allow = ['store', 'delete']\n",
            "3: peers.0.allow.1: must be 'echo', 'store', 'find', 'get' or 'move', not 'delete'",
        ),
        (ONE + "allow = []\n", "3: peers.0.allow: must not be empty; whom nothing is allowed needs no table"),
        (ONE + "allow = ['echo', 'echo']\n", "3: peers.0.allow: names a service twice"),
        (ONE + "allow = 'echo'\n", "3: peers.0.allow: must be a list, not 'echo'"),
        (
            ONE + "duplicates = 'newest'\n",
            "3: peers.0.duplicates: must be 'keep_first', 'parts', 'replace' or 'reject', not 'newest'",
        ),
        (ONE + "idle_seconds = -1\n", "3: peers.0.idle_seconds: must be at least 0, not -1"),
        (ONE + "idle_seconds = inf\n", "3: peers.0.idle_seconds: must be a finite number, not inf"),
        (ONE + "dicos = true\n", "3: peers.0.dicos: must be 'auto', 'always' or 'never', not true"),
        (
            '[[peers]]\nae_title = "SEVENTEEN_LETTERS"\n',
            "2: peers.0.ae_title: must have at most 16 characters, not 17",
        ),
        ('[log]\n[[peers]]\ndicos = "never"\n', "2: peers.0: ae_title or address must be given"),
        (
            ONE + "[[peers]]\naddress='10.0.0.1'\n\n" + ONE,
            "6: peers.2: has the ae_title and address of peers.0",
        ),
        (
            "[[peers]]\naddress='10.0.0.1'\n[[peers]]\naddress='::ffff:10.0.0.1/128'\n",
            "3: peers.1: has the ae_title and address of peers.0",
        ),
        (
            f"[negotiation]\napplication_contexts = ['dicos']\n{ONE}dicos = 'never'\n",
            "5: peers.0.dicos: is never, but negotiation.application_contexts lacks dicom",
        ),
        ("[peers]\nae_title = 'CT1'\n", "1: peers: must be a list"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(config: Path, text: str, complaint: str) -> None:
    found = problem(config, text)
    if complaint.endswith("is no setting"):
        found = found.partition(";")[0]
    assert found == complaint


def test_every_mistake_of_several_peers_is_named(config: Path) -> None:
    config.write_text("[[peers]]\nae_title = ''\n[[peers]]\naddress = 'x'\ndicos = 'x'\n")
    assert [found.line for found in check_file(config)] == [2, 4, 5]


def test_peers_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCP_SERVER_PEERS", json.dumps([{"ae_title": "CT1", "allow": ["echo"]}]))
    (peer,) = load_settings().peers
    assert (peer.ae_title, peer.allow) == ("CT1", ("echo",))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("CT1", "peers: must be a list"),
        ("[{broken", "peers: must be a list"),
        ('[{"address": "x"}]', "peers.0.address: must be an address"),
        ('[{"title": "x"}]', "peers.0.title: is no setting"),
    ],
)
def test_mistakes_in_the_environment_name_the_variable(
    monkeypatch: pytest.MonkeyPatch, value: str, complaint: str
) -> None:
    monkeypatch.setenv("SCP_SERVER_PEERS", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"environment SCP_SERVER_PEERS: {complaint}")


def test_shown_peers_load_again_as_the_same(config: Path) -> None:
    config.write_text(
        ONE + 'allow = ["echo", "get"]\n[[peers]]\naddress = "10.0.0.0/8"\nidle_seconds = 1.5\n'
        'duplicates = "reject"\n'
    )
    settings = load_settings(config)
    shown = to_toml(settings)
    config.write_text(shown)
    assert load_settings(config) == settings
    assert shown.count("[[peers]]") == 2
    assert to_mapping(settings)["peers"][0]["allow"] == ["echo", "get"]
    assert "[[peers]]" not in to_toml(Settings())
