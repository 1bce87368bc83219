"""From rules to subscribers: what is made of them, and what a reload keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import ConfigurationError
from scp_server.observability.measures import Measures
from scp_server.pipeline.builtin.forward import ForwardSubscriber
from scp_server.pipeline.builtin.webhook import WebhookSubscriber
from scp_server.pipeline.deliveries import EventKind
from scp_server.pipeline.sending import Source
from scp_server.protocol.message import Priority
from scp_server.runtime.rules import Rules
from scp_server.settings import Settings
from scp_server.testing.archive import Archive
from scp_server.testing.fake_sender import FakeDestinations
from scp_server.testing.objects import ct_image
from scp_server.testing.webhook_receiver import WebhookReceiver
from tests.unit.pipeline.events import delivery, stored

REMOTES = (
    {"ae_title": "PACS", "host": "h", "port": 104},
    {"ae_title": "BELT", "host": "h", "port": 105, "max_associations": 2},
)


def settings(**sections: Any) -> Settings:
    return Settings(**{"remotes": REMOTES, **sections})


@pytest.fixture
async def rules(tmp_path: Path) -> AsyncIterator[Rules]:
    async with Archive.at(tmp_path).opened() as (storage, index):
        rules = Rules(Source(storage), index, FakeDestinations(), Measures())
        yield rules
        await rules.close()


async def test_each_remote_of_a_forward_rule_has_a_subscriber_of_its_own(rules: Rules) -> None:
    made = rules.prepare(
        settings(
            forward=[
                {"name": "a", "to": ["PACS", "BELT"], "modalities": ["CT"]},
                {"name": "b", "to": ["BELT"], "priority": "high"},
            ]
        )
    )
    assert list(made) == ["forward:a:PACS", "forward:a:BELT", "forward:b:BELT"]
    for subscriber in made.values():
        assert isinstance(subscriber, ForwardSubscriber)
    assert [each.concurrency for each in made.values()] == [4, 2, 2]
    found = [each.rule for each in made.values() if isinstance(each, ForwardSubscriber)]
    assert [rule.priority for rule in found] == [Priority.MEDIUM, Priority.MEDIUM, Priority.HIGH]
    assert [rule.filter.modalities for rule in found] == [("CT",), ("CT",), ()]
    assert rules.subscribers == {}


async def test_a_webhook_rule_becomes_a_subscriber(rules: Rules, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key\n")
    made = rules.prepare(
        settings(
            listen={"ae_title": "MY ARCHIVE"},
            webhook=[
                {"name": "a", "url": "https://example.org/a", "secret_file": secret},
                {"name": "b", "url": "http://localhost:1/b", "kinds": ["study.settled"], "concurrency": 7},
            ],
        )
    )
    first, second = made.values()
    assert isinstance(first, WebhookSubscriber)
    assert isinstance(second, WebhookSubscriber)
    assert (first.name, first.rule.url, first.rule.secret) == ("webhook:a", "https://example.org/a", b"key")
    assert first.rule.kinds == frozenset(EventKind)
    assert second.rule.kinds == frozenset({EventKind.STUDY_SETTLED})
    assert first.rule.source == "urn:scp-server:MY%20ARCHIVE"
    assert (second.rule.secret, second.concurrency) == (None, 7)
    for each in (first, second):
        await each.close()


async def test_what_a_reload_leaves_as_it_is_stays_the_same(rules: Rules) -> None:
    before = settings(
        forward=[{"name": "a", "to": ["PACS", "BELT"]}, {"name": "b", "to": ["PACS"]}],
        webhook=[{"name": "w", "url": "https://example.org"}, {"name": "v", "url": "https://example.org"}],
    )
    rules.take(rules.prepare(before))
    former = rules.subscribers
    faster = ({**REMOTES[0]}, {**REMOTES[1], "max_associations": 9})
    rules.take(
        rules.prepare(
            settings(
                remotes=faster,
                forward=[{"name": "a", "to": ["PACS", "BELT"]}],
                webhook=[
                    {"name": "w", "url": "https://example.org"},
                    {"name": "v", "url": "https://example.org", "concurrency": 1},
                ],
            )
        )
    )
    assert list(rules.subscribers) == ["forward:a:PACS", "forward:a:BELT", "webhook:w", "webhook:v"]
    same = [name for name, each in rules.subscribers.items() if former[name] is each]
    assert same == ["forward:a:PACS", "webhook:w"]
    assert rules.subscribers["forward:a:BELT"].concurrency == 9


async def test_a_rule_that_cannot_be_made_changes_nothing(rules: Rules, tmp_path: Path) -> None:
    rules.take(rules.prepare(settings(forward=[{"name": "a", "to": ["PACS"]}])))
    former = rules.subscribers
    with pytest.raises(ConfigurationError, match=r"webhook w: secret_file .*none cannot be read"):
        rules.prepare(
            settings(webhook=[{"name": "w", "url": "https://e.org", "secret_file": tmp_path / "none"}])
        )
    assert rules.subscribers is former


async def test_what_is_not_in_force_any_more_is_closed_once_its_calls_have_ended(rules: Rules) -> None:
    receiver, answer, called = WebhookReceiver(), asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        called.set()
        await answer.wait()

    receiver.before_answer = hold
    async with receiver.listening() as port, asyncio.timeout(10):
        url = f"http://127.0.0.1:{port}/"
        rules.take(rules.prepare(settings(webhook=[{"name": "w", "url": url}])))
        subscriber = rules.subscribers["webhook:w"]
        call = asyncio.create_task(subscriber.deliver(delivery(stored(ct_image(), "objects/1"))))
        await called.wait()
        rules.take({})
        closing = asyncio.create_task(rules.close())
        answer.set()
        await call
        await closing
        with pytest.raises(RuntimeError, match="closed"):
            await subscriber.deliver(delivery(stored(ct_image(), "objects/1")))
