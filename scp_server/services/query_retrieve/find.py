"""C-FIND (PS3.4 C.4.1, PS3.7 9.1.2): one response for each match, as they are found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from scp_server.errors import IndexFailure, OperationRefused, SearchInterrupted
from scp_server.index.base import Index
from scp_server.interfaces import Operation
from scp_server.observability.logs import get_logger
from scp_server.protocol.message import CFindRQ, Message, response_to
from scp_server.protocol.status import Status
from scp_server.services.query_retrieve.asking import IdentifierReader, model_asked
from scp_server.services.query_retrieve.models import FIND_MODELS, InformationModel
from scp_server.services.query_retrieve.negotiation import QueryOptions, RelationalQueries
from scp_server.services.query_retrieve.plan import FindPlan, PlanConfig, plan_find
from scp_server.services.registry import handles

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FindConfig:
    """How queries are answered."""

    plan: PlanConfig
    relational: RelationalQueries = RelationalQueries.NEGOTIATED
    max_matches: int = 0
    """0 is no limit."""
    max_identifier_bytes: int = 1024 * 1024


class FindService:
    """Answers queries of the Query/Retrieve models from an index."""

    def __init__(self, index: Index, config: FindConfig) -> None:
        self._index = index
        self._config = config
        self._identifiers = IdentifierReader(config.max_identifier_bytes)

    @handles(CFindRQ)
    async def find(self, operation: Operation) -> Message:
        """C-FIND. Ends with 0x0000, 0xFE00 when cancelled, 0xA700 when the index fails or more matches than
        allowed were found; refuses with 0xA900, 0xC000 or 0x0122 (PS3.4 Table C.4-1)."""
        request = cast(CFindRQ, operation.request)
        model = model_asked(operation, FIND_MODELS)
        plan = await self._plan(operation, model)
        try:
            status = await self._answer(operation, plan)
        except SearchInterrupted:
            status = Status.CANCEL
        except IndexFailure as failure:
            log.error("index.failed", error=str(failure), association_id=operation.association.association_id)
            raise OperationRefused(Status.OUT_OF_RESOURCES, "the index cannot be searched") from failure
        return response_to(request, status)

    async def _plan(self, operation: Operation, model: InformationModel) -> FindPlan:
        options = QueryOptions.of(operation.association, model, self._config.relational)
        return await self._identifiers.read(
            operation,
            lambda identifier: plan_find(
                identifier,
                operation.context.transfer_syntax,
                model,
                options,
                self._config.plan,
                is_dicos=operation.association.is_dicos,
            ),
        )

    async def _answer(self, operation: Operation, plan: FindPlan) -> Status:
        """Send the matches. Raises IndexFailure, AssociationError."""
        request, most = cast(CFindRQ, operation.request), self._config.max_matches
        search = self._index.search(plan.search, plan.judge, lambda answer: len(answer.dataset))
        operation.when_cancelled(search.interrupt)
        matches = 0
        try:
            async for page in search:
                for answer in page:
                    if operation.cancel_requested:
                        return Status.CANCEL
                    matches += 1
                    if 0 < most < matches:
                        raise OperationRefused(Status.OUT_OF_RESOURCES, f"there are more than {most} matches")
                    await operation.send(
                        response_to(request, answer.status, has_dataset=True), answer.dataset
                    )
        finally:
            search.interrupt()
        return Status.SUCCESS
