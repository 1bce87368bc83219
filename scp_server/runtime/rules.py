"""From the rules of the settings to subscribers of the outbox, also when others come at a reload."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import quote

from scp_server.index.base import Index
from scp_server.interfaces import Destinations
from scp_server.observability.measures import Measures
from scp_server.pipeline.builtin.forward import ForwardRule, ForwardSubscriber
from scp_server.pipeline.builtin.webhook import WebhookRule, WebhookSubscriber
from scp_server.pipeline.deliveries import EventKind
from scp_server.pipeline.sending import Source
from scp_server.protocol.message import Priority
from scp_server.settings import Settings

RuleSubscriber = ForwardSubscriber | WebhookSubscriber
ByName = Mapping[str, RuleSubscriber]


class Rules:
    """The subscribers that rules make. Belongs to one event loop; `close` ends what they hold.

    `prepare` may fail and changes nothing; `take` cannot fail. A subscriber whose rule stays as it is stays
    the same one, with what it has learned and its connections.
    """

    def __init__(
        self, source: Source, index: Index, destinations: Destinations, measures: Measures | None = None
    ) -> None:
        self._source = source
        self._index = index
        self._destinations = destinations
        self._measures = measures or Measures()
        self.subscribers: ByName = {}
        """Those that are in force, by their names."""
        self._closing: set[asyncio.Task[None]] = set()

    def prepare(self, settings: Settings) -> ByName:
        """The subscribers that `settings` ask for. Raises ConfigurationError where one cannot be made."""
        rules: list[ForwardRule | WebhookRule] = [*forward_rules(settings), *webhook_rules(settings)]
        return {rule.subscription: self._known(rule) or self._made(rule) for rule in rules}

    def take(self, subscribers: ByName) -> None:
        """Let these be in force. Others are closed once nothing is under way on them."""
        former, self.subscribers = self.subscribers, subscribers
        for name, subscriber in former.items():
            if subscribers.get(name) is not subscriber:
                self._close(subscriber)

    async def close(self) -> None:
        """End what they hold, once nothing is under way on them."""
        self.take({})
        if self._closing:
            await asyncio.wait(self._closing)

    def _known(self, rule: ForwardRule | WebhookRule) -> RuleSubscriber | None:
        """The one in force, where its rule is the same."""
        known = self.subscribers.get(rule.subscription)
        return known if known is not None and known.rule == rule else None

    def _made(self, rule: ForwardRule | WebhookRule) -> RuleSubscriber:
        if isinstance(rule, WebhookRule):
            return WebhookSubscriber(rule, self._measures.webhook)
        return ForwardSubscriber(rule, self._source, self._index, self._destinations, self._measures.forward)

    def _close(self, subscriber: RuleSubscriber) -> None:
        if isinstance(subscriber, WebhookSubscriber):
            task = asyncio.create_task(subscriber.close(), name="rules.close")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def forward_rules(settings: Settings) -> list[ForwardRule]:
    """One for each remote of each `[[forward]]` table."""
    most = {remote.ae_title: remote.max_associations for remote in settings.remotes}
    return [
        ForwardRule(
            name=rule.name,
            ae_title=ae_title,
            filter=rule.object_filter,
            priority=Priority[rule.priority.upper()],
            concurrency=most[ae_title],
        )
        for rule in settings.forward
        for ae_title in rule.to
    ]


def webhook_rules(settings: Settings) -> list[WebhookRule]:
    """One for each `[[webhook]]` table. Raises ConfigurationError where a secret cannot be read."""
    source = f"urn:scp-server:{quote(settings.listen.ae_title, safe='')}"
    return [
        WebhookRule(
            name=rule.name,
            url=rule.url,
            kinds=frozenset(map(EventKind, rule.kinds)) or frozenset(EventKind),
            filter=rule.object_filter,
            secret=rule.signing_key,
            source=source,
            timeout_seconds=rule.timeout_seconds,
            concurrency=rule.concurrency,
            ca_file=rule.ca_file,
        )
        for rule in settings.webhook
    ]
