"""Drives one run under one claim: asks `decide`, carries out what is not under way yet, writes what came of it, asks again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tenure.database.connect import ControlDatabase
from tenure.errors import ServerUnreachable
from tenure.work import effects, steps
from tenure.work import events as e
from tenure.work.claims import Claim, complete
from tenure.work.decide import Attempt, Doing, End, Expand, Halt, Mend, Restore, Verify, Wait, Write, decide
from tenure.work.hands import Hands
from tenure.work.journal import Journal
from tenure.work.keeper import Keeper
from tenure.work.lease import Lease
from tenure.work.minds import Minds, RegisteredMinds
from tenure.work.patience import PatientHands
from tenure.work.state import RunState, fold
from tenure.work.steps import Office

SUSPEND_AFTER_S = 30.0
"""A wait longer than this, with nothing under way, holds no process: the run is given back to the queue."""
NEWS_S = 60.0
"""At most so long between two looks at the state; everything known wakes the driver sooner."""
CHORES_S = 10.0
"""How long an ending run waits for what nobody needs to be finished."""

_SPENT_TODAY = """
    select coalesce(sum((coalesce(body->'thought'->'usage', body->'data'->'new')->>'cost_usd')::numeric), 0) as usd
    from journal join runs on runs.id = journal.run_id
    where runs.agent = %s and (journal.kind = 'thinking' or journal.kind = 'reported' and body->>'what' = 'usage')
      and journal.fence is not null -- else a fork copied it
      and journal.at >= date_trunc('day', now() at time zone 'utc') at time zone 'utc'
"""

_DO: dict[type[Doing], Callable[[Office, Any], Coroutine[Any, Any, None]]] = {
    Attempt: steps.attempt,
    Verify: steps.verify,
    Expand: steps.expand,
    Mend: steps.mend,
    Restore: steps.restore,
}


@dataclass(eq=False)
class _Write:
    """What somebody wants to be in the journal. `error` is why it is not there, or may not be."""

    events: tuple[e.AnyEvent, ...]
    tried: bool = False
    error: Exception | None = None


class Driver:
    """Use once. `drive` may be cancelled at any point: what the journal says is all that the next driver needs."""

    def __init__(
        self,
        database: ControlDatabase,
        hands: Hands,
        claim: Claim,
        lease: Lease,
        worker: str,
        minds: Minds | None = None,
    ) -> None:
        self._database = database
        self._claim = claim
        self._lease = lease
        self._worker = worker
        self._minds = minds or RegisteredMinds()
        self._journal = Journal(database, claim.run_id, claim.fence)
        self._state = RunState(claim.run_id)
        self._writing = asyncio.Lock()
        self._to_write: list[_Write] = []
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._hands = PatientHands(hands, lease.check)
        self._keeper = Keeper(self._hands, frozenset())

    async def drive(self) -> None:
        """Returns when the run is over, parked or suspended, and the claim given back. Raises `LeaseLost`, `ServerUnreachable`
        when the control database goes away, and whatever a bug raises; then everything under way is let go."""
        self._state = fold(self._claim.run_id, await self._journal.load())
        self._lease.seen_seq = self._state.seq
        state = self._state
        if state.parked and state.park_until is not None and state.outcome is None and state.plan is not None:
            if datetime.now(UTC) < state.park_until:
                if await self._journal.suspend(state.park_until, seen_seq=state.seq):
                    return
                await self._catch_up()
        elif state.plan is None or state.outcome is not None or state.parked:
            await self._let_go()  # cancelled while it was queued, or parked under a claim before this one
            return
        inherited = frozenset(node.id for node in self._state.nodes.values() if node.phase.active)
        self._keeper = Keeper(self._hands, inherited)
        try:
            await self._append(e.RunClaimed(worker=self._worker, attempt=self._claim.attempt))
            for key in self._state.leftover:
                self._later(effects.forget(self._hands, self._state.agent, key))
            while not await self._go_on():
                pass
        finally:
            await _cancel({*self._under_way.values(), *self._chores})

    async def _go_on(self) -> bool:
        """One round: decides and begins. True when the driver is done with the run."""
        await self._hear()
        until: datetime | None = None
        for action in decide(self._state, datetime.now(UTC), random.random()):
            match action:
                case Write():
                    await self._append(*action.events)
                    return False
                case Halt():
                    await _cancel({*self._under_way.values()})
                    self._under_way.clear()
                    await steps.halt(self._office(), action.commands)
                    return await self._end(e.RunCancelled())
                case End():
                    if not self._under_way:
                        return await self._end(action.event)
                case Wait():
                    until = action.until
                case Restore():
                    await self._let_go_but(action.node)
                    self._begin(action)
                case Attempt() | Verify() | Expand() | Mend():
                    self._begin(action)
        pause_s = NEWS_S if until is None else max(0.0, (until - datetime.now(UTC)).total_seconds())
        if not self._under_way and until is not None and pause_s > SUSPEND_AFTER_S:
            await self._finish_chores()
            async with self._writing:
                if await self._journal.suspend(until, seen_seq=self._state.seq):
                    return True
                await self._catch_up()
            return False
        await self._wait(min(pause_s, NEWS_S))
        return False

    def _begin(self, action: Doing) -> None:
        if action.node not in self._under_way:
            doing = _DO[type(action)](self._office(), self._state.nodes[action.node])
            self._under_way[action.node] = asyncio.create_task(doing, name=f"{self._claim.run_id} {action.node}")

    def _office(self) -> Office:
        return Office(self._hands, self._state, self._append, self._later, self._keeper, self._minds, self._spent_today)

    async def _spent_today(self, agent: str) -> float:
        """Dollars, as far as they are known."""
        row = await self._database.fetch_one(_SPENT_TODAY, (agent,))
        return float(row["usd"]) if row else 0.0

    async def _let_go_but(self, node: str) -> None:
        """Nobody acts, or writes, for another step any more; what they wrote last is known."""
        others = {name: task for name, task in self._under_way.items() if name != node}
        if others:
            await _cancel({*others.values()})
            self._under_way = {name: task for name, task in self._under_way.items() if name not in others}
            async with self._writing:
                await self._catch_up()

    async def _wait(self, timeout_s: float) -> None:
        """Until something under way ends, somebody else writes, or the time is over. Raises what a task raised."""
        news = asyncio.create_task(self._lease.news.wait())
        try:
            await asyncio.wait(
                {*self._under_way.values(), news}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            news.cancel()
        for node, task in list(self._under_way.items()):
            if task.done():
                del self._under_way[node]
                task.result()

    async def _append(self, *events: e.AnyEvent) -> None:
        """Writes them. What several want to write while another write is under way goes together into the next one."""
        write = _Write(events)
        self._to_write.append(write)
        try:
            async with self._writing:
                if not write.tried:
                    await self._write_all()
        finally:
            if write in self._to_write:  # cancelled before its turn
                self._to_write.remove(write)
        if write.error is not None:
            raise write.error

    async def _write_all(self) -> None:
        writes, self._to_write = self._to_write, []
        error: Exception | None = ServerUnreachable("A write into the journal was broken off.")
        try:
            self._lease.check()
            records = await self._journal.append_all([write.events for write in writes])
            if records[0].seq != self._state.seq + 1:  # the owner wrote in between
                await self._catch_up(before=records[0].seq)
                self._lease.news.set()
            self._apply(records)
            error = None
        except Exception as failed:  # noqa: BLE001 - each of them raises it
            error = failed
        finally:
            for write in writes:
                write.tried, write.error = True, error

    async def _hear(self) -> None:
        if self._lease.news.is_set():
            self._lease.news.clear()
            async with self._writing:
                await self._catch_up()

    async def _catch_up(self, before: int | None = None) -> None:
        missed = await self._journal.load(self._state.seq)
        self._apply([record for record in missed if before is None or record.seq < before])

    def _apply(self, records: list[e.Record]) -> None:
        for record in records:
            self._state.apply(record)
        self._lease.seen_seq = self._state.seq

    async def _end(self, event: e.RunSucceeded | e.RunFailed | e.RunCancelled | e.Parked) -> bool:
        """False when somebody else wrote just now: that has to be looked at first."""
        await self._finish_chores()
        async with self._writing:
            self._lease.check()
            summary = "" if isinstance(event, e.Parked) else self._state.summary()
            if await self._journal.end(event, self._state.agent, summary, seen_seq=self._state.seq):
                return True
            await self._catch_up()
            return False

    async def _let_go(self) -> None:
        async with self._database.transaction() as connection:
            await complete(connection, self._claim.fence)

    def _later(self, chore: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _finish_chores(self) -> None:
        if self._chores:
            await asyncio.wait(self._chores, timeout=CHORES_S)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
