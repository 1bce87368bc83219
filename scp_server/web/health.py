"""Health over HTTP: `/healthz` says that the process lives, `/readyz` that it accepts associations."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route


class HealthState:
    """Whether the server is ready, and if not, why. Begins as starting; for one event loop."""

    def __init__(self) -> None:
        self._reasons: tuple[str, ...] = ("the server starts",)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the server is not ready; empty when it is."""
        return self._reasons

    @property
    def is_ready(self) -> bool:
        """True while associations are accepted."""
        return not self._reasons

    def ready(self) -> None:
        """Associations are accepted from now on."""
        self._reasons = ()

    def not_ready(self, *reasons: str) -> None:
        """Associations are not accepted, because of `reasons`: our own words, shown to anyone who asks."""
        self._reasons = reasons or ("not ready",)


def health_app(state: HealthState, *more: BaseRoute) -> Starlette:
    """The ASGI application, with `more` routes. Everything it says itself is JSON, errors too.

    `GET /healthz`: 200 while the event loop turns. `GET /readyz`: 200 when ready, else 503 and the reasons.
    """

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"}, headers=_NOT_STORED)

    async def readyz(_request: Request) -> Response:
        if state.is_ready:
            return JSONResponse({"status": "ready"}, headers=_NOT_STORED)
        return JSONResponse(
            {"status": "not ready", "reasons": list(state.reasons)}, status_code=503, headers=_NOT_STORED
        )

    app = Starlette(
        routes=[
            Route("/healthz", healthz, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
            *more,
        ],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )
    app.router.redirect_slashes = False
    return app


_NOT_STORED = {"cache-control": "no-store"}


async def _refused(_request: Request, error: Exception) -> Response:
    status, headers = 500, None
    if isinstance(error, HTTPException):
        status, headers = error.status_code, error.headers
    text = {404: "not found", 405: "method not allowed"}.get(status, "refused")
    return JSONResponse({"error": text}, status_code=status, headers=headers)


async def _failed(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "internal error"}, status_code=500)
