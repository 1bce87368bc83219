"""The contract suite for the files that an index keeps until they are durable: a part of `index_contract`.

Subclass `UnsyncedContract` in the same way, with `make_index` and `make_unavailable`.
"""

from __future__ import annotations

import asyncio

import pytest

from scp_server.errors import IndexUnavailable
from scp_server.index.base import AddOutcome, DuplicatePolicy, Index
from scp_server.testing.index_contract import (
    KEEP_FIRST,
    PARTS,
    REPLACE,
    IndexSuite,
    MakeIndex,
    MakeUnavailable,
    index_entry,
)


class UnsyncedContract(IndexSuite):
    """What every index must do with files."""

    async def test_a_file_is_kept_with_its_part_until_it_may_be_forgotten(
        self, index: Index, make_index: MakeIndex
    ) -> None:
        await index.add(index_entry("1", location="1", unsynced=b"one"), KEEP_FIRST)
        await index.add(index_entry("2", location="2"), KEEP_FIRST)
        await index.add(index_entry("3", location="3", unsynced=b""), KEEP_FIRST)
        await index.close()
        again = make_index()
        await again.open()
        assert sorted(await again.unsynced()) == ["1", "3"]
        assert await again.unsynced_contents(["1", "2", "3", "4"]) == {"1": b"one", "3": b""}
        await again.forget_unsynced(["1", "2", "4"])
        assert await again.unsynced() == ["3"]
        assert await again.unsynced_contents(["1", "3"]) == {"3": b""}
        await again.forget_unsynced([])
        assert (await again.totals()).parts == 3
        await again.close()

    async def test_a_newcomer_that_is_not_recorded_leaves_no_file(self, index: Index) -> None:
        await index.add(index_entry("1", b"a", location="kept"), KEEP_FIRST)
        same = await index.add(index_entry("1", b"a", location="same", unsynced=b"a"), PARTS)
        other = await index.add(index_entry("1", b"b", location="other", unsynced=b"b"), KEEP_FIRST)
        assert (same.outcome, other.outcome) == (AddOutcome.SAME, AddOutcome.CONFLICT)
        assert await index.unsynced() == []

    async def test_files_go_with_their_parts(self, index: Index) -> None:
        for policy, names in ((PARTS, ["1a", "1b"]), (KEEP_FIRST, ["2"]), (REPLACE, ["1c"])):
            for name in names:
                entry = index_entry(name[0], name.encode(), location=name, unsynced=name.encode())
                await index.add(entry, policy)
        assert sorted(await index.unsynced()) == ["1c", "2"]
        await index.remove(["2"])
        assert await index.unsynced_contents(["1a", "1b", "1c", "2"]) == {"1c": b"1c"}

    async def test_many_files_are_kept_and_forgotten_at_once(self, index: Index) -> None:
        entries = [index_entry(str(n), unsynced=b"%d" % n * 1_000) for n in range(700)]
        await asyncio.gather(*(index.add(entry, DuplicatePolicy.KEEP_FIRST) for entry in entries))
        locations = [entry.location for entry in entries]
        assert sorted(await index.unsynced()) == sorted(locations)
        contents = await index.unsynced_contents(locations)
        assert contents == {entry.location: entry.unsynced for entry in entries}
        await index.forget_unsynced(locations[:600])
        assert sorted(await index.unsynced()) == sorted(locations[600:])

    async def test_what_cannot_be_forgotten_is_kept(
        self, index: Index, make_unavailable: MakeUnavailable
    ) -> None:
        await index.add(index_entry("1", location="1", unsynced=b"one"), KEEP_FIRST)
        with make_unavailable(), pytest.raises(IndexUnavailable):
            await index.forget_unsynced(["1"])
        assert await index.unsynced() == ["1"]
        await index.forget_unsynced(["1"])
        assert await index.unsynced() == []
