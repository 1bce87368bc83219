"""A rule that posts: what is posted, how it is signed, and what answers mean."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import ConfigurationError
from scp_server.observability.rule_measures import WebhookMeasures
from scp_server.pipeline.builtin.webhook import (
    CONTENT_TYPE,
    MISSING_EXTRA,
    WebhookRule,
    WebhookSubscriber,
    retry_after_seconds,
    secret_bytes,
    signature,
)
from scp_server.pipeline.deliveries import EventKind, LoggedEvent
from scp_server.pipeline.filters import ObjectFilter
from scp_server.pipeline.verdicts import DestinationDown, NotDelivered, Undeliverable
from scp_server.testing.objects import ct_image
from scp_server.testing.webhook_receiver import Answer, WebhookReceiver
from tests.unit.pipeline.events import delivery, of_association, settled, stored

CT = ct_image(rows=4, columns=4)
EVENT = stored(CT, "objects/1.dcm")
NOW = 1_700_000_100.5


@pytest.fixture
async def receiver() -> AsyncIterator[WebhookReceiver]:
    receiver = WebhookReceiver()
    async with receiver.listening():
        yield receiver


@asynccontextmanager
async def subscribed(port: int, scheme: str = "http", **rule: Any) -> AsyncIterator[WebhookSubscriber]:
    """A rule that posts to that port."""
    url = f"{scheme}://127.0.0.1:{port}/hook?x=1"
    chosen = WebhookRule("hook", url, **{"timeout_seconds": 5.0, **rule})
    subscriber = WebhookSubscriber(chosen, WebhookMeasures(), clock=lambda: NOW)
    try:
        yield subscriber
    finally:
        await subscriber.close()


def results(subscriber: WebhookSubscriber) -> dict[str, int]:
    return {str(name): count for name, count in subscriber._results.items() if count}


# -- what is posted ----------------------------------------------------------------------------------------


async def test_an_event_is_posted_as_a_cloud_event(receiver: WebhookReceiver) -> None:
    """CloudEvents 1.0, structured mode; the id is the delivery's, the same for every try."""
    async with subscribed(receiver.port, source="urn:scp-server:ARCHIVE") as subscriber:
        await subscriber.deliver(delivery(EVENT))
        assert results(subscriber) == {"taken": 1}
    (post,) = receiver.posts
    assert (post.path, post.headers["content-type"]) == ("/hook?x=1", CONTENT_TYPE)
    assert post.event == {
        "specversion": "1.0",
        "id": "archive:7:name",
        "source": "urn:scp-server:ARCHIVE",
        "type": "object.stored",
        "subject": f"studies/{CT.study_instance_uid}/series/{CT.series_instance_uid}"
        f"/instances/{CT.sop_instance_uid}",
        "time": "2023-11-14T22:13:20.123456Z",
        "eventid": "7",
        "datacontenttype": "application/json",
        "data": EVENT.data,
    }


@pytest.mark.parametrize(
    ("event", "subject"),
    [
        (of_association(EventKind.ASSOCIATION_ACCEPTED), "associations/a%2F1"),
        (of_association(EventKind.ASSOCIATION_ENDED, outcome="released", parts=3), "associations/a%2F1"),
        (settled("1.2.3"), "studies/1.2.3"),
        (
            replace(EVENT, kind=EventKind.OBJECT_INVALID),
            f"studies/{CT.study_instance_uid}/series/{CT.series_instance_uid}"
            f"/instances/{CT.sop_instance_uid}",
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, LoggedEvent) else "",
)
async def test_every_kind_of_event_says_what_it_is_about(
    receiver: WebhookReceiver, event: LoggedEvent, subject: str
) -> None:
    async with subscribed(receiver.port) as subscriber:
        await subscriber.deliver(delivery(event))
    posted = receiver.posts[0].event
    assert (posted["type"], posted["subject"], posted["data"]) == (event.kind, subject, event.data)


@pytest.mark.parametrize(
    ("how", "marked"),
    [({}, False), ({"attempt": 2}, True), ({"may_be_repeated": True}, True)],
    ids=["first", "again", "after a crash"],
)
async def test_what_may_be_a_repeat_is_marked_and_has_the_same_id(
    receiver: WebhookReceiver, how: dict[str, Any], marked: bool
) -> None:
    async with subscribed(receiver.port) as subscriber:
        await subscriber.deliver(delivery(EVENT, **how))
    (post,) = receiver.posts
    assert (post.event.get("mayberepeated", False), post.event["id"]) == (marked, "archive:7:name")
    assert post.headers["webhook-id"] == "archive:7:name"


# -- how it is signed --------------------------------------------------------------------------------------


async def test_a_post_is_signed_over_id_time_stamp_and_body(receiver: WebhookReceiver) -> None:
    async with subscribed(receiver.port, secret=b"key") as subscriber:
        await subscriber.deliver(delivery(EVENT))
    (post,) = receiver.posts
    signed = b"archive:7:name.1700000100." + post.body
    expected = base64.b64encode(hmac.new(b"key", signed, hashlib.sha256).digest()).decode()
    assert post.headers["webhook-timestamp"] == "1700000100"
    assert post.headers["webhook-signature"] == f"v1,{expected}"


async def test_without_a_secret_nothing_is_signed(receiver: WebhookReceiver) -> None:
    async with subscribed(receiver.port) as subscriber:
        await subscriber.deliver(delivery(EVENT))
    assert "webhook-signature" not in receiver.posts[0].headers


def test_the_signature_is_that_of_the_standard_webhooks_specification() -> None:
    """The example of its test vectors."""
    secret = secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_rule_does_not_show_its_secret() -> None:
    assert "key" not in repr(WebhookRule("hook", "https://example.org", secret=b"key"))


# -- what answers mean -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_2xx_is_a_delivery(receiver: WebhookReceiver, status: int) -> None:
    receiver.answer = lambda _: Answer(status)
    async with subscribed(receiver.port) as subscriber:
        await subscriber.deliver(delivery(EVENT))
        assert results(subscriber) == {"taken": 1}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
@pytest.mark.parametrize(("asked", "seconds"), [({}, None), ({"retry-after": "17"}, 17.0)], ids=["", "later"])
async def test_a_receiver_that_cannot_now_is_tried_again_when_it_asks_for_it(
    receiver: WebhookReceiver, status: int, asked: dict[str, str], seconds: float | None
) -> None:
    receiver.answer = lambda _: Answer(status, asked)
    async with subscribed(receiver.port) as subscriber:
        with pytest.raises(NotDelivered, match=f"status {status}") as raised:
            await subscriber.deliver(delivery(EVENT))
        assert results(subscriber) == {"failed": 1}
    assert raised.value.retry_after_seconds == seconds
    assert not isinstance(raised.value, DestinationDown)


@pytest.mark.parametrize("status", [300, 400, 401, 404, 410, 413, 422])
async def test_a_receiver_that_refuses_makes_a_dead_letter(receiver: WebhookReceiver, status: int) -> None:
    receiver.answer = lambda _: Answer(status, {"retry-after": "1"})
    async with subscribed(receiver.port) as subscriber:
        with pytest.raises(Undeliverable, match=f"status {status}"):
            await subscriber.deliver(delivery(EVENT))
        assert results(subscriber) == {"refused": 1}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(receiver: WebhookReceiver, status: int) -> None:
    elsewhere = WebhookReceiver()
    async with elsewhere.listening() as port:
        receiver.answer = lambda _: Answer(status, {"location": f"http://127.0.0.1:{port}/"})
        async with subscribed(receiver.port) as subscriber:
            with pytest.raises(Undeliverable, match=f"status {status}"):
                await subscriber.deliver(delivery(EVENT))
    assert elsewhere.posts == []


async def test_nobody_who_listens_is_a_destination_that_is_down() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with subscribed(bound.getsockname()[1]) as subscriber:
            with pytest.raises(DestinationDown, match="no connection"):
                await subscriber.deliver(delivery(EVENT))
            assert results(subscriber) == {"down": 1}


async def test_a_receiver_that_closes_without_an_answer_is_tried_again(receiver: WebhookReceiver) -> None:
    receiver.answer = lambda _: Answer(None)
    async with subscribed(receiver.port) as subscriber:
        with pytest.raises(NotDelivered, match="no answer") as raised:
            await subscriber.deliver(delivery(EVENT))
    assert not isinstance(raised.value, DestinationDown)


async def test_a_receiver_that_does_not_answer_in_time_is_tried_again(receiver: WebhookReceiver) -> None:
    receiver.before_answer = asyncio.Event().wait
    async with subscribed(receiver.port, timeout_seconds=0.2) as subscriber:
        with pytest.raises(NotDelivered, match=r"no answer: nothing within 0\.2 s"):
            await subscriber.deliver(delivery(EVENT))


async def test_a_connection_is_used_again_unless_an_answer_is_long(receiver: WebhookReceiver) -> None:
    async with subscribed(receiver.port) as subscriber:
        receiver.answer = lambda _: Answer(200, body=b"x" * 65_536)
        for _ in range(3):
            await subscriber.deliver(delivery(EVENT))
        assert receiver.connections == 1
        receiver.answer = lambda _: Answer(200, body=b"x" * 50_000_000)
        for _ in range(2):
            await subscriber.deliver(delivery(EVENT))
        assert (receiver.connections, len(receiver.posts)) == (2, 5)


async def test_no_more_calls_are_made_at_once_than_concurrency(receiver: WebhookReceiver) -> None:
    together, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        if len(receiver.posts) == 2:
            together.set()
        await go_on.wait()

    receiver.before_answer = hold
    async with subscribed(receiver.port, concurrency=2) as subscriber, asyncio.timeout(10):
        assert subscriber.concurrency == 2
        calls = [asyncio.create_task(subscriber.deliver(delivery(EVENT))) for _ in range(3)]
        await together.wait()
        assert len(receiver.posts) == 2
        go_on.set()
        await asyncio.gather(*calls)
    assert receiver.connections == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("Tue, 14 Nov 2023 22:15:30 GMT", 29.5),
        ("Tue, 14 Nov 2000 22:15:30 GMT", 0.0),
        ("", None),
        ("-1", None),
        ("soon", None),
        ("\u0661", None),
    ],
)
def test_both_forms_of_retry_after_are_read(text: str, seconds: float | None) -> None:
    """RFC 9110 10.2.3."""
    assert retry_after_seconds(text, NOW) == seconds


# -- whom it trusts ----------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path, require_peer: Callable[[str, object], None]) -> Path:
    """A certificate of 127.0.0.1 that nobody signed, with its key."""
    require_peer("openssl", shutil.which("openssl"))
    path = tmp_path / "server.pem"
    subprocess.run(
        shlex.split(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
            "-subj /CN=test -addext subjectAltName=IP:127.0.0.1 "
            f"-keyout {path} -out {tmp_path}/certificate.pem"
        ),
        check=True,
        capture_output=True,
    )
    with path.open("ab") as file:
        file.write((tmp_path / "certificate.pem").read_bytes())
    return path


async def test_a_certificate_is_verified_and_ca_file_says_whom_to_trust(certificate: Path) -> None:
    receiver = WebhookReceiver()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with receiver.listening(tls=tls) as port:
        async with subscribed(port, "https") as subscriber:
            with pytest.raises(DestinationDown, match=r"(?i)certificate verify failed"):
                await subscriber.deliver(delivery(EVENT))
        assert receiver.posts == []
        async with subscribed(port, "https", ca_file=certificate) as subscriber:
            await subscriber.deliver(delivery(EVENT))
    assert len(receiver.posts) == 1


def test_a_ca_file_without_certificates_is_a_wrong_setting(tmp_path: Path) -> None:
    for path, problem in ((tmp_path / "none.pem", "No such file"), (tmp_path / "empty.pem", "")):
        if not problem:
            path.write_bytes(b"")
        with pytest.raises(ConfigurationError, match=f"webhook hook: ca_file {path} has no certificates"):
            WebhookSubscriber(WebhookRule("hook", "https://example.org", ca_file=path))


def test_without_httpx_a_webhook_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ConfigurationError) as raised:
        WebhookSubscriber(WebhookRule("hook", "https://example.org"))
    assert str(raised.value) == f"webhook hook: {MISSING_EXTRA}"


async def test_no_proxy_of_the_environment_is_asked(
    receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = WebhookReceiver()
    async with proxy.listening() as port:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "")
        async with subscribed(receiver.port) as subscriber:
            await subscriber.deliver(delivery(EVENT))
    assert (len(receiver.posts), proxy.connections) == (1, 0)


# -- what it is about --------------------------------------------------------------------------------------


def wanted(*events: LoggedEvent, **rule: Any) -> list[bool]:
    subscriber = WebhookSubscriber(WebhookRule("hook", "https://example.org", **rule))
    assert subscriber.name == "webhook:hook"
    return [subscriber.wants(event) for event in events]


def test_it_wants_the_kinds_and_what_the_filter_means() -> None:
    events = (
        of_association(EventKind.ASSOCIATION_ACCEPTED),
        of_association(EventKind.ASSOCIATION_ENDED),
        EVENT,
        settled("1.2.3"),
    )
    assert wanted(*events) == [True] * 4
    assert wanted(*events, kinds=frozenset({EventKind.OBJECT_STORED})) == [False, False, True, False]
    scanner = ObjectFilter(calling_ae_titles=("SCANNER",))
    assert wanted(*events, filter=scanner) == [True, True, True, False]
    for about_objects in (ObjectFilter(sop_classes=("medical",)), ObjectFilter(modalities=("*",))):
        assert wanted(*events, filter=about_objects) == [False, False, True, False]
