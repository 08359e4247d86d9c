"""Whatever a brain decides, in whatever order, and whatever fails: the run comes to an end or to a person, and its journal tells
the whole of it. Hypothesis plays brain, office, people and clock; the engine is the real one, on a journal in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.thinking import MODELS, check, propose, script, shell, work
from tenure.brains.base import Task
from tenure.errors import ContextTooLong, ModelError, TenureError, Unauthenticated
from tenure.testing.fake_hands import FakeHands
from tenure.testing.scripted_brain import GivenMinds
from tenure.work import events as e
from tenure.work.decide import Attempt, End, Halt, Mend, Verify, Wait, Write, decide
from tenure.work.effects import Blocked
from tenure.work.failures import Failure, FailureClass
from tenure.work.goals import first_plan
from tenure.work.hands import Hands
from tenure.work.keys import effect_key
from tenure.work.plan import Approval, Work
from tenure.work.state import Node, Phase, RunState, fold
from tenure.work.thoughts import (
    Ask,
    BrainSettings,
    Budget,
    CallResult,
    Decision,
    Finish,
    Propose,
    Purpose,
    Say,
    Thought,
    Usage,
)
from tenure.work.thoughts import Wait as Rest
from tenure.work.toolbox import CallOrder, ToolSpec
from tenure.work.working import Desk, converse

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
ROUNDS_MAX = 4000
ANSWERS_MAX = 12
"""After so many a person has had enough, and cancels."""
SETTINGS = BrainSettings(
    brain="scripted", models=MODELS, approve=("danger*",), budget=Budget(requests=120, turns_without_progress=9)
)
POOL = (
    script("a", "true", undo="undo a"),
    script("b", "true", "a", undo="undo b"),
    script("c", "true", "a"),
    work("d", "true"),
    work("e", "true", "d", undo="undo e"),
    script("f", "true", approval=Approval()),
    work("unknown", "true", "nowhere"),
)


@dataclass
class World:
    """Thinks, acts, fails and answers as hypothesis draws it."""

    data: st.DataObject
    now: datetime = BEGAN
    journal: list[e.Record] = field(default_factory=list[e.Record])
    state: RunState = field(default_factory=lambda: RunState("run_x"))
    answers: int = 0
    outage: timedelta = timedelta(0)
    """From the beginning on no model answers for so long."""
    failed: int = 0

    def draw(self, *choices: object) -> object:
        return self.data.draw(st.sampled_from(choices))

    # --- the journal -----------------------------------------------------------------------------------------------------------
    async def append(self, *events: e.AnyEvent) -> None:
        for event in events:
            record = e.Record(len(self.journal) + 1, self.now, e.decode(event.kind, event.model_dump(exclude={"kind"})))
            self.journal.append(record)
            self.state.apply(record)

    # --- the brain -------------------------------------------------------------------------------------------------------------
    async def think(self, task: Task) -> Thought:
        if self.now < BEGAN + self.outage:
            self.failed += 1
            raise ModelError("overloaded")
        error = self.draw(None, None, None, None, None, "model", "context", "key")
        if error is not None:
            raise self._error(str(error))
        usage = Usage(input_tokens=10, output_tokens=1)
        return Thought(decision=self._decision(task), model=task.model, usage=usage)

    def _error(self, kind: str) -> TenureError:
        match kind:
            case "model":
                return ModelError("overloaded", retry_after_s=self.data.draw(st.sampled_from([None, 3.0])))
            case "context":
                return ContextTooLong("too long")
            case _:
                return Unauthenticated("the key is wrong")

    def _decision(self, task: Task) -> Decision:
        ways = ["tool", "finish", "finish", "ask", "wait", "say", "danger", "plan"]
        way = str(self.draw("plan", "plan", "plan", "say", "ask", "tool") if task.purpose.plans else self.draw(*ways))
        match way:
            case "plan":
                return self._proposal()
            case "finish":
                return Finish(summary="I did")
            case "ask":
                expires = self.data.draw(st.sampled_from([None, 60.0]))
                return Ask(text="what?", expires_after_s=expires)
            case "wait":
                return Rest(for_s=30)
            case "say":
                return Say()
            case "danger":
                call = shell("x").calls[0]
                return shell("x").model_copy(update={"calls": (call, call.model_copy(update={"tool": "dangerous"}))})
            case _:
                return shell(str(self.draw("x", "y", "z")))

    def _proposal(self) -> Propose:
        chosen = self.data.draw(st.lists(st.sampled_from(POOL), min_size=1, max_size=5, unique_by=lambda step: step.id))
        proposal = propose(*chosen)
        concurrency = self.data.draw(st.sampled_from([1, 8]))
        return proposal.model_copy(update={"plan": proposal.plan.model_copy(update={"concurrency": concurrency})})

    # --- the office ------------------------------------------------------------------------------------------------------------
    def specs(self, purpose: Purpose) -> tuple[ToolSpec, ...]:
        return ()

    async def call(self, hands: Hands, order: CallOrder) -> CallResult | Blocked:
        if self.draw(False, False, False, True):
            return Blocked(Failure(kind=FailureClass.DOOR, message="no answer"))
        return CallResult(ok=bool(self.draw(True, False)), output=str(self.draw("1", "2")))

    async def attempt(self, node: Node, hands: Hands) -> None:
        fresh = node.phase is Phase.PENDING
        if fresh:
            key = effect_key("run_x", node.id, node.attempt + 1)
            await self.append(e.StepStarted(node=node.id, attempt=node.attempt + 1, key=key))
        if isinstance(node.step.effect, Work):
            minds = GivenMinds(self, self)
            desk = Desk(hands, self.state, self.append, minds, self._spent_today, lambda chore: chore.close())
            await converse(desk, node, node.step.effect, fresh=fresh)
            return
        if self.draw(True, True, True, False):
            if node.step.verify:
                await self.append(e.EffectDone(node=node.id, attempt=node.attempt, result=e.Result()))
            else:
                await self.append(e.StepSucceeded(node=node.id, attempt=node.attempt))
            return
        failure = Failure(kind=FailureClass.COMMAND, message="exit 1")
        await self.append(e.StepFailed(node=node.id, attempt=node.attempt, failure=failure))

    async def _spent_today(self, agent: str) -> float:
        return 0.0

    async def verify(self, node: Node) -> None:
        if self.draw(True, True, False):
            await self.append(e.StepSucceeded(node=node.id, attempt=node.attempt, result=node.result))
            return
        failure = Failure(kind=FailureClass.VERIFICATION, message="not so")
        await self.append(e.StepFailed(node=node.id, attempt=node.attempt, failure=failure))

    # --- people ----------------------------------------------------------------------------------------------------------------
    async def answer(self, parked: e.Parked) -> None:
        await self.append(parked)
        self.answers += 1
        if self.answers > ANSWERS_MAX:
            await self.append(e.RunCancelled())
            return
        if parked.until is not None and self.draw(True, False):  # nobody answers in time
            self.now = parked.until
        elif parked.questions:
            chosen = str(self.draw(*parked.questions))
            await self.append(e.QuestionAnswered(question=chosen, answer=str(self.draw("yes", "no", "so")), by="ana"))
        else:
            await self.append(e.Answered(answer=str(self.draw("retry", "retry", "skip", "fail"))))
        await self.append(e.RunClaimed(worker="w", attempt=1))


async def play(world: World) -> None:
    hands: Hands = FakeHands.__new__(FakeHands)  # nobody touches it: the tools are the world's own
    accept = check("true") if world.draw(True, False) else ()
    await world.append(
        e.RunCreated(agent="analyst", goal="g", brain="scripted", settings=SETTINGS, accept=accept),
        e.Planned(plan=first_plan(SETTINGS, "g", accept)),
    )
    for _ in range(ROUNDS_MAX):
        assert_sound(world.state)
        actions = decide(world.state, world.now, 0.5)
        if not actions:
            assert world.state.outcome is not None
            return
        for action in actions:
            match action:
                case Write():
                    await world.append(*action.events)
                case End():
                    assert not any(node.phase.active and not node.helper for node in world.state.nodes.values())
                    if isinstance(action.event, e.Parked):
                        await world.answer(action.event)
                    else:
                        await world.append(action.event)
                case Wait():
                    assert action.until > world.now or len(actions) > 1
                    if len(actions) == 1:
                        world.now = action.until
                case Attempt() | Verify() | Mend():
                    node = world.state.nodes.get(action.node)
                    if node is None:  # a plan of this very round has it no more
                        continue
                    if isinstance(action, Attempt):
                        await world.attempt(node, hands)
                    elif isinstance(action, Verify):
                        await world.verify(node)
                    else:
                        ok = bool(world.draw(True, True, False))
                        await world.append(e.RungDone(node=node.id, rung=int(node.rung or 0), ok=ok))
                case Halt():
                    await world.append(e.RunCancelled())
                case _:
                    raise AssertionError(action)
        world.now += timedelta(seconds=1)
    raise AssertionError("it goes round in circles")


def assert_sound(state: RunState) -> None:
    """What holds at any moment."""
    assert state.plan is not None
    planned = {step.id for step in state.plan.steps}
    for node in state.nodes.values():
        assert node.id in state.nodes_of[node.step.id]
        assert node.helps is not None or node.step.id in planned
        if node.helper is not None:
            assert node.phase is Phase.MENDING
            assert state.nodes[node.helper].helps == node.id
        if node.questions:
            assert node.phase is Phase.WAITING, (node.id, node.phase)
        for question in node.questions:
            assert state.asked[question] == node.id
    assert set(state.asked) == {question for node in state.nodes.values() for question in node.questions}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_whatever_is_thought_the_run_ends_and_its_journal_tells_it_all(data: st.DataObject) -> None:
    world = World(data)
    asyncio.run(play(world))
    again = fold("run_x", world.journal)
    assert repr(again) == repr(world.state)
    if again.outcome == "succeeded":
        assert all(node.phase.over for node in again.nodes.values())


@given(data=st.data(), hours=st.sampled_from([1, 24]))
@settings(max_examples=5, deadline=None)
def test_an_outage_of_all_models_is_waited_out_or_told_to_a_person(data: st.DataObject, hours: int) -> None:
    world = World(data, outage=timedelta(hours=hours), answers=ANSWERS_MAX)
    asyncio.run(play(world))
    parked = [record for record in world.journal if isinstance(record.event, e.Parked)]
    if hours == 1:
        assert 10 <= world.failed <= 30, "asked now and then, not all the time"
        assert not parked or parked[0].at >= BEGAN + world.outage
    else:
        assert parked[0].at - BEGAN > timedelta(hours=2)
        assert "overloaded" in parked[0].event.model_dump_json()
