"""Where a service sends objects, without a network: what was sent, and answers of the test's choice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from scp_server.errors import AssociationError, AssociationLost, ConnectFailed, LocalProtocolError
from scp_server.interfaces import AcceptedContext, StoreOutcome
from scp_server.protocol.items import MAX_PRESENTATION_CONTEXTS
from scp_server.protocol.message import Priority

Answer = StoreOutcome | int | AssociationError
"""What becomes of a C-STORE: an outcome, a status alone, or the end of the association."""


@dataclass(frozen=True, slots=True)
class SentStore:
    """One C-STORE that was sent whole."""

    context: AcceptedContext
    sop_class_uid: str
    sop_instance_uid: str
    dataset: bytes = field(repr=False)
    priority: int
    move_originator: tuple[str, int] | None


class FakeSender:
    """A `Sender` over given contexts.

    `answers` are taken in order; when they are used up, every C-STORE is a success. `answer_by_instance`
    comes first. After an AssociationError the association is gone: further C-STOREs raise AssociationLost.
    `before_answer` is awaited once a data set has been taken whole, so that a test can hold an answer back
    (`before_answer = event.wait`), cancel or look meanwhile.
    """

    def __init__(
        self,
        contexts: Iterable[AcceptedContext] = (),
        answers: Iterable[Answer] = (),
        *,
        answer_by_instance: Mapping[str, Answer] | None = None,
    ) -> None:
        self.contexts = tuple(contexts)
        self.answers = list(answers)
        self.answer_by_instance = dict(answer_by_instance or {})
        self.before_answer: Callable[[], Awaitable[object]] | None = None
        self.sent: list[SentStore] = []
        """In order, those too that were answered with a failure."""
        self.alive = True
        self._turn = asyncio.Lock()

    def contexts_for(self, sop_class_uid: str) -> tuple[AcceptedContext, ...]:
        """See `Sender.contexts_for`."""
        found = (context for context in self.contexts if context.abstract_syntax == sop_class_uid)
        return tuple(sorted(found, key=lambda context: context.context_id))

    async def store(
        self,
        context: AcceptedContext,
        *,
        sop_class_uid: str,
        sop_instance_uid: str,
        dataset: AsyncIterable[bytes],
        priority: int = Priority.MEDIUM,
        move_originator: tuple[str, int] | None = None,
    ) -> StoreOutcome:
        """See `Sender.store`."""
        async with self._turn:
            if context not in self.contexts:
                raise LocalProtocolError(f"presentation context {context.context_id} was not accepted")
            pieces: list[bytes] = []
            try:
                if not self.alive:
                    raise AssociationLost("the association has ended")
                async for piece in dataset:
                    pieces.append(bytes(piece))
                    await asyncio.sleep(0)
                whole = SentStore(
                    context, sop_class_uid, sop_instance_uid, b"".join(pieces), priority, move_originator
                )
                self.sent.append(whole)
                if self.before_answer is not None:
                    await self.before_answer()
                return self._answer(sop_instance_uid)
            except BaseException:
                # As on the wire: half a message, or an answer nobody waits for, ends the association.
                self.alive = self.alive and not pieces
                raise

    def _answer(self, sop_instance_uid: str) -> StoreOutcome:
        answer = self.answer_by_instance.get(sop_instance_uid)
        if answer is None:
            answer = self.answers.pop(0) if self.answers else StoreOutcome(0x0000)
        if isinstance(answer, AssociationError):
            self.alive = False
            raise answer
        return StoreOutcome(answer) if isinstance(answer, int) else answer


@dataclass(slots=True)
class FakeRemote:
    """One destination: which contexts it accepts, and what it answers."""

    accepts: Callable[[str, str], bool] = lambda _sop_class, _transfer_syntax: True
    answers: list[Answer] = field(default_factory=list)
    """Shared by all its associations, in the order in which they take them."""
    answer_by_instance: dict[str, Answer] = field(default_factory=dict)
    transfer_syntaxes: tuple[str, ...] = ()
    """What it may be sent in; when empty, anything."""
    refusal: AssociationError | None = None
    """Raised by whoever asks for an association."""
    before_answer: Callable[[], Awaitable[object]] | None = None
    senders: list[FakeSender] = field(default_factory=list)
    """Every association there was."""
    ends: list[str] = field(default_factory=list)
    """How those ended that did: `clean`, or the name of the exception."""

    @property
    def sent(self) -> list[SentStore]:
        """What was sent on all associations, one after another."""
        return [store for sender in self.senders for store in sender.sent]


class FakeDestinations:
    """`Destinations` with remotes by AE title. `asked` has the title and contexts of every request."""

    def __init__(self, remotes: Mapping[str, FakeRemote] | None = None) -> None:
        self.remotes = dict(remotes or {})
        self.asked: list[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]]] = []

    def is_known(self, ae_title: str) -> bool:
        """See `Destinations.is_known`."""
        return ae_title in self.remotes

    def transfer_syntaxes_for(self, ae_title: str, stored: str, targets: Sequence[str]) -> tuple[str, ...]:
        """See `Destinations.transfer_syntaxes_for`."""
        only = self.remotes[ae_title].transfer_syntaxes if ae_title in self.remotes else ()
        return tuple(syntax for syntax in (stored, *targets) if not only or syntax in only)

    @asynccontextmanager
    async def send_to(
        self, ae_title: str, contexts: Sequence[tuple[str, Sequence[str]]]
    ) -> AsyncIterator[FakeSender]:
        """See `Destinations.send_to`."""
        pairs = [(sop_class, syntax) for sop_class, syntaxes in contexts for syntax in syntaxes]
        if len(pairs) > MAX_PRESENTATION_CONTEXTS:
            raise LocalProtocolError(f"{len(pairs)} presentation contexts are more than an association has")
        self.asked.append((ae_title, tuple((uid, tuple(syntaxes)) for uid, syntaxes in contexts)))
        await asyncio.sleep(0)
        remote = self.remotes.get(ae_title)
        if remote is None:
            raise ConnectFailed(f"{ae_title} is not configured")
        if remote.refusal is not None:
            raise remote.refusal
        accepted = [
            AcceptedContext(2 * number + 1, sop_class, syntax)
            for number, (sop_class, syntax) in enumerate(pairs)
            if remote.accepts(sop_class, syntax)
        ]
        sender = FakeSender(accepted, answer_by_instance=remote.answer_by_instance)
        sender.answers = remote.answers
        sender.before_answer = remote.before_answer
        remote.senders.append(sender)
        try:
            yield sender
        except BaseException as error:
            remote.ends.append(type(error).__name__)
            raise
        remote.ends.append("clean")
