"""The suite gives every server its turns, and its figures become a page, a picture and documentation."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import pytest

from benchmarks import ingest
from benchmarks.figures import OURS, RATE, Figures, Sample
from benchmarks.ingest_report import page, picture, publish
from benchmarks.ingest_suite import BOUNDS, FULL, GOALS, SERVERS, SHORT, WORKLOADS, Plan, sessions

TOP = Path(__file__).parents[3]


def sample_figures() -> Figures:
    """One sample of everything that the full form measures."""
    found = Figures({"date": "2026-01-01", "processor": "a machine"})
    for session in sessions(FULL, [each.name for each in WORKLOADS]):
        for server in SERVERS:
            for workload, at in session.steps:
                if server.takes(workload, at):
                    values = {RATE: 100.0} | {column.key: 100.0 for column in workload.columns}
                    found.samples.append(Sample(workload.name, at, server.name, values))
    return found


@pytest.mark.parametrize("plan", [FULL, SHORT])
def test_every_workload_that_is_wanted_has_its_sessions(plan: Plan) -> None:
    wanted = [each.name for each in WORKLOADS if each.sizes(plan)]
    found = sessions(plan, wanted)
    assert {workload.name for session in found for workload, _ in session.steps} == set(wanted)
    assert sessions(plan, []) == []
    for session in found:
        assert {workload.where for workload, _ in session.steps} == {session.where}


def test_the_full_form_starts_a_server_for_each_size_alone() -> None:
    assert all(len(session.steps) == 1 for session in sessions(FULL, [each.name for each in WORKLOADS]))


def test_who_serves_one_after_the_other_is_not_asked_to_hold_several() -> None:
    serial = [each for each in SERVERS if each.serial]
    assert serial
    for workload in WORKLOADS:
        assert not any(workload.holds and each.takes(workload, 2) for each in serial)


def test_every_goal_is_about_something_that_the_full_form_measures() -> None:
    found = sample_figures()
    growth = {FULL.instances, FULL.instances // 20}
    for goal in GOALS:
        if goal.workload == "growth":
            assert {goal.at, goal.against_at} == growth
        else:
            assert found.ratio(goal) == 1.0, goal
    for bound in BOUNDS:
        assert found.of(bound.workload, bound.at, bound.server, bound.key), bound


def test_a_page_has_a_heading_for_each_workload() -> None:
    text = page(sample_figures())
    for workload in WORKLOADS:
        assert f"### {workload.title[0].upper()}{workload.title[1:]}" in text


def test_the_picture_is_a_png_with_something_on_it() -> None:
    data = picture(sample_figures())
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    position, content = 8, b""
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        assert zlib.crc32(kind + body) == int.from_bytes(
            data[position + 8 + length : position + 12 + length], "big"
        )
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", body)
        content += body if kind == b"IDAT" else b""
        position += 12 + length
    points = zlib.decompress(content)
    assert len(points) == height * (width + 1)
    assert len(set(points)) > 4


def test_figures_can_be_published_into_the_documentation(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("docs/figures.md", "README.md"):
        (tmp_path / name).write_text((TOP / name).read_text("utf-8"), "utf-8")
    publish(sample_figures(), tmp_path)
    assert "### CT, 525 kB" in (tmp_path / "docs" / "figures.md").read_text("utf-8")
    assert "docs/ingest.png" in (tmp_path / "README.md").read_text("utf-8")
    assert (tmp_path / "docs" / "ingest.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_measures_prints_and_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    run = ["ingest", "--short", "--seconds", "0.05", "--workload", "small", "--server", "scp_server", "sink"]
    folders = ["--memory", str(tmp_path), "--disk", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*run, *folders, "--output", str(output)])
    ingest.main()
    printed = capsys.readouterr().out
    figures = Figures.from_json((output / "ingest.json").read_text("utf-8"))
    assert [(each.server, each.at) for each in figures.samples] == [
        (server, at) for server in (OURS, "null sink") for at in SHORT.senders
    ]
    assert all(each.values[RATE] > 0 and not each.notes for each in figures.samples)
    monkeypatch.setattr(
        sys, "argv", ["ingest", "--from", str(output / "ingest.json"), "--output", str(tmp_path)]
    )
    ingest.main()
    assert capsys.readouterr().out == printed
