"""Which objects a filter means."""

from __future__ import annotations

import pytest

from scp_server.errors import ConfigurationError
from scp_server.pipeline.filters import ObjectFilter

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
TDR = "1.2.840.10008.5.1.4.1.1.501.3"


def test_an_empty_filter_means_everything() -> None:
    assert ObjectFilter().matches("", None, "", "")
    assert not ObjectFilter().is_about_objects


@pytest.mark.parametrize(
    ("sop_classes", "meant", "not_meant"),
    [
        (("CTImageStorage",), CT, MR),
        ((CT, MR), MR, TDR),
        (("dicos",), TDR, CT),
        (("medical",), CT, TDR),
        (("dicos", "CTImageStorage"), TDR, MR),
    ],
)
def test_a_sop_class_is_meant_by_uid_by_keyword_or_by_word(
    sop_classes: tuple[str, ...], meant: str, not_meant: str
) -> None:
    chosen = ObjectFilter(sop_classes=sop_classes)
    assert chosen.is_about_objects
    assert chosen.matches(meant, "CT", "A", "B")
    assert not chosen.matches(not_meant, "CT", "A", "B")


def test_a_modality_that_is_asked_for_must_be_there() -> None:
    chosen = ObjectFilter(modalities=("CT", "M?"))
    assert chosen.matches(CT, "CT", "A", "B")
    assert chosen.matches(CT, "MR", "A", "B")
    assert not chosen.matches(CT, "MRX", "A", "B")
    assert not chosen.matches(CT, None, "A", "B")


def test_ae_titles_have_wild_cards_and_are_compared_whole() -> None:
    chosen = ObjectFilter(calling_ae_titles=("CT[1]*", "X"), called_ae_titles=("ARCHIVE?",))
    assert chosen.matches_association("CT[1]_EAST", "ARCHIVE2")
    assert chosen.matches_association("X", "ARCHIVE2")
    assert not chosen.matches_association("X", "ARCHIVE")
    assert not chosen.matches_association("CT1", "ARCHIVE2")
    assert not chosen.matches_association("x", "ARCHIVE2")
    assert not chosen.matches(CT, "CT", "XX", "ARCHIVE2")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sop_classes": ("CTImageStorag",)}, "sop_classes: 'CTImageStorag' is no UID and no keyword"),
        ({"calling_ae_titles": ("A" * 17,)}, "calling_ae_titles: .* 1 to 16 characters"),
        ({"called_ae_titles": ("A\\B",)}, "called_ae_titles: .* backslash"),
        ({"modalities": ("",)}, "modalities: "),
    ],
)
def test_a_filter_that_can_mean_nothing_is_refused_by_name(
    wrong: dict[str, tuple[str, ...]], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ObjectFilter(**wrong)
