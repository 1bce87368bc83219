"""Which attributes have columns, and which are computed (PS3.4 C.6, C.3.4)."""

from __future__ import annotations

from scp_server.index.search import EntityLevel
from scp_server.services.query_retrieve.attributes import BELOW, COLUMNS, COUNTS, UNIQUE_KEY_LEVELS
from scp_server.services.query_retrieve.models import REQUIRED_KEYS, UNIQUE_KEYS

UNIQUE_AND_REQUIRED = {
    EntityLevel.PATIENT: {0x00100020, 0x00100010},
    EntityLevel.STUDY: {0x0020000D, 0x00080020, 0x00080030, 0x00080050, 0x00200010},
    EntityLevel.SERIES: {0x0020000E, 0x00080060, 0x00200011},
    EntityLevel.INSTANCE: {0x00080018, 0x00200013},
}
"""Tables C.6-1 to C.6-4."""


def test_every_unique_and_required_key_has_a_column_of_its_level_c_6_1_1() -> None:
    for level, tags in UNIQUE_AND_REQUIRED.items():
        assert {tag for tag in tags if COLUMNS[tag].level is level} == tags
        assert {*REQUIRED_KEYS[level], UNIQUE_KEYS[level]} == tags


def test_each_level_has_one_unique_key_c_6_1_1() -> None:
    assert sorted(UNIQUE_KEY_LEVELS.values()) == sorted(EntityLevel)
    assert all(COLUMNS[tag].level is level for tag, level in UNIQUE_KEY_LEVELS.items())


def test_the_computed_keys_are_those_of_c_3_4() -> None:
    assert set(COUNTS) == {0x00201200, 0x00201202, 0x00201204, 0x00201206, 0x00201208, 0x00201209}
    assert {0x00080061, 0x00080062} < set(BELOW)


def test_no_attribute_comes_from_two_places() -> None:
    assert not set(COLUMNS) & set(COUNTS)
    assert not set(COLUMNS) & set(BELOW)


def test_the_keys_of_dicos_have_columns() -> None:
    assert {0x40101042, 0x40101048, 0x40101044, 0x40101027, 0x40101031, 0x4010102B, 0x40101034} <= set(
        COLUMNS
    )
    assert {0x00181000, 0x00081010, 0x00080080} <= set(COLUMNS)
