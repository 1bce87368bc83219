"""Any bytes: the validator neither fails nor does more than its limits allow, in any pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scp_server.objects.validation.finding import Report
from scp_server.objects.validation.steps import ValidationLimits
from scp_server.objects.validation.whole_file import FileValidation
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_ct, dicos_dx, dicos_tdr
from scp_server.testing.objects import ct_image, structured_report

LIMITS = ValidationLimits(max_findings=50, max_elements=2_000)
MOST_STEPS = 5_000
"""A step for each element that may be looked at, and for each 2 KiB that is read, twice."""
FILES = [
    made.part10()
    for syntax in TransferSyntax
    for made in (
        dicos_ct(frames=2, rows=4, columns=4, transfer_syntax=syntax),
        dicos_dx(rows=4, columns=4, transfer_syntax=syntax),
        dicos_tdr(transfer_syntax=syntax),
        ct_image(rows=4, columns=4, sequences=True, undefined_length=True, transfer_syntax=syntax),
        structured_report(undefined_length=True, depth=6, transfer_syntax=syntax),
    )
]


def judge(file: bytes, piece_bytes: int) -> Report:
    """Judge a file, and see that it takes a bounded number of steps."""
    validation = FileValidation(len(file), LIMITS)
    steps = 0
    for start in range(0, len(file), piece_bytes):
        for _ in validation.steps(file[start : start + piece_bytes]):
            steps += 1
    finishing = validation.finishing()
    while True:
        try:
            next(finishing)
        except StopIteration as end:
            report: Report = end.value
            break
        steps += 1
        assert steps <= MOST_STEPS + len(file) // piece_bytes
    assert len(report.findings) <= LIMITS.max_findings + 1
    assert not report.has_failed
    return report


@given(
    file=st.sampled_from(FILES),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=12)), max_size=8),
    cut=st.floats(0.5, 1.0),
    piece_bytes=st.sampled_from([64, 1_000, 1 << 20]),
)
def test_a_damaged_file_has_a_report(
    file: bytes, changes: list[tuple[float, bytes]], cut: float, piece_bytes: int
) -> None:
    damaged = bytearray(file)
    for where, new in changes:
        start = 132 + int(where * (len(file) - 132))
        damaged[start : start + len(new)] = new
    judge(bytes(damaged[: int(len(damaged) * cut) if cut < 0.9 else len(damaged)]), piece_bytes)


@given(content=st.binary(max_size=2_000), has_preamble=st.booleans())
def test_any_bytes_have_a_report(content: bytes, has_preamble: bool) -> None:
    judge(bytes(128) + b"DICM" + content if has_preamble else content, 1_000)


@given(file=st.sampled_from(FILES), piece_bytes=st.integers(1, 3_000))
def test_the_report_does_not_depend_on_how_the_file_was_cut(file: bytes, piece_bytes: int) -> None:
    assert judge(file, piece_bytes) == judge(file, len(file))
