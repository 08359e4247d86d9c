"""Runs and an inbox in memory, for tests of what stands on them. Nothing carries the runs: a test does, by `finish`."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from tenure import wire
from tenure.errors import Conflict, InvalidArgument, NotFound, PlaybookError
from tenure.work.forks import ForkPoint
from tenure.work.plan import Check
from tenure.work.snapshots import StepSnapshot
from tenure.work.subgoals import subgoal_id
from tenure.work.thoughts import BrainSettings


class FakeRuns:
    """See `tenure.server.services.Runs`."""

    def __init__(self) -> None:
        self._runs: dict[str, wire.Run] = {}
        self._events: dict[str, list[wire.RunEvent]] = {}
        self._answered: dict[str, str] = {}

    def _get(self, run_id: str) -> wire.Run:
        if run_id not in self._runs:
            raise NotFound(f"There is no run {run_id[:60]!r}.", hint="`tenure runs list` shows those there are.")
        return self._runs[run_id]

    def write(self, run_id: str, kind: str, step: str | None = None, **data: Any) -> None:
        """Appends an event to the run's journal."""
        events = self._events[run_id]
        events.append(wire.RunEvent(seq=len(events) + 1, kind=kind, at=datetime.now(UTC), step=step, data=data))

    def finish(self, run_id: str, state: wire.RunState) -> wire.Run:
        """The run is now in `state`, and its journal says so."""
        self.write(run_id, f"run_{state}")
        self._runs[run_id] = self._get(run_id).model_copy(update={"state": state})
        return self._runs[run_id]

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
        del inputs, settings
        _read(playbook, playbook_name or "playbook")
        return self._begin(agent, goal, key)

    async def create_thinking(
        self,
        *,
        agent: str,
        goal: str,
        settings: BrainSettings,
        inputs: Mapping[str, Any] | None = None,
        accept: tuple[Check, ...] = (),
        key: str | None = None,
    ) -> wire.Run:
        given = {"inputs": dict(inputs or {}), "accept": [check.model_dump(mode="json") for check in accept]}
        return self._begin(agent, goal, key, settings=settings.model_dump(mode="json"), **given)

    def _begin(self, agent: str, goal: str, key: str | None = None, **data: Any) -> wire.Run:
        run_id = f"run_{secrets.token_hex(6)}" if key is None else subgoal_id(agent, key)
        if run_id in self._runs:
            return self._runs[run_id]
        self._runs[run_id] = wire.Run(
            id=run_id, agent=agent, goal=goal, state=wire.RunState.QUEUED, created_at=datetime.now(UTC)
        )
        self._events[run_id] = []
        self.write(run_id, "run_created", goal=goal, **data)
        return self._runs[run_id]

    async def create_subgoal(
        self, *, agent: str, goal: str, key: str, settings: BrainSettings | None = None, parent: str | None = None
    ) -> wire.Run:
        del settings
        run_id = subgoal_id(agent, key)
        if parent is not None:
            self._get(parent)
        if run_id not in self._runs:
            self._runs[run_id] = wire.Run(
                id=run_id, agent=agent, goal=goal, state=wire.RunState.QUEUED, created_at=datetime.now(UTC)
            )
            self._events[run_id] = []
            self.write(run_id, "run_created", goal=goal, parent=parent)
        return self._runs[run_id]

    async def list(self, *, agent: str | None = None, state: str | None = None, limit: int = 200) -> list[wire.Run]:
        found = [run for run in self._runs.values() if agent in (None, run.agent) and state in (None, run.state)]
        return sorted(found, key=lambda run: run.created_at, reverse=True)[:limit]

    async def get(self, run_id: str) -> wire.Run:
        return self._get(run_id)

    def keep(self, run_id: str, step: str, snapshot: str) -> None:
        """As if the run had taken this snapshot after that step."""
        taken = wire.StepSnapshot(id=snapshot, before=False, verified=True, seq=len(self._events[run_id]))
        done = wire.RunStep(id=step, state=wire.StepState.SUCCEEDED, attempts=1, snapshots=[taken])
        run = self._get(run_id)
        self._runs[run_id] = run.model_copy(update={"steps": [*run.steps, done]})

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
        """Only after steps. A playbook is read, and not used."""
        if playbook is not None:
            _read(playbook, playbook_name or "playbook")
        elif inputs:
            raise InvalidArgument("Other inputs need a playbook that reads them.")
        run = self._get(run_id)
        for step in run.steps:
            for one in step.snapshots:
                if step.id == at and not before and one.id in there:
                    taken = StepSnapshot(one.id, at, 1, one.before, one.verified, one.seq)
                    return ForkPoint(run_id, run.agent, taken, at, tuple(range(1, one.seq + 1)), None)
        raise NotFound(f"There is no snapshot of {at[:60]!r}.")

    async def fork(self, point: ForkPoint, new_agent: str) -> wire.Run:
        origin = self._get(point.run)
        run_id, forked = f"run_{secrets.token_hex(6)}", point.forked(new_agent)
        self._runs[run_id] = origin.model_copy(
            update={
                "id": run_id,
                "agent": new_agent,
                "state": wire.RunState.QUEUED,
                "origin": wire.RunOrigin.model_validate(forked),
            }
        )
        self._events[run_id] = self._events[point.run][: point.snapshot.seq]
        self.write(run_id, forked.kind, **forked.model_dump(mode="json", exclude={"kind"}))
        return self._runs[run_id]

    async def cancel(self, run_id: str) -> wire.Run:
        if self._get(run_id).state in (wire.RunState.SUCCEEDED, wire.RunState.FAILED, wire.RunState.CANCELLED):
            raise Conflict(f"The run {run_id} is over.")
        return self.finish(run_id, wire.RunState.CANCELLED)

    async def resume(self, run_id: str, answer: str | None) -> wire.Run:
        if self._get(run_id).state not in (wire.RunState.PARKED, wire.RunState.FAILED):
            raise Conflict(f"The run {run_id} does not wait for anybody.")
        self.write(run_id, "run_resumed", answer=answer)
        self._runs[run_id] = self._get(run_id).model_copy(update={"state": wire.RunState.QUEUED})
        return self._runs[run_id]

    def ask(self, run_id: str, text: str, **more: Any) -> wire.Question:
        """As if the run had asked a person, and were parked for it."""
        run = self._get(run_id)
        name = f"{run_id}.one.00000000.1:q{len(run.questions)}"
        question = wire.Question(id=name, run=run_id, agent=run.agent, step="one", text=text, **more)
        update = {"questions": [*run.questions, question], "state": wire.RunState.PARKED}
        self._runs[run_id] = run.model_copy(update=update)
        return question

    async def questions(self, *, agent: str | None = None, limit: int = 200) -> list[wire.Question]:
        found = [question for run in self._runs.values() for question in run.questions]
        return [question for question in found if agent in (None, question.agent)][:limit]

    async def answer(self, question: str, answer: str, *, by: str) -> wire.Run:
        run = self._get(question.partition(".")[0])
        if question in self._answered:
            raise Conflict(f"{question} was answered already, by {self._answered[question]}")
        if question not in [one.id for one in run.questions]:
            raise NotFound(f"{run.id} has no question {question[:60]!r}.")
        self._answered[question] = by
        self.write(run.id, "question_answered", question=question, answer=answer, by=by)
        left = [one for one in run.questions if one.id != question]
        self._runs[run.id] = run.model_copy(update={"questions": left, "state": wire.RunState.QUEUED})
        return self._runs[run.id]

    async def costs(self, by: wire.CostsBy, *, agent: str | None = None, limit: int = 200) -> list[wire.Cost]:
        """One that is always the same."""
        shown: dict[str, Any] = {"agent": {"agent": agent or "analyst"}, "model": {"model": "test:one"}}.get(by, {})
        return [wire.Cost(requests=2, input_tokens=1200, output_tokens=80, cost_usd=0.0125, **shown)][:limit]

    async def events(self, run_id: str, *, after: int = 0, limit: int = 500) -> list[wire.RunEvent]:
        self._get(run_id)
        return [event for event in self._events[run_id] if event.seq > after][:limit]


def _read(playbook: str, name: str) -> None:
    try:
        parsed = yaml.safe_load(playbook)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1 if mark else 1}"
        raise PlaybookError(f"{where}: is not valid YAML.") from error
    if not isinstance(parsed, dict) or "steps" not in parsed:
        raise PlaybookError(f"{name}:1: steps: is missing.")


class FakeInbox:
    """See `tenure.server.services.Inbox`."""

    def __init__(self) -> None:
        self._messages: dict[str, wire.Message] = {}
        self._by_key: dict[tuple[str | None, str], str] = {}

    async def list(self, *, unread: bool = False, agent: str | None = None, limit: int = 200) -> list[wire.Message]:
        found = [m for m in self._messages.values() if agent in (None, m.agent) and not (unread and m.read_at)]
        return found[::-1][:limit]

    async def create(
        self, *, agent: str | None, subject: str, body: str, key: str | None = None, run_id: str | None = None
    ) -> wire.Message:
        if key is not None and (agent, key) in self._by_key:
            return self._messages[self._by_key[agent, key]]
        message = wire.Message(
            id=f"msg_{secrets.token_hex(6)}",
            agent=agent,
            run_id=run_id,
            subject=subject,
            body=body,
            created_at=datetime.now(UTC),
        )
        self._messages[message.id] = message
        if key is not None:
            self._by_key[agent, key] = message.id
        return message

    async def count_unread(self, agent: str) -> int:
        return len(await self.list(unread=True, agent=agent, limit=len(self._messages)))

    async def get(self, message_id: str) -> wire.Message:
        if message_id not in self._messages:
            raise NotFound(f"There is no message {message_id[:60]!r}.")
        return self._messages[message_id]

    async def mark_read(self, message_id: str) -> wire.Message:
        message = await self.get(message_id)
        if message.read_at is None:
            self._messages[message_id] = message.model_copy(update={"read_at": datetime.now(UTC)})
        return self._messages[message_id]
