"""Metrics over HTTP: `/metrics`, for Prometheus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Scrape = Callable[[str], Awaitable[tuple[bytes, str]]]
"""From the Accept header to a body and its content type."""


def metrics_route(scrape: Scrape) -> Route:
    """`GET /metrics`: 200 with what `scrape` says."""

    async def metrics(request: Request) -> Response:
        body, content_type = await scrape(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})

    return Route("/metrics", metrics, methods=["GET"])
