"""Rules that post: each event that is meant goes to a URL as a CloudEvent, signed.

The body is a CloudEvent 1.0 in structured JSON. Its signature is that of the Standard Webhooks specification:
HMAC-SHA256 over id, time stamp and body, so that a receiver can check who sent it, that it is whole, and that
it is not an old one that somebody sends again.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from scp_server.errors import ConfigurationError
from scp_server.observability.rule_measures import WebhookMeasures, WebhookResult
from scp_server.observability.text import peer_text
from scp_server.pipeline.deliveries import Delivery, EventKind, LoggedEvent
from scp_server.pipeline.filters import ObjectFilter
from scp_server.pipeline.verdicts import DestinationDown, NotDelivered, Undeliverable

if TYPE_CHECKING:
    import httpx

CONTENT_TYPE: Final = "application/cloudevents+json"
MISSING_EXTRA: Final = "webhooks need the extra webhook: pip install 'scp-server[webhook]'"
_RETRIED: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_SECRET_PREFIX: Final = "whsec_"
_DRAINED_BYTES: Final = 65_536
"""Most of an answer that is read."""
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class WebhookRule:
    """What is posted where. `secret` are the bytes of the key; without one nothing is signed."""

    name: str
    url: str
    kinds: frozenset[EventKind] = frozenset(EventKind)
    filter: ObjectFilter = field(default_factory=ObjectFilter)
    secret: bytes | None = field(default=None, repr=False)
    source: str = "urn:scp-server"
    """CloudEvents' `source`: who says it."""
    timeout_seconds: float = 10.0
    concurrency: int = 4
    ca_file: Path | None = None
    """Certificates that are trusted instead of the system's."""

    @property
    def subscription(self) -> str:
        """Its name in the outbox."""
        return f"webhook:{self.name}"


class WebhookSubscriber:
    """See `Subscriber`. `close` ends its connections."""

    def __init__(
        self,
        rule: WebhookRule,
        measures: WebhookMeasures | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises ConfigurationError where httpx is not installed, or `ca_file` has no certificates."""
        self.rule = rule
        self.name = rule.subscription
        self.concurrency = rule.concurrency
        self._results = (measures or WebhookMeasures()).of(rule.name)
        self._clock = clock
        self._client = _client(rule)
        self._under_way: set[asyncio.Future[None]] = set()

    async def close(self) -> None:
        """End its connections, once nothing is under way: that takes `timeout_seconds` at most."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        await self._client.aclose()

    def wants(self, event: LoggedEvent) -> bool:
        """See `Subscriber.wants`. A filter that asks for what an event does not have does not mean it."""
        return event.kind in self.rule.kinds and self.rule.filter.matches_event(event.data)

    async def deliver(self, delivery: Delivery) -> None:
        """See `Subscriber.deliver`. What the receiver says beside its status is of no interest."""
        ended = asyncio.get_running_loop().create_future()
        self._under_way.add(ended)
        try:
            await self._post(delivery)
        finally:
            self._under_way.discard(ended)
            ended.set_result(None)

    async def _post(self, delivery: Delivery) -> None:
        import httpx

        body = cloud_event(delivery, self.rule.source)
        headers = {"content-type": CONTENT_TYPE} | self._signed(delivery.idempotency_key, body)
        try:
            async with (
                asyncio.timeout(self.rule.timeout_seconds),
                self._client.stream("POST", self.rule.url, content=body, headers=headers) as response,
            ):
                status, retry_after = response.status_code, response.headers.get("retry-after", "")
                await _drain(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            self._results[WebhookResult.DOWN] += 1
            raise DestinationDown(f"no connection: {peer_text(str(error))}") from error
        except (httpx.HTTPError, TimeoutError) as error:
            self._results[WebhookResult.FAILED] += 1
            problem = peer_text(str(error)) or f"nothing within {self.rule.timeout_seconds:g} s"
            raise NotDelivered(f"no answer: {problem}") from error
        self._judge(status, retry_after)

    def _signed(self, message_id: str, body: bytes) -> dict[str, str]:
        timestamp = int(self._clock())
        headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
        if self.rule.secret is not None:
            headers["webhook-signature"] = signature(self.rule.secret, message_id, timestamp, body)
        return headers

    def _judge(self, status: int, retry_after: str) -> None:
        """Whether it was taken. Raises NotDelivered or Undeliverable where not."""
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            self._results[WebhookResult.TAKEN] += 1
            return
        if status in _RETRIED or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._results[WebhookResult.FAILED] += 1
            seconds = retry_after_seconds(retry_after, self._clock())
            raise NotDelivered(f"status {status}", retry_after_seconds=seconds)
        self._results[WebhookResult.REFUSED] += 1
        raise Undeliverable(f"status {status}")


async def _drain(response: httpx.Response) -> None:
    """Read a short body, so that the connection can be used again; a longer one costs the connection."""
    left = _DRAINED_BYTES
    async for piece in response.aiter_raw():
        left -= len(piece)
        if left < 0:
            return


def secret_bytes(secret: str) -> bytes:
    """The key behind a secret: as it is, or Base64 behind `whsec_`. Raises ValueError."""
    if not secret.startswith(_SECRET_PREFIX):
        return secret.encode("utf-8")
    return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of the header `webhook-signature`."""
    signed = b"%s.%d.%s" % (message_id.encode("ascii"), timestamp, body)
    digest = hmac.digest(secret, signed, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode('ascii')}"


def cloud_event(delivery: Delivery, source: str) -> bytes:
    """The body: a CloudEvent 1.0 in JSON. `mayberepeated` says that it may have been delivered before."""
    event = delivery.event
    envelope: dict[str, object] = {
        "specversion": "1.0",
        "id": delivery.idempotency_key,
        "source": source,
        "type": event.kind.value,
        "subject": _subject(event),
        "time": _time(event.at_ns),
        "eventid": str(event.event_id),
        "datacontenttype": "application/json",
        "data": dict(event.data),
    }
    if delivery.may_be_repeated or delivery.attempt > 1:
        envelope["mayberepeated"] = True
    return json.dumps(envelope, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def retry_after_seconds(text: str, now: float) -> float | None:
    """What a header Retry-After asks for (RFC 9110 10.2.3); None where it says nothing that is understood."""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - now, 0.0)
    except ValueError:
        return None


def _subject(event: LoggedEvent) -> str:
    """What the event is about, as a path."""
    if event.kind in (EventKind.ASSOCIATION_ACCEPTED, EventKind.ASSOCIATION_ENDED):
        return f"associations/{quote(event.association_id, safe='')}"
    names = {"studies": "study_instance_uid"}
    if event.kind in (EventKind.OBJECT_STORED, EventKind.OBJECT_INVALID):
        names |= {"series": "series_instance_uid", "instances": "sop_instance_uid"}
    return "/".join(
        f"{level}/{quote(str(event.data.get(name, '')), safe='')}" for level, name in names.items()
    )


def _time(at_ns: int) -> str:
    """RFC 3339, UTC, in microseconds."""
    moment = datetime.fromtimestamp(at_ns // _NS, UTC).replace(microsecond=at_ns % _NS // 1_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _client(rule: WebhookRule) -> httpx.AsyncClient:
    """It dials what the settings say: no redirect is followed, and no proxy of the environment is asked."""
    try:
        import httpx
    except ImportError as error:
        raise ConfigurationError(f"webhook {rule.name}: {MISSING_EXTRA}") from error
    try:
        trusted = ssl.create_default_context(cafile=rule.ca_file)
    except OSError as error:
        raise ConfigurationError(
            f"webhook {rule.name}: ca_file {rule.ca_file} has no certificates: {error.strerror or error}"
        ) from error
    return httpx.AsyncClient(
        verify=trusted,
        # Sooner than the whole: then it is known that there was no connection.
        timeout=httpx.Timeout(rule.timeout_seconds, connect=rule.timeout_seconds / 2),
        limits=httpx.Limits(max_connections=rule.concurrency, max_keepalive_connections=rule.concurrency),
        follow_redirects=False,
        trust_env=False,
    )
