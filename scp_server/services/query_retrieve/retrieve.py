"""C-MOVE and C-GET (PS3.4 C.4.2, C.4.3): every part below the unique keys, sent there or here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, cast

from scp_server.errors import IndexFailure, OperationRefused
from scp_server.index.base import Index, RetrievablePart, UniqueKey
from scp_server.index.search import EntityLevel
from scp_server.interfaces import Destinations, FinalResponse, Operation
from scp_server.objects.identifier import Identifier, IdentifierLimits, read_identifier
from scp_server.objects.matching import MatchingOptions
from scp_server.objects.vr import tag_text
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import RetrieveMeasures
from scp_server.pipeline.sending import Source
from scp_server.protocol.message import CGetRQ, CMoveRQ, Message
from scp_server.protocol.status import Status
from scp_server.services.query_retrieve.asking import (
    IdentifierReader,
    check_higher_levels,
    exact_values,
    level_asked,
    model_asked,
)
from scp_server.services.query_retrieve.attributes import COLUMNS
from scp_server.services.query_retrieve.destination import Move, batched
from scp_server.services.query_retrieve.models import (
    GET_MODELS,
    MOVE_MODELS,
    UNIQUE_KEYS,
    InformationModel,
)
from scp_server.services.query_retrieve.negotiation import RelationalQueries, is_relational
from scp_server.services.query_retrieve.suboperations import SubOperations, SubOperationsConfig
from scp_server.services.registry import handles

log = get_logger(__name__)

MOST_SUBOPERATIONS: Final = 65_535
"""What a count of sub-operations, a US, can say."""
_ISSUER_OF_PATIENT_ID: Final = 0x00100021
_KEYS: Final = frozenset({*UNIQUE_KEYS.values(), _ISSUER_OF_PATIENT_ID})


@dataclass(frozen=True, slots=True)
class RetrieveConfig:
    """How retrieves are answered."""

    relational: RelationalQueries = RelationalQueries.NEGOTIATED
    max_identifier_bytes: int = 1024 * 1024
    limits: IdentifierLimits = field(default_factory=IdentifierLimits)
    max_suboperations: int = MOST_SUBOPERATIONS
    max_waiting_suboperations: int = 1_000_000
    """Of all retrieves together."""
    sub_operations: SubOperationsConfig = field(default_factory=SubOperationsConfig)


class RetrieveService:
    """Sends what is kept: to a destination of the settings (C-MOVE), or to who asks (C-GET)."""

    def __init__(
        self,
        index: Index,
        source: Source,
        destinations: Destinations | None,
        config: RetrieveConfig,
        measures: RetrieveMeasures | None = None,
    ) -> None:
        """Without `destinations` no name is known to C-MOVE."""
        self._index = index
        self._source = source
        self._destinations = destinations
        self._config = config
        self._identifiers = IdentifierReader(config.max_identifier_bytes)
        self._measures = measures or RetrieveMeasures()

    @handles(CMoveRQ)
    async def move(self, operation: Operation) -> Message | FinalResponse:
        """C-MOVE. Refuses with 0xA801 for a destination that is not configured, and as `get` does."""
        model = model_asked(operation, MOVE_MODELS)
        ae_title = cast(CMoveRQ, operation.request).move_destination
        destinations = self._destinations
        if destinations is None or not destinations.is_known(ae_title):
            raise OperationRefused(Status.MOVE_DESTINATION_UNKNOWN, "the move destination is not known")

        def proposals(part: RetrievablePart) -> tuple[str, ...]:
            return destinations.transfer_syntaxes_for(
                ae_title, part.transfer_syntax_uid, self._source.targets(part)
            )

        async def send(sub_operations: SubOperations) -> None:
            move = Move(operation, sub_operations, destinations, ae_title)
            for batch in await batched(tuple(sub_operations.waiting), proposals):
                await move.send(batch, self._config.sub_operations.associations)

        return await self._retrieve(operation, model, model.move_sop_class_uid, send)

    @handles(CGetRQ)
    async def get(self, operation: Operation) -> Message | FinalResponse:
        """C-GET: over the contexts on which the peer is SCP.

        Ends with 0x0000, 0xB000, 0xA702 or 0xFE00, after what became of the sub-operations. Refuses with
        0x0122, 0xA900, 0xC000, and with 0xA701 where there are too many or the index fails.
        """

        async def send(sub_operations: SubOperations) -> None:
            await sub_operations.send_all(operation.sender)

        model = model_asked(operation, GET_MODELS)
        return await self._retrieve(operation, model, model.get_sop_class_uid, send)

    async def _retrieve(
        self,
        operation: Operation,
        model: InformationModel,
        sop_class_uid: str,
        send: Callable[[SubOperations], Awaitable[None]],
    ) -> Message | FinalResponse:
        relational = is_relational(operation.association, sop_class_uid, self._config.relational)
        keys = await self._identifiers.read(
            operation,
            lambda data: unique_keys(operation, data, model, self._config.limits, relational=relational),
        )
        parts = await self._parts(operation, keys)
        sub_operations = SubOperations(
            operation, parts, self._source, self._config.sub_operations, self._measures
        )
        self._measures.accepted += len(parts)
        try:
            async with sub_operations.telling():
                await send(sub_operations)
            return sub_operations.final()
        finally:
            self._measures.accepted -= len(parts)

    async def _parts(self, operation: Operation, keys: list[UniqueKey]) -> list[RetrievablePart]:
        most = self._config.max_suboperations
        try:
            parts = await self._index.retrievable(keys, most + 1)
        except IndexFailure as failure:
            log.error("index.failed", error=str(failure), association_id=operation.association.association_id)
            raise OperationRefused(
                Status.UNABLE_TO_CALCULATE_NUMBER_OF_MATCHES, "the index cannot be searched"
            ) from failure
        if len(parts) > most:
            problem = f"there are more than {most} objects"
        elif self._measures.accepted + len(parts) > self._config.max_waiting_suboperations:
            problem = "too many objects are being sent at this moment"
        else:
            return parts
        raise OperationRefused(Status.UNABLE_TO_CALCULATE_NUMBER_OF_MATCHES, problem)


def unique_keys(
    operation: Operation,
    data: bytes,
    model: InformationModel,
    limits: IdentifierLimits,
    *,
    relational: bool,
) -> list[UniqueKey]:
    """What an identifier asks to be sent (PS3.4 C.4.2.1.4, C.4.2.2.1).

    Raises OperationRefused: 0xA900 with the offending element for a level or a unique key that the model does
    not allow, 0xC000 for what cannot be read.
    """
    try:
        identifier = read_identifier(
            data,
            operation.context.transfer_syntax,
            is_dicos=operation.association.is_dicos,
            options=MatchingOptions(),
            limits=limits,
            only=_KEYS,
        )
    except OperationRefused as refusal:
        if _KEYS.isdisjoint(refusal.offending_elements):
            raise
        raise _refused(refusal.comment, *refusal.offending_elements) from None
    level = level_asked(identifier, model)
    if not relational:
        check_higher_levels(identifier, model, level)
    return _keys_of_levels(identifier, model, level)


def _keys_of_levels(identifier: Identifier, model: InformationModel, level: EntityLevel) -> list[UniqueKey]:
    """The unique keys that have a value. That of the level has to; a lower level's must not, for it would
    have to say what is sent, and so must not one with wild cards."""
    keys = {key.tag: key for key in identifier.keys if not key.is_universal}
    found: list[UniqueKey] = []
    for each in (*model.higher_levels(level), level):
        tag = UNIQUE_KEYS[each]
        values = exact_values(keys.get(tag))
        if tag in keys and not values:
            raise _refused(f"{tag_text(tag)} has wild cards", tag)
        if each is level and not values:
            raise _refused(f"{tag_text(tag)} is needed", tag)
        if each is EntityLevel.PATIENT and len(values) > 1:
            raise _refused(f"{tag_text(tag)} has several values", tag)
        if values:
            found.append(UniqueKey(COLUMNS[tag].name, values))
    for each, tag in UNIQUE_KEYS.items():
        if each > level and tag in keys:
            raise _refused(f"{tag_text(tag)} is below the level", tag)
    if EntityLevel.PATIENT in model.levels and _ISSUER_OF_PATIENT_ID in keys:
        # Without its issuer a Patient ID may be two patients': whoever names it means one.
        issuers = exact_values(keys[_ISSUER_OF_PATIENT_ID])
        if len(issuers) != 1:
            raise _refused(f"one value of {tag_text(_ISSUER_OF_PATIENT_ID)} is needed", _ISSUER_OF_PATIENT_ID)
        found.append(UniqueKey(COLUMNS[_ISSUER_OF_PATIENT_ID].name, issuers))
    return found


def _refused(problem: str, *tags: int) -> OperationRefused:
    return OperationRefused(Status.IDENTIFIER_DOES_NOT_MATCH_SOP_CLASS, problem, tags)
