"""The `[[forward]]` tables: what they may say, and where a complaint about one points."""

from __future__ import annotations

from pathlib import Path

import pytest

from scp_server.settings import check_file, load_settings

REMOTES = "".join(
    f"[[remotes]]\nae_title = '{title}'\nhost = 'h'\nport = 104\n" for title in ("PACS", "BELT")
)
ONE = REMOTES + "[[forward]]\nname = 'all'\nto = ['PACS']\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "c.toml"


def test_every_key_of_a_rule_is_read(config: Path) -> None:
    config.write_text(
        ONE + "[[forward]]\nname = 'ct'\nto = ['BELT', 'PACS']\npriority = 'high'\n"
        "sop_classes = ['dicos']\nmodalities = ['CT']\ncalling_ae_titles = ['CT*']\n"
        "called_ae_titles = ['X']\n"
    )
    first, second = load_settings(config).forward
    assert (first.name, first.to, first.priority) == ("all", ("PACS",), "medium")
    assert (second.name, second.to, second.priority) == ("ct", ("BELT", "PACS"), "high")
    assert first.object_filter.matches("1.2.840.10008.5.1.4.1.1.2", "CT", "CT1", "X")
    assert not second.object_filter.matches("1.2.840.10008.5.1.4.1.1.2", "CT", "CT1", "X")
    assert second.object_filter.matches("1.2.840.10008.5.1.4.1.1.501.1", "CT", "CT1", "X")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            ONE.replace("to = ['PACS']", "to = ['PACS', 'PAXS']"),
            "11: forward.0.to: names 'PAXS', which is none of the [[remotes]]",
        ),
        (ONE.replace("to = ['PACS']\n", ""), "9: forward.0.to: must be given"),
        (ONE.replace("'PACS']\n", "]\n"), "11: forward.0.to: must not be empty"),
        (ONE.replace("to = ['PACS']", "to = ['PACS', ' PACS']"), "11: forward.0.to: names PACS twice"),
        (ONE.replace("name = 'all'\n", ""), "9: forward.0.name: must be given"),
        (ONE + "[[forward]]\nname = 'all'\nto = ['BELT']\n", "13: forward.1.name: is that of forward.0"),
        (
            ONE + "priority = 'urgent'\n",
            "12: forward.0.priority: must be 'low', 'medium' or 'high', not 'urgent'",
        ),
        (
            ONE + "sop_classes = ['CTImage']\n",
            "12: forward.0.sop_classes: 'CTImage' is no UID and no keyword of a SOP Class such as "
            "CTImageStorage, nor dicos nor medical",
        ),
        (ONE + "tto = 'X'\n", "12: forward.0.tto: is no setting; did you mean forward.to?"),
    ],
)
def test_a_complaint_names_line_and_key(config: Path, text: str, complaint: str) -> None:
    config.write_text(text)
    (found,) = check_file(config)
    assert str(found).removeprefix(f"{config}:") == complaint
