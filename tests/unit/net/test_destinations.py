"""The pool of associations to remotes: which one is given to whom, and when there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from scp_server.errors import (
    AssociationError,
    AssociationLost,
    AssociationRejected,
    ConnectFailed,
    LocalProtocolError,
)
from scp_server.net.destinations import DestinationPool, DestinationsConfig
from scp_server.net.outbound import OutboundAssociation, Remote
from scp_server.net.requestor_connection import RequestorConfig, RequestorConnection
from scp_server.observability.measures import OutboundMeasures
from scp_server.testing.acceptor_scene import settle
from scp_server.testing.clock import ManualClock

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
WANTED = [(CT, [EXPLICIT])]
PACS = Remote("PACS", "192.0.2.9", 104, max_associations=2)
Logs = list[dict[str, Any]]


class StagedAssociation(OutboundAssociation):
    """An association without a socket: the stage says whether it opens, and when it has closed."""

    stage: Stage

    def __init__(self, remote: Remote, pairs: Iterable[Any], title: str, config: RequestorConfig) -> None:
        super().__init__(remote, pairs, title, config)
        self.made_of = RequestorConnection(config)
        self.calling_ae_title = title
        self.ended = ""

    @property
    def connection(self) -> RequestorConnection:
        return self.made_of

    async def open(self) -> None:
        self.stage.attempts.append(self)
        await self.stage.may_open.wait()
        if self.stage.refusal is not None:
            raise self.stage.refusal
        self.stage.opened.append(self)

    async def close(self, *, abort: bool) -> None:
        self.ended = "aborted" if abort else "released"
        await self.stage.may_close.wait()
        self.stage.opened.remove(self)

    def lose(self) -> None:
        """It ends by itself."""
        self.made_of.error = AssociationLost("gone")
        self.made_of.finished.set_result(None)


class Stage:
    """The remotes' side, and the pool."""

    def __init__(self) -> None:
        self.attempts: list[StagedAssociation] = []
        self.opened: list[StagedAssociation] = []
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.refusal: AssociationError | None = None
        self.measures = OutboundMeasures()
        self.clock = ManualClock()
        self.pools: list[DestinationPool] = []

    def pool(self, *remotes: Remote, **config: Any) -> DestinationPool:
        """A pool with these remotes, in which nothing idle expires unless `config` says so."""
        associate = type("Staged", (StagedAssociation,), {"stage": self})
        pool = DestinationPool(
            configuration(*remotes, **config), self.measures, self.clock, associate=associate
        )
        self.pools.append(pool)
        return pool


def configuration(*remotes: Remote, **config: Any) -> DestinationsConfig:
    return DestinationsConfig(
        "ARCHIVE",
        {remote.ae_title: remote for remote in remotes or (PACS,)},
        **{"idle_seconds": 1_000.0, **config},
    )


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Whatever happens, at its end everything is closed and counted as such."""
    stage = Stage()
    yield stage
    stage.may_open.set()
    stage.may_close.set()
    for pool in stage.pools:
        await pool.close()
    assert stage.opened == []
    assert (stage.measures.used, stage.measures.idle) == (0, 0)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


class Use:
    """Takes an association in a task of its own, and holds it until told."""

    def __init__(
        self,
        pool: DestinationPool,
        ae_title: str = "PACS",
        contexts: Sequence[tuple[str, Sequence[str]]] = WANTED,
    ) -> None:
        self._done = asyncio.Event()
        self.association: StagedAssociation | None = None
        self.task = asyncio.ensure_future(self._hold(pool, ae_title, contexts))

    async def _hold(
        self, pool: DestinationPool, ae_title: str, contexts: Sequence[tuple[str, Sequence[str]]]
    ) -> None:
        async with pool.send_to(ae_title, contexts) as association:
            assert isinstance(association, StagedAssociation)
            self.association = association
            await self._done.wait()

    @property
    def waits(self) -> bool:
        """It has been given none yet."""
        return self.association is None

    async def end(self) -> None:
        self._done.set()
        await self.task
        await settle()


async def using(pool: DestinationPool, **how: Any) -> Use:
    use = Use(pool, **how)
    await settle()
    return use


# -- one is used again --------------------------------------------------------------------------------------


async def test_an_association_is_used_again_where_everything_wanted_was_proposed(stage: Stage) -> None:
    pool = stage.pool()
    first = await using(pool, contexts=[(CT, [EXPLICIT, IMPLICIT]), (MR, [EXPLICIT])])
    await first.end()
    second = await using(pool, contexts=[(CT, [IMPLICIT])])
    assert second.association is first.association
    assert (stage.measures.opened, stage.measures.reused, stage.measures.used) == (1, 1, 1)
    await second.end()
    other = await using(pool, contexts=[(MR, [IMPLICIT])])
    assert other.association is not first.association
    await other.end()
    assert (stage.measures.opened, stage.measures.idle) == (2, 2)


async def test_one_in_use_is_nobody_elses(stage: Stage) -> None:
    pool = stage.pool()
    first, second = await using(pool), await using(pool)
    assert first.association is not second.association
    await first.end()
    await second.end()


async def test_each_class_is_proposed_with_each_of_its_syntaxes_by_our_title(stage: Stage) -> None:
    use = await using(stage.pool(), contexts=[(CT, [EXPLICIT, IMPLICIT]), (CT, [EXPLICIT])])
    assert use.association is not None
    assert use.association.pairs == {(CT, EXPLICIT), (CT, IMPLICIT)}
    assert use.association.calling_ae_title == "ARCHIVE"
    await use.end()


async def test_more_than_128_contexts_are_refused_before_anything_is_dialled(stage: Stage) -> None:
    pool = stage.pool()
    for count, error in ((128, None), (129, LocalProtocolError)):
        contexts = [(CT, [f"1.2.{number}" for number in range(count)])]
        use = await using(pool, contexts=contexts)
        if error is None:
            await use.end()
        else:
            with pytest.raises(error, match="129 presentation contexts"):
                await use.task
    assert len(stage.attempts) == 1


async def test_one_that_ended_while_idle_is_not_used_again(stage: Stage) -> None:
    pool = stage.pool()
    first = await using(pool)
    await first.end()
    assert first.association is not None
    first.association.lose()
    assert stage.measures.idle == 1
    await settle()
    assert (stage.measures.idle, stage.opened) == (0, [])
    second = await using(pool)
    assert second.association is not first.association
    await second.end()


async def test_one_that_ended_a_moment_ago_is_not_given_away(stage: Stage) -> None:
    pool = stage.pool()
    first = await using(pool)
    await first.end()
    assert first.association is not None
    first.association.lose()
    async with pool.send_to("PACS", WANTED) as association:
        assert association is not first.association


async def test_one_that_ended_in_use_is_not_kept(stage: Stage) -> None:
    use = await using(stage.pool())
    assert use.association is not None
    use.association.lose()
    await use.end()
    assert stage.opened == []
    assert stage.measures.idle == 0


async def test_after_an_error_it_is_aborted(stage: Stage) -> None:
    use = await using(stage.pool())
    use.task.cancel()
    with suppress(asyncio.CancelledError):
        await use.task
    await settle()
    assert use.association is not None
    assert use.association.ended == "aborted"
    assert stage.opened == []


async def test_leaving_does_not_wait_for_the_remote_to_close(stage: Stage) -> None:
    pool = stage.pool(idle_seconds=0.0)
    stage.may_close.clear()
    use = await using(pool)
    await asyncio.wait_for(use.end(), 1)
    assert len(stage.opened) == 1


@pytest.mark.parametrize("idle_seconds", [0.0, 0.02])
async def test_one_that_is_idle_for_too_long_is_released(stage: Stage, idle_seconds: float) -> None:
    use = await using(stage.pool(idle_seconds=idle_seconds))
    await use.end()
    async with asyncio.timeout(5):
        while stage.opened:
            await asyncio.sleep(0.005)
    assert use.association is not None
    assert use.association.ended == "released"
    assert stage.measures.idle == 0


async def test_the_idle_time_begins_anew_with_each_use(stage: Stage) -> None:
    pool = stage.pool()
    first = await using(pool)
    await first.end()
    second = await using(pool)
    assert stage.measures.idle == 0
    assert first.association is not None
    pool._release(pool._pools["PACS"], first.association)  # the timer of the first time, had it been late
    await settle()
    assert first.association.ended == ""
    await second.end()


# -- caps ---------------------------------------------------------------------------------------------------


async def test_above_the_cap_of_a_remote_one_waits_for_another_to_be_given_back(stage: Stage) -> None:
    pool = stage.pool()
    first, second, third, fourth = [await using(pool) for _ in range(4)]
    assert (third.association, fourth.association) == (None, None)
    await first.end()
    assert third.association is first.association
    assert fourth.association is None
    await second.end()
    assert fourth.association is second.association
    await third.end()
    await fourth.end()
    assert stage.measures.opened == 2


async def test_above_the_cap_of_all_remotes_one_waits_and_those_of_another_count(stage: Stage) -> None:
    pool = stage.pool(PACS, replace(PACS, ae_title="OTHER"), max_associations=1)
    first = await using(pool)
    second = await using(pool, ae_title="OTHER")
    assert second.waits
    await first.end()
    assert second.association is not None
    assert second.association.remote.ae_title == "OTHER"
    assert first.association is not None
    assert first.association.ended == "released"
    await second.end()


async def test_an_idle_one_makes_room_for_contexts_that_it_lacks(stage: Stage) -> None:
    pool = stage.pool(replace(PACS, max_associations=1))
    first = await using(pool)
    await first.end()
    stage.may_close.clear()
    second = await using(pool, contexts=[(MR, [EXPLICIT])])
    assert first.association is not None
    assert first.association.ended == "released"
    assert second.waits, "the remote still counts the one that closes"
    stage.may_close.set()
    await settle()
    assert second.association is not None
    await second.end()


async def test_only_as_many_idle_ones_are_released_as_wait(stage: Stage) -> None:
    pool = stage.pool()
    first, second = await using(pool), await using(pool)
    await first.end()
    await second.end()
    stage.may_close.clear()
    third = await using(pool, contexts=[(MR, [EXPLICIT])])
    assert stage.measures.idle == 1
    stage.may_close.set()
    await settle()
    assert third.association is not None
    await third.end()


async def test_who_is_cancelled_while_waiting_or_connecting_takes_no_place(stage: Stage) -> None:
    pool = stage.pool(replace(PACS, max_associations=1))
    stage.may_open.clear()
    connecting, waiting = await using(pool), await using(pool)
    for use in (waiting, connecting):
        use.task.cancel()
        with suppress(asyncio.CancelledError):
            await use.task
    stage.may_open.set()
    third = await using(pool)
    assert third.association is not None
    await third.end()
    assert stage.measures.failed == 0


# -- remotes that are down ----------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [ConnectFailed("refused"), AssociationRejected(1, 1, 7)])
async def test_a_remote_that_is_down_is_not_tried_again_at_once(
    stage: Stage, refusal: AssociationError, logs: Logs
) -> None:
    pool = stage.pool(retry_seconds=5.0)
    stage.may_open.clear()
    stage.refusal = refusal
    uses = [await using(pool) for _ in range(10)]
    assert len(stage.attempts) == 2, "no more than the cap"
    stage.may_open.set()
    await settle()
    failures = await asyncio.gather(*(use.task for use in uses), return_exceptions=True)
    assert len(stage.attempts) == 2
    assert [type(failure) for failure in failures[:2]] == [type(refusal)] * 2
    assert {str(failure) for failure in failures[2:]} == {f"not tried again so soon after: {refusal}"}
    late = await using(pool)
    with pytest.raises(ConnectFailed, match="so soon"):
        await late.task
    assert stage.measures.failed == 2
    assert [line["ae_title"] for line in logs if line["event"] == "remote.unreachable"] == ["PACS", "PACS"]
    stage.refusal = None
    stage.clock.advance(5.0)
    again = await using(pool)
    assert again.association is not None
    await again.end()


async def test_another_remote_is_not_down_with_it(stage: Stage) -> None:
    pool = stage.pool(PACS, replace(PACS, ae_title="OTHER"))
    stage.refusal = ConnectFailed("refused")
    failed = await using(pool)
    with pytest.raises(ConnectFailed):
        await failed.task
    stage.refusal = None
    other = await using(pool, ae_title="OTHER")
    assert other.association is not None
    await other.end()


# -- remotes that take few at once --------------------------------------------------------------------------


async def test_who_is_refused_beside_another_waits_for_its_turn(stage: Stage, logs: Logs) -> None:
    """It is not down, for it serves us: it takes no more at once."""
    pool = stage.pool()
    first = await using(pool)
    stage.refusal = AssociationRejected(2, 3, 2)
    second, third = await using(pool), await using(pool)
    assert second.waits
    assert len(stage.attempts) == 2, "what the second was told the third knows"
    assert stage.measures.waiting == 2
    await first.end()
    assert second.association is first.association
    await second.end()
    assert third.association is first.association
    await third.end()
    (line,) = [line for line in logs if line["event"].startswith("remote.") and "error" in line]
    assert (line["event"], line["ae_title"], line["associations"]) == ("remote.full", "PACS", 1)
    assert (stage.measures.failed, stage.measures.waiting) == (0, 0)


async def test_that_it_takes_no_more_is_believed_for_a_while_only(stage: Stage) -> None:
    pool = stage.pool(retry_seconds=5.0)
    first = await using(pool)
    stage.refusal = AssociationRejected(2, 3, 2)
    refused = await using(pool)
    stage.refusal = None
    stage.clock.advance(5.0)
    other = await using(pool)
    assert other.association is not None
    assert refused.waits
    for use in (first, other, refused):
        await use.end()


async def test_who_is_refused_beside_an_idle_one_it_cannot_use_is_served_after_it(stage: Stage) -> None:
    pool = stage.pool()
    idle = await using(pool)
    await idle.end()
    stage.refusal = AssociationRejected(2, 3, 2)
    stage.may_close.clear()
    other = await using(pool, contexts=[(MR, [EXPLICIT])])
    assert idle.association is not None
    assert idle.association.ended == "released"
    stage.refusal = None
    stage.may_close.set()
    await settle()
    assert other.association is not None
    await other.end()


async def test_refused_alone_at_last_it_fails(stage: Stage) -> None:
    pool = stage.pool()
    first = await using(pool)
    stage.refusal = AssociationRejected(1, 1, 7)
    second = await using(pool, contexts=[(MR, [EXPLICIT])])
    assert second.waits
    await first.end()
    with pytest.raises(AssociationRejected):
        await second.task
    assert stage.measures.failed == 1


async def test_who_is_not_answered_takes_what_is_given_back_meanwhile(stage: Stage) -> None:
    pool = stage.pool()
    first = await using(pool)
    stage.may_open.clear()
    second = await using(pool)
    assert second.waits
    await first.end()
    assert second.association is first.association
    assert len(stage.attempts) == 2
    await second.end()


async def test_what_is_idle_and_of_no_use_is_released_for_who_is_not_answered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scp_server.net.destinations._ANSWER_SECONDS", 0.01)
    pool = stage.pool()
    first = await using(pool)
    stage.may_open.clear()
    second = await using(pool, contexts=[(MR, [EXPLICIT])])
    await first.end()
    assert first.association is not None
    async with asyncio.timeout(5):
        while first.association.ended != "released":
            await asyncio.sleep(0.005)
    stage.may_open.set()
    await settle()
    assert second.association is not None
    await second.end()


async def test_an_answer_that_comes_as_it_is_given_up_leaves_nothing_open(stage: Stage) -> None:
    pool = stage.pool()
    stage.may_open.clear()
    use = await using(pool)
    stage.may_open.set()
    await asyncio.sleep(0)  # The answer is there, and nobody has looked yet.
    use.task.cancel()
    with suppress(asyncio.CancelledError):
        await use.task
    await settle()
    assert stage.opened == []
    assert pool._open == 0


# -- what may be dialled ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ae_title", ["NOBODY", "", "pacs", "PACS ", "192.0.2.9:104"])
async def test_what_is_not_configured_is_never_dialled(stage: Stage, ae_title: str) -> None:
    pool = stage.pool()
    assert pool.is_known("PACS")
    assert not pool.is_known(ae_title)
    use = await using(pool, ae_title=ae_title)
    with pytest.raises(ConnectFailed, match="no such remote"):
        await use.task
    assert stage.attempts == []


async def test_other_settings_hold_for_the_next_and_end_what_is_idle(stage: Stage) -> None:
    pool = stage.pool(PACS, replace(PACS, ae_title="OTHER"), replace(PACS, ae_title="GONE"))
    idle = {title: await using(pool, ae_title=title) for title in ("PACS", "OTHER", "GONE")}
    busy = await using(pool, ae_title="GONE")
    for use in idle.values():
        await use.end()
    pool.reconfigure(configuration(PACS, replace(PACS, ae_title="OTHER", port=105)))
    await settle()
    ends = {title: use.association.ended for title, use in idle.items() if use.association is not None}
    assert ends == {"PACS": "", "OTHER": "released", "GONE": "released"}
    assert not pool.is_known("GONE")
    same = await using(pool)
    assert same.association is idle["PACS"].association
    moved = await using(pool, ae_title="OTHER")
    assert moved.association is not None
    assert moved.association.remote.port == 105
    assert busy.association is not None
    assert busy.association.ended == ""
    await busy.end()
    assert busy.association.ended == "released"
    await same.end()
    await moved.end()


async def test_who_waits_for_a_remote_that_is_taken_away_hears_of_it(stage: Stage) -> None:
    pool = stage.pool(replace(PACS, max_associations=1))
    first, second = await using(pool), await using(pool)
    pool.reconfigure(DestinationsConfig("ARCHIVE"))
    with pytest.raises(ConnectFailed, match="no such remote"):
        await second.task
    await first.end()


# -- the end ------------------------------------------------------------------------------------------------


async def test_closing_releases_what_is_idle_aborts_what_is_used_and_refuses_who_waits(stage: Stage) -> None:
    pool = stage.pool(replace(PACS, max_associations=1), replace(PACS, ae_title="OTHER"))
    idle = await using(pool, ae_title="OTHER")
    await idle.end()
    used, waiting = await using(pool), await using(pool)
    assert used.association is not None
    aborted: list[str] = []
    used.association.made_of.abort_association = (  # type: ignore[method-assign]
        lambda text, **_: aborted.append(text)
    )
    closing = asyncio.ensure_future(pool.close())
    await settle()
    assert idle.association is not None
    assert idle.association.ended == "released"
    assert aborted == ["the server stops"]
    with pytest.raises(ConnectFailed, match="the server stops"):
        await waiting.task
    assert not closing.done()
    await used.end()
    await asyncio.wait_for(closing, 5)
    late = await using(pool)
    with pytest.raises(ConnectFailed, match="the server stops"):
        await late.task


async def test_closing_does_not_wait_for_ever(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, logs: Logs
) -> None:
    monkeypatch.setattr("scp_server.net.destinations._CLOSE_SECONDS", 0.02)
    pool = stage.pool()
    use = await using(pool)
    await use.end()
    stage.may_close.clear()
    await asyncio.wait_for(pool.close(), 5)
    assert [line["associations"] for line in logs if line["event"] == "remote.stuck"] == [1]
    stage.opened.clear()


async def test_what_opens_while_it_closes_is_given_to_nobody(stage: Stage) -> None:
    pool = stage.pool()
    stage.may_open.clear()
    use = await using(pool)
    closing = asyncio.ensure_future(pool.close())
    await settle()
    stage.may_open.set()
    with pytest.raises(ConnectFailed, match="the server stops"):
        await use.task
    await asyncio.wait_for(closing, 5)


# -- what it is offered -----------------------------------------------------------------------------------

JPEG, LONG = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.1.64"
DICOS = replace(PACS, ae_title="BELT", application_context_name="1.2.840.10008.3.1.1.1.3")


@pytest.mark.parametrize(
    ("remote", "stored", "targets", "offered"),
    [
        (PACS, EXPLICIT, (), (EXPLICIT,)),
        (PACS, EXPLICIT, (IMPLICIT, LONG), (EXPLICIT, IMPLICIT)),
        (PACS, JPEG, (EXPLICIT, IMPLICIT, LONG), (JPEG, EXPLICIT, IMPLICIT)),
        (DICOS, JPEG, (EXPLICIT, IMPLICIT, LONG), (JPEG, EXPLICIT)),
        (DICOS, LONG, (EXPLICIT, IMPLICIT), (LONG, EXPLICIT)),
        (DICOS, IMPLICIT, (EXPLICIT, LONG), (EXPLICIT,)),
        (DICOS, IMPLICIT, (), ()),
        (replace(DICOS, transfer_syntaxes=(IMPLICIT,)), EXPLICIT, (IMPLICIT, LONG), (IMPLICIT,)),
        (replace(PACS, transfer_syntaxes=(LONG, JPEG)), EXPLICIT, (IMPLICIT, LONG), (LONG,)),
        (replace(PACS, transfer_syntaxes=(LONG, JPEG)), JPEG, (EXPLICIT, IMPLICIT), (JPEG,)),
        (replace(PACS, transfer_syntaxes=(JPEG,)), EXPLICIT, (IMPLICIT,), ()),
    ],
)
async def test_a_remote_is_offered_what_its_entry_allows(
    stage: Stage, remote: Remote, stored: str, targets: tuple[str, ...], offered: tuple[str, ...]
) -> None:
    """The stored transfer syntax first; DICOS remotes implicit VR only where their entry says so."""
    pool = stage.pool(remote)
    assert pool.transfer_syntaxes_for(remote.ae_title, stored, targets) == offered
    assert pool.transfer_syntaxes_for("UNKNOWN", stored, targets) == (stored, *targets)
