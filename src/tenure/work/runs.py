"""The `Runs` service of the server: what the owner does with runs. Workers do the rest.

The owner writes into a journal without a claim: each statement here says itself in which states it may, and tells the
run's worker, if there is one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from psycopg.rows import DictRow

from tenure import wire
from tenure.brains.base import Brain
from tenure.brains.playbook import PlaybookBrain, parse
from tenure.database.connect import Connection, ControlDatabase
from tenure.errors import Conflict, InvalidArgument, TooLarge
from tenure.work import costs, owner
from tenure.work import events as e
from tenure.work.answers import check_open
from tenure.work.forks import ForkPoint, fork_point
from tenure.work.goals import first_plan
from tenure.work.journal import load
from tenure.work.plan import PLAN_BYTES_MAX, Check, Plan, Work
from tenure.work.state import RunState, fold
from tenure.work.subgoals import OPEN_SUBGOALS_MAX, subgoal_id
from tenure.work.thoughts import BrainSettings
from tenure.work.views import event_view, question_view, run_view

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
        self,
        *,
        agent: str,
        goal: str,
        playbook: str,
        playbook_name: str | None,
        inputs: Mapping[str, Any],
        settings: BrainSettings | None = None,
        key: str | None = None,
    ) -> wire.Run:
        """Queues a run carried by a playbook, whose failing steps the brain of `settings` may mend. Once per agent and `key`: the
        second call returns the first one's run. Raises `PlaybookError` (names file, line and field), `TooLarge`,
        `InvalidArgument`. The caller has checked that the agent exists."""
        brain = PlaybookBrain(playbook, playbook_name or "playbook")
        return await self.create_with(
            brain, agent=agent, goal=goal, playbook_name=playbook_name, inputs=inputs, settings=settings, key=key
        )

    async def create_with(
        self,
        brain: Brain,
        *,
        agent: str,
        goal: str,
        inputs: Mapping[str, Any],
        playbook_name: str | None = None,
        settings: BrainSettings | None = None,
        key: str | None = None,
    ) -> wire.Run:
        """Queues a run that `brain` plans. With `settings`, a brain that thinks helps where steps fail."""
        _check_goal(goal, inputs)
        plan = _checked(brain.plan(goal, dict(inputs)))
        thoughtful = next((step.id for step in plan.steps if isinstance(step.effect, Work)), None)
        if settings is None and thoughtful is not None:
            raise InvalidArgument(
                f"The step {thoughtful!r} is work for a brain, and {agent} has none.",
                hint=f"`tenure brain set {agent} --model PROVIDER:MODEL` gives it one.",
            )
        created = e.RunCreated(
            agent=agent,
            goal=goal,
            brain=brain.name,
            playbook_name=playbook_name,
            inputs=plan.inputs,
            settings=settings,
        )
        run_id = _new_id() if key is None else subgoal_id(agent, key)
        return await self._begin(run_id, created, plan)

    async def create_thinking(
        self,
        *,
        agent: str,
        goal: str,
        settings: BrainSettings,
        inputs: Mapping[str, Any] | None = None,
        accept: tuple[Check, ...] = (),
        parent: str | None = None,
        key: str | None = None,
    ) -> wire.Run:
        """Queues a run whose brain finds the way to the goal; it is done when the checks of its plan, and those of `accept`,
        hold. Once per agent and `key`: the second call returns the first one's run. Raises `InvalidArgument`, `TooLarge`."""
        _check_goal(goal, inputs or {})
        created = e.RunCreated(
            agent=agent,
            goal=goal,
            brain=settings.brain,
            inputs=dict(inputs or {}),
            settings=settings,
            accept=accept,
            parent=parent,
        )
        run_id = _new_id() if key is None else subgoal_id(agent, key)
        return await self._begin(run_id, created, _checked(first_plan(settings, goal, accept)))

    async def _begin(self, run_id: str, created: e.RunCreated, plan: Plan) -> wire.Run:
        async with self._database.transaction() as connection:
            added = await connection.execute(
                "insert into runs (id, agent, goal, brain) values (%s, %s, %s, %s) on conflict (id) do nothing",
                (run_id, created.agent, created.goal.replace("\x00", "\ufffd"), created.brain),
            )
            if added.rowcount:  # else somebody asked with the same key
                await owner.write(connection, run_id, created, e.Planned(plan=plan))
                await owner.queue(connection, run_id)
        return await self.get(run_id)

    async def create_subgoal(
        self, *, agent: str, goal: str, key: str, settings: BrainSettings | None = None, parent: str | None = None
    ) -> wire.Run:
        """Queues a run of the agent's own brain (`settings`), once per key: asked again, it is the run of the first time. Raises
        `NotFound` for an unknown `parent`, `InvalidArgument`, `TooLarge`, `Conflict` when the agent has too many runs already."""
        run_id = subgoal_id(agent, key)
        if await self._database.fetch_one("select 1 from runs where id = %s", (run_id,)) is None:
            if parent is not None:
                await self._row(parent)
            if len(await self.open_of(agent)) >= OPEN_SUBGOALS_MAX:
                raise Conflict(
                    f"{agent} has {OPEN_SUBGOALS_MAX} runs that are not over.",
                    hint="Wait for some of them to end, or cancel them.",
                )
            return await self.create_thinking(
                agent=agent, goal=goal, settings=settings or BrainSettings(), parent=parent, key=key
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
            row = await owner.lock(connection, run_id)
            if row["state"] in ("queued", "parked"):
                await owner.write(connection, run_id, e.RunCancelled(), state="cancelled", over=True)
                await owner.tell_parent(connection, run_id, "cancelled")
            elif row["state"] == "running":
                await owner.write(connection, run_id, e.CancelRequested())
            else:
                raise Conflict(
                    f"{run_id} is over: it {row['state']}.", hint="Only a run that is not over can be cancelled."
                )
            await owner.wake(connection, run_id)
        return await self.get(run_id)

    async def resume(self, run_id: str, answer: str | None = None) -> wire.Run:
        """Answers a parked run and queues it again: `retry` (also the default), `accept`, `skip`, `fail`, or a text for the
        steps. Raises `NotFound`, and `Conflict` unless it is parked."""
        async with self._database.transaction() as connection:
            row = await owner.lock(connection, run_id)
            if row["state"] != "parked":
                raise Conflict(
                    f"{run_id} is {row['state']}, not parked.",
                    hint="Only a parked run waits for an answer; `tenure run` starts a new one.",
                )
            state = await self._state(connection, run_id)
            if state.asked and not state.asks_owner:
                names = ", ".join(sorted(state.asked))
                raise Conflict(
                    f"{run_id} waits for answers to questions of its own: {names}.",
                    hint="`tenure answer QUESTION TEXT` answers one.",
                )
            await owner.write(connection, run_id, e.Answered(answer=(answer or "").strip() or "retry"), state="queued")
            await owner.queue_again(connection, run_id)
        return await self.get(run_id)

    async def answer(self, question: str, answer: str, *, by: str) -> wire.Run:
        """Answers one question of a run, once, whoever else tries, and lets the run go on. Raises `NotFound`, `InvalidArgument`
        for neither yes nor no where that is the question, and `Conflict` when it was answered (says by whom), nobody had
        answered in time, or its run is over or went on without it."""
        run_id = question.partition(".")[0]
        text = answer.strip()
        if not text:
            raise InvalidArgument("An answer has some text in it.")
        async with self._database.transaction() as connection:
            row = await owner.lock(connection, run_id)
            check_open(await self._state(connection, run_id), row["state"], question, text, datetime.now(UTC))
            parked = row["state"] == "parked"
            event = e.QuestionAnswered(question=question, answer=text, by=by)
            await owner.write(connection, run_id, event, state="queued" if parked else None)
            if parked:
                await owner.queue_again(connection, run_id)
            else:
                await owner.wake(connection, run_id)
        return await self.get(run_id)

    async def questions(self, *, agent: str | None = None, limit: int = 200) -> list[wire.Question]:
        """All that are open, the oldest run first."""
        rows = await self._database.fetch(
            """
            select distinct runs.id, runs.agent, runs.created_at from runs join journal on journal.run_id = runs.id
            where runs.state in ('queued', 'running', 'parked') and journal.kind = 'asked'
              and (%(agent)s::text is null or runs.agent = %(agent)s)
            order by runs.created_at, runs.id limit %(limit)s
            """,
            {"agent": agent, "limit": min(limit, RUNS_MAX)},
        )
        found: list[wire.Question] = []
        for row in rows:
            state = fold(row["id"], await load(self._database, row["id"]))
            for node in state.nodes.values():
                found += [question_view(row["id"], row["agent"], node.id, one) for one in node.questions.values()]
        return found

    async def costs(self, by: wire.CostsBy, *, agent: str | None = None, limit: int = 200) -> list[wire.Cost]:
        """What brains took, see `tenure.work.costs`."""
        return await costs.spent(self._database, by, agent=agent, limit=limit)

    async def _state(self, connection: Connection, run_id: str) -> RunState:
        """Folded from what this transaction sees."""
        found = await connection.execute(
            "select seq, at, kind, body from journal where run_id = %s order by seq", (run_id,)
        )
        rows = await found.fetchall()
        return fold(run_id, [e.Record(row["seq"], row["at"], e.decode(row["kind"], row["body"])) for row in rows])

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
            await owner.write(connection, run_id, point.forked(new_agent))
            await owner.queue(connection, run_id)
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
        return owner.there(row, run_id)


def _new_id() -> str:
    return f"run_{secrets.token_hex(_ID_BYTES)}"


def _check_goal(goal: str, inputs: Mapping[str, Any]) -> None:
    if not goal.strip():
        raise InvalidArgument("A run needs a goal.")
    if len(goal) > wire.GOAL_CHARS_MAX:
        raise TooLarge(f"The goal has {len(goal)} characters; {wire.GOAL_CHARS_MAX} are allowed.")
    if len(json.dumps(dict(inputs), default=str)) > INPUTS_BYTES_MAX:
        raise TooLarge(f"The inputs are larger than {INPUTS_BYTES_MAX} bytes.", hint="Put large data into a file.")


def _checked(plan: Plan) -> Plan:
    if len(e.encode(e.Planned(plan=plan))) > PLAN_BYTES_MAX:
        raise TooLarge(f"The plan is larger than {PLAN_BYTES_MAX} bytes.")
    return plan


def _plan_anew(text: str, file: str, goal: str, origin: Plan | None, inputs: Mapping[str, Any]) -> Plan:
    known = parse(text, file).inputs
    kept = {name: value for name, value in (origin.inputs if origin else {}).items() if name in known}
    return _checked(PlaybookBrain(text, file).plan(goal, kept | dict(inputs)))
