"""What every query and retrieve begins with: model, identifier, level and higher unique keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, TypeVar, cast

from scp_server.errors import OperationRefused
from scp_server.index.search import EntityLevel
from scp_server.interfaces import Operation
from scp_server.objects.identifier import Identifier, Key
from scp_server.objects.matching_hints import AnyOf
from scp_server.objects.uids import clean_uid
from scp_server.objects.vr import tag_text
from scp_server.protocol.message import CFindRQ, CGetRQ, CMoveRQ
from scp_server.protocol.status import Status
from scp_server.services.query_retrieve.models import (
    LEVEL_NAMES,
    QUERY_RETRIEVE_LEVEL,
    UNIQUE_KEYS,
    InformationModel,
)

INLINE_IDENTIFIER_BYTES: Final = 2 * 1024
"""A larger identifier is read in a thread: it takes milliseconds."""

T = TypeVar("T")


def model_asked(operation: Operation, models: Mapping[str, InformationModel]) -> InformationModel:
    """The model that an operation is about.

    Raises OperationRefused: 0x0122 where its SOP class is not that of its context or none of `models`, 0xA900
    where it has no identifier.
    """
    request = cast(CFindRQ | CMoveRQ | CGetRQ, operation.request)
    model = models.get(operation.context.abstract_syntax)
    if model is None or clean_uid(request.affected_sop_class_uid) != operation.context.abstract_syntax:
        raise OperationRefused(Status.SOP_CLASS_NOT_SUPPORTED, "the SOP class is not the one of this context")
    if not request.has_dataset:
        raise OperationRefused(Status.IDENTIFIER_DOES_NOT_MATCH_SOP_CLASS, "a request without an identifier")
    return model


class IdentifierReader:
    """Reads the identifiers of operations.

    Large ones in a thread, one at a time: each thread that works in the interpreter makes the event loop wait
    for its turn.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._large = asyncio.Lock()

    async def read(self, operation: Operation, parse: Callable[[bytes], T]) -> T:
        """What `parse` makes of the operation's identifier.

        Raises OperationRefused: 0xC000 for one that is too large, and whatever `parse` raises.
        """
        identifier = await self._received(operation)
        if len(identifier) <= INLINE_IDENTIFIER_BYTES:
            return parse(identifier)
        async with self._large:
            return await asyncio.to_thread(parse, identifier)

    async def _received(self, operation: Operation) -> bytes:
        dataset = operation.dataset
        pieces: list[memoryview] = []
        async for chunks in dataset.chunks():
            if dataset.received_bytes > self._max_bytes:
                raise OperationRefused(
                    Status.CANNOT_UNDERSTAND, f"the identifier has more than {self._max_bytes} bytes"
                )
            pieces += chunks
        identifier = b"".join(pieces)
        if identifier:
            dataset.release(len(identifier))
        return identifier


def level_asked(identifier: Identifier, model: InformationModel) -> EntityLevel:
    """The level of an identifier. Raises OperationRefused (0xA900) for one that the model does not have."""
    level = LEVEL_NAMES.get(identifier.level)
    if level in model.levels and level is not None:
        return level
    if not identifier.level:
        problem = "Query/Retrieve Level (0008,0052) is missing"
    elif level is None:
        problem = "Query/Retrieve Level (0008,0052) is none of the standard's"
    else:
        problem = f"{model.name} has no level {identifier.level}"
    raise OperationRefused(Status.IDENTIFIER_DOES_NOT_MATCH_SOP_CLASS, problem, (QUERY_RETRIEVE_LEVEL,))


def exact_values(key: Key | None) -> tuple[str, ...]:
    """The values of a key that has some, all without wild cards; none otherwise."""
    hint = key.matcher.hint if key is not None and key.matcher is not None else None
    return tuple(map(str, hint.values)) if isinstance(hint, AnyOf) else ()


def check_higher_levels(identifier: Identifier, model: InformationModel, level: EntityLevel) -> None:
    """Every higher level's unique key has one value without wild cards (PS3.4 C.4.1.2.1, C.4.2.2.1).

    Raises OperationRefused (0xA900).
    """
    keys = {key.tag: key for key in identifier.keys}
    for higher in model.higher_levels(level):
        tag = UNIQUE_KEYS[higher]
        if len(exact_values(keys.get(tag))) != 1:
            raise OperationRefused(
                Status.IDENTIFIER_DOES_NOT_MATCH_SOP_CLASS, f"one value of {tag_text(tag)} is needed", (tag,)
            )
