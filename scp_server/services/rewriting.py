"""Writing an object anew that is changed on arrival, from what was received, at constant memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from blake3 import blake3

from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.part10 import FileMetaBytes
from scp_server.objects.splicing import Splice, Splicer
from scp_server.objects.summary import InstanceSummary, summarizing
from scp_server.objects.uids import transfer_syntax
from scp_server.protocol.events import Buffer
from scp_server.services.loop_share import LoopShare
from scp_server.storage.base import ObjectWriter, Storage


@dataclass(frozen=True, slots=True)
class ChangedObject:
    """The object as it is to be stored, in a writer of its own. `digest` is right once that has committed."""

    arrival_id: str
    writer: ObjectWriter
    file_meta: FileMetaBytes
    tap: HeaderTap
    summary: InstanceSummary
    digest: blake3
    size_bytes: int
    """Of the whole file."""


class Rewriting:
    """Writes one object anew. Its header is read and judged again, as that of any object that comes."""

    def __init__(
        self, storage: Storage, share: LoopShare, limits: TapLimits, transfer_syntax_uid: str
    ) -> None:
        self._storage = storage
        self._share = share
        self._limits = limits
        self._syntax_uid = transfer_syntax_uid

    async def run(
        self,
        received: ObjectWriter,
        dataset_offset_bytes: int,
        splices: Sequence[Splice],
        arrival_id: str,
        file_meta: FileMetaBytes,
    ) -> ChangedObject:
        """Begin an object and write into it what was received, with splices; the caller ends both writers.

        Raises OperationRefused or StorageError, and then nothing is left of the new one.
        """
        digest = blake3()
        size_bytes = len(file_meta.data)
        writer = await self._storage.begin(arrival_id, file_meta.data, digest)
        try:
            tap = HeaderTap(self._syntax_uid, self._limits)
            splicer = Splicer(transfer_syntax(self._syntax_uid), splices)
            pieces = cast(AsyncGenerator[bytes, None], received.read(dataset_offset_bytes))
            async with aclosing(pieces):
                async for piece in pieces:
                    for start in range(0, len(piece), splicer.chunk_bytes):
                        chunk = memoryview(piece)[start : start + splicer.chunk_bytes]
                        size_bytes += await self._take(
                            writer, tap, await self._share.run(splicer.feeding(chunk))
                        )
            size_bytes += await self._take(writer, tap, await self._share.run(splicer.finishing()))
            tap.finish()
            summary = await self._share.run(summarizing(tap.header, self._limits))
        except BaseException:
            await writer.abort()
            raise
        return ChangedObject(arrival_id, writer, file_meta, tap, summary, digest, size_bytes)

    async def _take(self, writer: ObjectWriter, tap: HeaderTap, data: Sequence[Buffer]) -> int:
        for piece in data:
            await self._share.run(tap.steps(piece))
        await writer.write(data)
        return sum(len(piece) for piece in data)
