"""Which service performs which request on which presentation context.

A service is an async method marked with `@handles`; an object with such methods is registered, nothing
happens at import. To add a DIMSE service, write one module like `verification`, and register it in
`runtime/build.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TypeVar, cast

from scp_server.errors import OperationRefused
from scp_server.interfaces import AcceptedContext, Operation, Service
from scp_server.protocol.message import Message, Request
from scp_server.protocol.status import Status

_MARK = "__handles__"
_Method = TypeVar("_Method", bound=Callable[..., object])


def handles(request_type: type[Request]) -> Callable[[_Method], _Method]:
    """Mark an async method `(operation) -> Response` as the one that performs `request_type`."""

    def mark(method: _Method) -> _Method:
        setattr(method, _MARK, request_type)
        return method

    return mark


class ServiceRegistry:
    """Finds services by the kind of request and the abstract syntax of its context."""

    def __init__(self) -> None:
        self._services: dict[type[Request], list[tuple[Container[str], Service]]] = {}

    def register(self, provider: object, sop_classes: Container[str]) -> None:
        """Offer every marked method of `provider` on contexts whose abstract syntax is in `sop_classes`."""
        found = False
        for name in dir(type(provider)):
            request_type = getattr(getattr(type(provider), name), _MARK, None)
            if request_type is not None:
                service = cast(Service, getattr(provider, name))
                self._services.setdefault(request_type, []).append((sop_classes, service))
                found = True
        if not found:
            raise TypeError(f"{type(provider).__name__} has no method marked with @handles")

    def find(self, request: Request, context: AcceptedContext) -> Service:
        """The service for `request`; one that refuses with 0x0122 where its context has none."""
        for sop_classes, service in self._services.get(type(request), ()):
            if context.abstract_syntax in sop_classes:
                return service
        return _not_supported


async def _not_supported(operation: Operation) -> Message:
    raise OperationRefused(
        Status.SOP_CLASS_NOT_SUPPORTED,
        f"{type(operation.request).__name__.removesuffix('RQ')} is not offered on this context",
    )
