"""The `Runs` service of the server: what the owner does with runs. Workers do the rest.

The owner writes into a journal without a claim: each statement here says itself in which states it may, and tells the
run's worker, if there is one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from psycopg.rows import DictRow

from tenure import wire
from tenure.brains.base import Brain
from tenure.brains.playbook import PlaybookBrain, parse
from tenure.database.connect import Connection, ControlDatabase
from tenure.errors import Conflict, InvalidArgument, NotFound, TooLarge
from tenure.work import claims
from tenure.work import events as e
from tenure.work.forks import ForkPoint, fork_point
from tenure.work.journal import JOURNAL_CHANNEL, OWNER_CHANNEL, load
from tenure.work.plan import PLAN_BYTES_MAX, Plan
from tenure.work.state import fold
from tenure.work.subgoals import OPEN_SUBGOALS_MAX, ThinkingBrain, subgoal_id
from tenure.work.thoughts import BrainSettings
from tenure.work.views import event_view, run_view

RUNS_MAX = 500
"""Per listing."""
EVENTS_MAX = 1000
"""Per call."""
INPUTS_BYTES_MAX = 64 * 1024
_ID_BYTES = 6
_COLUMNS = "id, agent, goal, brain, state, question, created_at, started_at, finished_at"


class Runs:
    """On the control database alone: needs no worker, and no office awake."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def create(
        self, *, agent: str, goal: str, playbook: str, playbook_name: str | None, inputs: Mapping[str, Any]
    ) -> wire.Run:
        """Queues a run carried by a playbook. Raises `PlaybookError` (names file, line and field), `TooLarge`,
        `InvalidArgument`. The caller has checked that the agent exists."""
        brain = PlaybookBrain(playbook, playbook_name or "playbook")
        return await self.create_with(brain, agent=agent, goal=goal, playbook_name=playbook_name, inputs=inputs)

    async def create_with(
        self,
        brain: Brain,
        *,
        agent: str,
        goal: str,
        inputs: Mapping[str, Any],
        playbook_name: str | None = None,
        run_id: str | None = None,
        parent: str | None = None,
        settings: BrainSettings | None = None,
    ) -> wire.Run:
        """Queues a run that `brain` plans; a `run_id` that is known is the run that is there."""
        if not goal.strip():
            raise InvalidArgument("A run needs a goal.")
        if len(goal) > wire.GOAL_CHARS_MAX:
            raise TooLarge(f"The goal has {len(goal)} characters; {wire.GOAL_CHARS_MAX} are allowed.")
        if len(json.dumps(dict(inputs), default=str)) > INPUTS_BYTES_MAX:
            raise TooLarge(f"The inputs are larger than {INPUTS_BYTES_MAX} bytes.", hint="Put large data into a file.")
        plan = _checked(brain.plan(goal, dict(inputs)))
        run_id = run_id or _new_id()
        created = e.RunCreated(
            agent=agent,
            goal=goal,
            brain=brain.name,
            playbook_name=playbook_name,
            inputs=plan.inputs,
            settings=settings,
            parent=parent,
        )
        async with self._database.transaction() as connection:
            made = await connection.execute(
                "insert into runs (id, agent, goal, brain) values (%s, %s, %s, %s) on conflict (id) do nothing",
                (run_id, agent, goal.replace("\x00", "\ufffd"), brain.name),
            )
            if made.rowcount == 0:  # somebody asked with the same key at the same time
                return await self.get(run_id)
            await _write(connection, run_id, created)
            await _write(connection, run_id, e.Planned(plan=plan))
            await _queue(connection, run_id)
        return await self.get(run_id)

    async def create_subgoal(self, *, agent: str, goal: str, key: str, parent: str | None = None) -> wire.Run:
        """Queues a run of the agent's own brain, once per key: asked again, it is the run of the first time. Raises `NotFound`
        for an unknown `parent`, `InvalidArgument`, `TooLarge`, `Conflict` when the agent has too many runs already."""
        run_id = subgoal_id(agent, key)
        if await self._database.fetch_one("select 1 from runs where id = %s", (run_id,)) is None:
            if parent is not None:
                await self._row(parent)
            if len(await self.open_of(agent)) >= OPEN_SUBGOALS_MAX:
                raise Conflict(
                    f"{agent} has {OPEN_SUBGOALS_MAX} runs that are not over.",
                    hint="Wait for some of them to end, or cancel them.",
                )
            brain, settings = ThinkingBrain(), BrainSettings()
            return await self.create_with(
                brain, agent=agent, goal=goal, inputs={}, run_id=run_id, parent=parent, settings=settings
            )
        return await self.get(run_id)

    async def list(self, *, agent: str | None = None, state: str | None = None, limit: int = 200) -> list[wire.Run]:
        """Newest first."""
        rows = await self._database.fetch(
            f"""
            select {_COLUMNS} from runs
            where (%(agent)s::text is null or agent = %(agent)s) and (%(state)s::text is null or state = %(state)s)
            order by created_at desc, id limit %(limit)s
            """,
            {"agent": agent, "state": state, "limit": min(limit, RUNS_MAX)},
        )
        found = await self._database.fetch(
            "select run_id, seq, at, kind, body from journal where run_id = any(%s) order by run_id, seq",
            ([row["id"] for row in rows],),
        )
        records: dict[str, list[e.Record]] = {row["id"]: [] for row in rows}
        for entry in found:
            records[entry["run_id"]].append(e.Record(entry["seq"], entry["at"], e.decode(entry["kind"], entry["body"])))
        return [run_view(row, fold(row["id"], records[row["id"]])) for row in rows]

    async def get(self, run_id: str) -> wire.Run:
        """Raises `NotFound`."""
        row = await self._row(run_id)
        return run_view(row, fold(run_id, await load(self._database, run_id)))

    async def events(self, run_id: str, *, after: int = 0, limit: int = 500) -> list[wire.RunEvent]:
        """In order of `seq`, those with `seq > after`. Raises `NotFound`."""
        await self._row(run_id)
        return [event_view(r) for r in await load(self._database, run_id, after=after, limit=min(limit, EVENTS_MAX))]

    async def cancel(self, run_id: str) -> wire.Run:
        """A queued or parked run is cancelled at once, a running one when its worker has ended what runs. Raises `NotFound`,
        and `Conflict` when it is over."""
        async with self._database.transaction() as connection:
            row = await _locked(connection, run_id)
            if row["state"] in ("queued", "parked"):
                await _write(connection, run_id, e.RunCancelled(), state="cancelled", over=True)
            elif row["state"] == "running":
                await _write(connection, run_id, e.CancelRequested())
                await connection.execute("select pg_notify(%s, %s)", (OWNER_CHANNEL, run_id))
            else:
                raise Conflict(
                    f"{run_id} is over: it {row['state']}.", hint="Only a run that is not over can be cancelled."
                )
            await claims.wake_suspended(connection, run_id)
        return await self.get(run_id)

    async def resume(self, run_id: str, answer: str | None = None) -> wire.Run:
        """Answers a parked run and queues it again: `retry` (also the default), `accept`, `skip`, `fail`, or a text for the
        steps. Raises `NotFound`, and `Conflict` unless it is parked."""
        async with self._database.transaction() as connection:
            row = await _locked(connection, run_id)
            if row["state"] != "parked":
                raise Conflict(
                    f"{run_id} is {row['state']}, not parked.",
                    hint="Only a parked run waits for an answer; `tenure run` starts a new one.",
                )
            await _write(connection, run_id, e.Answered(answer=(answer or "").strip() or "retry"), state="queued")
            await _queue(connection, run_id)
        return await self.get(run_id)

    async def fork_point(
        self,
        run_id: str,
        at: str,
        *,
        there: Collection[str],
        before: bool | None = None,
        playbook: str | None = None,
        playbook_name: str | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> ForkPoint:
        """See `tenure.work.forks.fork_point`. `playbook` replaces the plan, with the origin's inputs where `inputs` has no
        others. Raises `PlaybookError`, too."""
        row = await self._row(run_id)
        records = await load(self._database, run_id)
        plan = None
        if playbook is not None:
            plan = _plan_anew(
                playbook, playbook_name or "playbook", row["goal"], fold(run_id, records).plan, inputs or {}
            )
        elif inputs:
            raise InvalidArgument("Other inputs need a playbook that reads them.", hint="Give the playbook, too.")
        return fork_point(run_id, records, at, there=there, before=before, plan=plan)

    async def fork(self, point: ForkPoint, new_agent: str) -> wire.Run:
        """Queues a run of `new_agent`, whose office is a clone of the point's snapshot: it goes on from there."""
        run_id = _new_id()
        async with self._database.transaction() as connection:
            await connection.execute(
                """
                insert into runs (id, agent, goal, brain, last_seq)
                select %s, %s, goal, brain, %s from runs where id = %s
                """,
                (run_id, new_agent, len(point.seqs), point.run),
            )
            await connection.execute(
                """
                insert into journal (run_id, seq, at, kind, body)
                select %s, row_number() over (order by seq), at, kind, body from journal
                where run_id = %s and seq = any(%s)
                """,
                (run_id, point.run, list(point.seqs)),
            )
            await _write(connection, run_id, point.forked(new_agent))
            await _queue(connection, run_id)
        return await self.get(run_id)

    async def open_of(self, agent: str) -> list[tuple[str, str, int]]:
        """(id, state, seq of its journal) of each run of the agent that is not over."""
        rows = await self._database.fetch(
            "select id, state, last_seq from runs where agent = %s and state in ('queued', 'running', 'parked') order by id",
            (agent,),
        )
        return [(row["id"], row["state"], row["last_seq"]) for row in rows]

    async def _row(self, run_id: str) -> DictRow:
        row = await self._database.fetch_one(f"select {_COLUMNS} from runs where id = %s", (run_id,))
        return _found(row, run_id)


def _new_id() -> str:
    return f"run_{secrets.token_hex(_ID_BYTES)}"


def _checked(plan: Plan) -> Plan:
    if len(e.encode(e.Planned(plan=plan))) > PLAN_BYTES_MAX:
        raise TooLarge(f"The plan is larger than {PLAN_BYTES_MAX} bytes.")
    return plan


def _plan_anew(text: str, file: str, goal: str, origin: Plan | None, inputs: Mapping[str, Any]) -> Plan:
    known = parse(text, file).inputs
    kept = {name: value for name, value in (origin.inputs if origin else {}).items() if name in known}
    return _checked(PlaybookBrain(text, file).plan(goal, kept | dict(inputs)))


async def _locked(connection: Connection, run_id: str) -> DictRow:
    found = await connection.execute("select id, state from runs where id = %s for update", (run_id,))
    return _found(await found.fetchone(), run_id)


def _found(row: DictRow | None, run_id: str) -> DictRow:
    if row is None:
        raise NotFound(f"There is no run {run_id[:60]!r}.", hint="`tenure runs list` shows them.")
    return row


async def _write(
    connection: Connection, run_id: str, event: e.AnyEvent, *, state: str | None = None, over: bool = False
) -> None:
    """Appends for the owner, who has locked the run's row (or just made it) in this transaction."""
    await connection.execute(
        """
        with run as (
            update runs set
                last_seq = last_seq + 1,
                state = coalesce(%(state)s, state),
                question = case when %(state)s::text is null then question end,
                finished_at = case when %(over)s then clock_timestamp() else finished_at end
            where id = %(run)s returning last_seq
        )
        insert into journal (run_id, seq, at, kind, body)
        select %(run)s, last_seq, clock_timestamp(), %(kind)s, %(body)s::jsonb from run
        """,
        {"run": run_id, "state": state, "over": over, "kind": event.kind, "body": e.encode(event)},
    )
    await connection.execute("select pg_notify(%s, %s)", (JOURNAL_CHANNEL, run_id))


async def _queue(connection: Connection, run_id: str) -> None:
    task_id = await claims.spawn(connection, run_id)
    await connection.execute("update runs set task_id = %s where id = %s", (task_id, run_id))
