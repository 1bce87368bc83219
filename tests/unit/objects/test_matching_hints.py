"""What a matcher tells the database lets every matching value pass; columns decide as the headers do."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from scp_server.errors import OperationRefused
from scp_server.objects.header_tap import HeaderTap
from scp_server.objects.identifier import stored_values
from scp_server.objects.matching import MatchingOptions, make_matcher
from scp_server.objects.matching_hints import AnyOf, Between, Contains, Hint, StartsWith
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.summary import summarize
from scp_server.testing.dataset_encoder import DatasetEncoder, Element

TEXTS = {
    "patient_name": (0x00100010, "PN"),
    "study_description": (0x00081030, "LO"),
    "modality": (0x00080060, "CS"),
    "accession_number": (0x00080050, "SH"),
}
TIMES = {
    "study_date": (0x00080020, "DA"),
    "study_time": (0x00080030, "TM"),
    "acquisition_date_time": (0x0008002A, "DT"),
}
ALPHABET = "aAb1 ^=\u00e4\u00c4\u0308e\u0301\uff21\u5c71\u00df*?\0"


def accepts(hint: Hint | None, column: str | int) -> bool:
    """What a database does."""
    match hint:
        case AnyOf(values):
            return column in values
        case StartsWith(prefix):
            return str(column).startswith(prefix)
        case Contains(text):
            return text in str(column)
        case Between(low, high):
            return (low is None or low <= str(column)) and (high is None or str(column) <= high)
    return True


def header_of(elements: list[Element]) -> RawHeader:
    uids = [Element(tag, "UI", "1.2.3") for tag in (0x00080016, 0x00080018, 0x0020000D, 0x0020000E)]
    charset = Element(0x00080005, "CS", "ISO_IR 192")
    tap = HeaderTap("1.2.840.10008.1.2.1")
    tap.feed(DatasetEncoder(codec="utf-8").encode([charset, *uids, *elements]))
    tap.finish()
    return tap.header


def check(name: str, tag: int, vr: str, key: bytes, stored: Element, options: MatchingOptions) -> bool:
    """A column and the header decide the same, and the hint finds what they do. Whether it matches."""
    header = header_of([stored])
    try:
        matcher = make_matcher(tag, vr, key, charset=b"ISO_IR 192", little_endian=True, options=options)
    except OperationRefused:
        return False
    if matcher is None:
        return True
    summary = summarize(header)
    column = getattr(summary, name)
    values = stored_values(header, tag, vr) or ()
    matches = matcher.matches(values)
    assert matches is matcher.matches(() if column is None else (column,))
    if matches and column is not None:
        hinted = summary.patient_name_folded if name == "patient_name" else column
        assert hinted is not None
        assert accepts(matcher.hint, hinted)
    return matches


def with_wild_cards(text: str, places: list[int], wild: str) -> str:
    characters = list(text)
    for place in places:
        if characters:
            characters[place % len(characters)] = wild
    return "".join(characters)


STORED = st.builds(
    lambda text, times: text * times, st.text(ALPHABET, max_size=12), st.sampled_from([1, 1, 1, 1, 200])
)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(TEXTS)),
    STORED,
    st.lists(st.integers(0, 40), max_size=3),
    st.sampled_from(["*", "?"]),
    st.one_of(st.none(), st.text(ALPHABET + "\\", max_size=6)),
    st.booleans(),
)
@example("study_description", "x" * 1_500, [], "*", None, False)
@example("study_description", "x" * 1_023 + " y", [], "*", None, False)
@example("patient_name", "Doe^" * 300 + "=a", [], "*", None, False)
def test_text(name: str, stored: str, places: list[int], wild: str, other: str | None, agreed: bool) -> None:
    tag, vr = TEXTS[name]
    key = with_wild_cards(stored, places, wild) if other is None else other
    options = MatchingOptions(agreed, agreed, agreed)
    matches = check(name, tag, vr, key.encode(), Element(tag, vr, stored), options)
    if other is None and not places and not set(stored) & {"*", "?"} and stored.strip(" \0^=\n"):
        assert matches


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(TIMES)),
    st.sampled_from(
        ["2024", "20240101", "2024.01.01", "20240102", "1030", "10:30", "20240101103000-0500", "x"]
    ),
    st.sampled_from(
        ["20240101", "2024.01.01", "20231231-20240102", "-2024.01.01", "1030-", "2024-", "20240101\\2023"]
    ),
)
def test_dates_and_times(name: str, stored: str, key: str) -> None:
    tag, vr = TIMES[name]
    check(name, tag, vr, key.encode(), Element(tag, vr, stored), MatchingOptions())


@given(
    st.sampled_from([("number_of_frames", 0x00280008), ("series_number", 0x00200011)]),
    st.sampled_from(["IS", "US", "SL"]),
    st.sampled_from(["IS", "US", "SL"]),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_numbers(attribute: tuple[str, int], stored_vr: str, key_vr: str, stored: int, key: int) -> None:
    name, tag = attribute
    raw = DatasetEncoder().element(Element(tag, key_vr, key))[8:]
    assert check(name, tag, key_vr, raw, Element(tag, stored_vr, stored), MatchingOptions()) is (
        stored == key
    )


def test_a_number_of_frames_is_text_in_dicom_and_binary_in_dicos() -> None:
    assert check(
        "number_of_frames", 0x00280008, "US", b"\x07\0", Element(0x00280008, "IS", "7"), MatchingOptions()
    )
    name, tag = "number_of_frames", 0x00280008
    assert check(name, tag, "US", b"\x07\0", Element(tag, "IS", "7"), MatchingOptions())
    assert check(name, tag, "IS", b"7 ", Element(tag, "US", 7), MatchingOptions())
