"""Replacing places of a data set: the same however it is cut, deflated or not, at constant memory."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_server.errors import UnreadableDataset
from scp_server.objects.changes import Changes
from scp_server.objects.inflate import BoundedInflate
from scp_server.objects.splicing import Splice, Splicer
from scp_server.objects.uids import transfer_syntax
from scp_server.testing.dataset_encoder import TransferSyntax, deflate
from scp_server.testing.objects import ct_image
from tests.unit.objects.test_coercion import DEFLATED, ELE, SYNTAXES, header, plan, read, spliced


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_splicing_is_the_same_however_the_data_set_is_cut(data: st.DataObject) -> None:
    dataset = data.draw(st.binary(max_size=60))
    places = sorted(data.draw(st.lists(st.integers(0, len(dataset)), max_size=8)))
    splices = [
        Splice(start, end, data.draw(st.binary(max_size=5)))
        for start, end in zip(places[::2], places[1::2], strict=False)
    ]
    expected, at = b"", 0
    for splice in splices:
        expected += dataset[at : splice.start] + splice.data
        at = splice.end
    expected += dataset[at:]
    step = data.draw(st.integers(1, 20))
    assert spliced(dataset, ELE, splices, step) == expected
    deflated = read_back_deflated(dataset, splices, step)
    assert deflated == expected


def read_back_deflated(dataset: bytes, splices: list[Splice], step: int) -> bytes:
    data = spliced(deflate(dataset), DEFLATED, splices, step)
    assert len(data) % 2 == 0
    inflate = BoundedInflate(2_000, 0, 0)
    inflated = b"".join(inflate.feed(data))
    inflate.finish()
    return inflated


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_without_splices_everything_is_as_it_was(syntax: TransferSyntax) -> None:
    stored = ct_image(transfer_syntax=syntax, sequences=True)
    data = spliced(stored.dataset, syntax, (), 777)
    if syntax is not DEFLATED:
        assert data == stored.dataset
    assert read(data, syntax) == read(stored.dataset, syntax)


def test_a_large_object_is_changed_at_constant_memory() -> None:
    stored = ct_image()
    found = plan(header(stored.dataset, ELE), Changes.of(set={"PatientID": "NEW"}))
    assert found is not None
    splicer = Splicer(transfer_syntax(ELE), found.splices)
    piece = bytes(1 << 20)
    tracemalloc.start()
    total = 0
    for number in range(256):
        for steps in [splicer.feeding(stored.dataset if number == 0 else piece)]:
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    total += sum(map(len, end.value))
                    break
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > 255 << 20
    assert peak < 1 << 20


@pytest.mark.parametrize("syntax", [ELE, DEFLATED])
def test_what_is_cut_before_the_last_splice_is_refused(syntax: TransferSyntax) -> None:
    stored = ct_image(transfer_syntax=syntax)
    found = plan(header(stored.dataset, syntax), Changes.of(set={"PatientID": "X"}))
    assert found is not None
    with pytest.raises(UnreadableDataset):
        spliced(stored.dataset[:100], syntax, found.splices)
