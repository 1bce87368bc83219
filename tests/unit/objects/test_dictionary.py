"""VRs where a data set does not state them: DICOS's own for its objects, DICOM's for the others."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydicom import datadict

from scp_server.objects.dicos import dictionary as dicos
from scp_server.objects.dictionary import sequence_tags, vr_of


@pytest.mark.parametrize(
    ("tag", "in_dicos", "in_dicom"),
    [
        (0x00280008, "US", "IS"),
        (0x00080118, "CS", "UI"),
        (0x40101075, "FD", "DS"),
        (0x04000564, "CS", "LO"),
        (0x43000902, "FL", "UN"),
        (0x00082108, "CS", "UN"),
        (0x00100020, "LO", "LO"),
        (0x00280106, "US", "US"),
        (0x7FE00010, "OW", "OW"),
        (0x00090010, "LO", "LO"),
        (0x00091001, "UN", "UN"),
        (0x00100000, "UL", "UL"),
        (0x60020010, "US", "US"),
        (0x0011FFFF, "UN", "UN"),
    ],
)
def test_the_vr_is_that_of_the_objects_own_dictionary(tag: int, in_dicos: str, in_dicom: str) -> None:
    assert vr_of(tag, is_dicos=True) == in_dicos
    assert vr_of(tag, is_dicos=False) == in_dicom


def test_keywords_are_dicoms_where_it_has_one_and_unique() -> None:
    attributes = dicos.attributes()
    keywords = [attribute.keyword for attribute in attributes.values()]
    assert len(set(keywords)) == len(keywords) > 450
    assert all(keyword.isidentifier() for keyword in keywords)
    known = {
        tag: attribute.keyword for tag, attribute in attributes.items() if datadict.dictionary_has_tag(tag)
    }
    assert len(known) > 300
    assert all(
        datadict.keyword_for_tag(tag) == keyword for tag, keyword in known.items() if tag >> 8 != 0x600000
    )


def test_tags_and_keywords_lead_to_each_other() -> None:
    assert dicos.tag_of("ThreatSequence") == 0x40101011
    assert dicos.keyword_of(0x43000902) == "EffectiveEnergy"
    assert all(dicos.tag_of(attribute.keyword) == tag for tag, attribute in dicos.attributes().items())
    assert dicos.tag_of("NoSuchThing") is None
    assert dicos.keyword_of(0x00091001) is None
    assert dicos.vr_of(0x00091001) is None


def test_sequences_are_known_for_both() -> None:
    assert {0x00081140, 0x40101011, 0x52009230} <= sequence_tags(False)
    assert {0x00081140, 0x40101011, 0x52009230} <= sequence_tags(True)
    assert 0x00100020 not in sequence_tags(True) | sequence_tags(False)


def test_pydicom_is_not_imported_before_an_implicit_object_arrives() -> None:
    code = (
        "import sys\n"
        "from scp_server.objects import header_tap, part10, summary\n"
        "tap = header_tap.HeaderTap(sys.argv[1])\n"
        "tap.feed(bytes.fromhex(sys.argv[2]))\n"
        "tap.finish()\n"
        "sys.exit(10 + ('pydicom' in sys.modules))\n"
    )
    explicit, implicit = "1000200053480000", "0800401100000000"
    for syntax, data, expected in (
        ("1.2.840.10008.1.2.1", explicit, 10),
        ("1.2.840.10008.1.2", implicit, 11),
    ):
        run = subprocess.run([sys.executable, "-c", code, syntax, data], check=False, timeout=60)
        assert run.returncode == expected
