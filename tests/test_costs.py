"""What brains took is summed from the journals, by whatever one asks, and nothing is counted twice."""

from __future__ import annotations

from datetime import UTC

import pytest

from fixtures.thinking import MODELS, ThinkingStage, done, propose, script, shell, work
from fixtures.workers import at_rest
from tenure import wire
from tenure.work.plan import PlanStep
from tenure.work.thoughts import Thought, Usage


def turns(*steps: PlanStep) -> dict[str, list[object]]:
    return {"plan": [propose(work("one", "test -s one"), *steps)], "one": [shell("echo made > one"), done()]}


async def sums(stage: ThinkingStage, by: str, agent: str | None = None) -> list[wire.Cost]:
    return await stage.runs.costs(wire.CostsBy(by), agent=agent)


async def test_costs_are_summed_by_agent_run_step_model_and_day(thinking: ThinkingStage) -> None:
    first, _ = await thinking.carry(turns())
    second, _ = await thinking.carry({"plan": [propose(script("two", "true"))]}, models=MODELS[1:])
    (of_agent,) = await sums(thinking, "agent")
    assert (of_agent.agent, of_agent.requests, of_agent.input_tokens, of_agent.output_tokens) == ("analyst", 4, 400, 40)
    assert of_agent.cost_usd == pytest.approx(0.04)
    assert [(one.run, one.requests) for one in await sums(thinking, "run")] == [(second.id, 1), (first.id, 3)]
    steps = {(one.run, one.step): one.requests for one in await sums(thinking, "step")}
    assert steps == {(first.id, "plan"): 1, (first.id, "one"): 2, (second.id, "plan"): 1}
    assert {(one.model, one.requests) for one in await sums(thinking, "model")} == {(MODELS[0], 3), (MODELS[1], 1)}
    days = {event.at.astimezone(UTC).date() for event in await thinking.events(first, "thinking")}
    days |= {event.at.astimezone(UTC).date() for event in await thinking.events(second, "thinking")}
    assert {one.day for one in await sums(thinking, "day")} == days
    assert await sums(thinking, "run", "somebody") == []
    assert first.spent is not None
    assert first.spent.requests == 3


async def test_a_price_that_nobody_knows_is_counted_as_that(thinking: ThinkingStage) -> None:
    unpriced = Thought(decision=shell("echo made > one"), usage=Usage(input_tokens=7, output_tokens=1))
    run, _ = await thinking.carry({**turns(), "one": [unpriced, done()]})
    (cost,) = await sums(thinking, "run")
    assert (cost.run, cost.unpriced, cost.input_tokens) == (run.id, 1, 207)
    assert cost.cost_usd == pytest.approx(0.02)


async def test_what_a_fork_copied_is_not_paid_again(thinking: ThinkingStage) -> None:
    kept = script("kept", "echo kept > kept", verify=({"kind": "file", "path": "kept"},), snapshot=True)
    plan = turns(kept, script("last", "true", "kept", "one"))
    async with thinking.working(plan):
        run = await at_rest(thinking.runs, await thinking.think())
        point = await thinking.runs.fork_point(run.id, "kept", there=thinking.office.snapshots("analyst"))
        thinking.office.fork("analyst", "twin", point.snapshot.id)
        before = sum(one.requests for one in await sums(thinking, "agent"))
        twin = await at_rest(thinking.runs, (await thinking.runs.fork(point, "twin")).id)
    assert twin.state == "succeeded"
    thoughts = await thinking.events(twin, "thinking")
    copied = [event for event in thoughts if event.seq <= point.snapshot.seq]
    assert copied, "the fork has thoughts of the other run"
    by_agent = {one.agent: one.requests for one in await sums(thinking, "agent")}
    assert by_agent == {"analyst": before} | ({"twin": len(thoughts) - len(copied)} if thoughts != copied else {})
