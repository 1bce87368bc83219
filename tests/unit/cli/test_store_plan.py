from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from scp_server.cli.store_plan import Candidate, Unsendable, examine, make_groups, make_plan


def candidate(number: int, context: int) -> Candidate:
    return Candidate(Path(f"{number}"), f"1.2.{context}", f"1.3.{number}", "1.2.840.10008.1.2", 0, 1)


def test_folder_is_searched_to_its_bottom_in_order(study: Path) -> None:
    plan = make_plan([study])
    assert [found.path.name for found in plan.candidates] == ["b.dcm", "a.dcm"]
    assert {(found.path.name, found.is_failure) for found in plan.unsendable} == {
        ("readme.txt", False),
        ("empty", False),
    }


def test_named_file_that_is_no_part_10_file_is_a_failure(study: Path) -> None:
    plan = make_plan([study / "readme.txt"])
    [found] = plan.unsendable
    assert found.is_failure
    assert "Part 10" in found.reason


def test_file_given_twice_is_sent_once(study: Path) -> None:
    plan = make_plan([study, study / "b.dcm"])
    assert len(plan.candidates) == 2
    assert any(found.reason == "the same file as one before" for found in plan.unsendable)


def test_links_are_followed_but_no_folder_is_entered_twice(study: Path) -> None:
    (study / "deeper" / "loop").symlink_to(study)
    (study / "dangling").symlink_to(study / "nothing")
    plan = make_plan([study])
    assert len(plan.candidates) == 2
    [dangling] = [found for found in plan.unsendable if found.path.name == "dangling"]
    assert dangling.is_failure


def test_pipe_in_a_folder_does_not_block(study: Path) -> None:
    os.mkfifo(study / "pipe")
    [pipe] = [found for found in make_plan([study]).unsendable if found.path.name == "pipe"]
    assert (pipe.reason, pipe.is_failure) == ("no regular file", False)


def test_data_set_begins_after_the_meta_information(tmp_path: Path, part10: Any) -> None:
    path = tmp_path / "x"
    path.write_bytes(part10(b"dataset!", extra_meta_bytes=20_000))
    found = examine(path, named=True)
    assert isinstance(found, Candidate)
    assert path.read_bytes()[found.dataset_offset_bytes :] == b"dataset!"
    assert found.dataset_bytes == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"instance": ""}, "SOP Instance UID"),
        ({"instance": "1.2.x"}, "SOP Instance UID"),
        ({"sop_class": "../../x"}, "SOP Class UID"),
        ({"transfer_syntax": "no"}, "Transfer Syntax UID"),
        ({"dataset": b""}, "no data set"),
    ],
)
def test_damaged_part_10_file_is_a_failure_even_in_a_folder(
    tmp_path: Path, part10: Any, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(part10(**change))
    found = examine(path, named=False)
    assert isinstance(found, Unsendable)
    assert found.is_failure
    assert words in found.reason


def test_cut_meta_information_is_a_failure(tmp_path: Path, part10: Any) -> None:
    path = tmp_path / "x"
    path.write_bytes(part10()[:150])
    found = examine(path, named=False)
    assert isinstance(found, Unsendable)
    assert found.is_failure


def test_dicomdir_in_a_folder_is_skipped(tmp_path: Path, part10: Any) -> None:
    path = tmp_path / "DICOMDIR"
    path.write_bytes(part10(sop_class="1.2.840.10008.1.3.10"))
    found = examine(path, named=False)
    assert isinstance(found, Unsendable)
    assert not found.is_failure


def test_no_association_proposes_more_than_128_contexts_and_nothing_is_lost() -> None:
    candidates = [candidate(number, number % 300) for number in range(900)]
    groups = make_groups(candidates)
    assert [len(group.contexts) for group in groups] == [128, 128, 44]
    assert sorted(int(found.path.name) for group in groups for found in group.candidates) == list(range(900))
    for group in groups:
        assert {found.context for found in group.candidates} == set(group.contexts)
        numbers = [int(found.path.name) for found in group.candidates]
        assert numbers == sorted(numbers)


def test_nothing_makes_no_group() -> None:
    assert make_groups([]) == []
