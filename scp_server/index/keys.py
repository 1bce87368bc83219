"""Keys for new rows, known before the rows are written."""

from __future__ import annotations

from sqlalchemy import BigInteger, Connection, bindparam, insert, update

from scp_server.index.schema import key_allocation

BLOCK_KEYS = 4096
"""Keys claimed at once; those not used when the process ends are never used."""

_NAME = "keys"
_FIRST_KEY = 1

_claim = (
    update(key_allocation)
    .where(key_allocation.c.name == _NAME)
    .values(next_key=key_allocation.c.next_key + bindparam("claimed_keys", type_=BigInteger))
    .returning(key_allocation.c.next_key)
)


class KeyAllocator:
    """Gives out keys from blocks that it claims, in its caller's transaction, from `key_allocation`.

    Any number of processes may do so. A block belongs to the transaction that claimed it until that commits:
    `forget` when it did not.
    """

    def __init__(self) -> None:
        self._next = 0
        self._end = 0

    def forget(self) -> None:
        """Drop the block in hand."""
        self._next = self._end = 0

    def take(self, connection: Connection, count: int) -> range:
        """`count` keys that nobody else has, ascending."""
        if self._end - self._next < count:
            claimed = max(count, BLOCK_KEYS)
            end = connection.execute(_claim, {"claimed_keys": claimed}).scalar()
            if end is None:
                end = _FIRST_KEY + claimed
                connection.execute(insert(key_allocation).values(name=_NAME, next_key=end))
            self._next, self._end = end - claimed, end
        first = self._next
        self._next += count
        return range(first, self._next)
