"""A playbook may leave a step to the agent's brain, and take steps back when its plan changes; only with a brain that can."""

from __future__ import annotations

import pytest

from fixtures.thinking import MODELS, ThinkingStage, done, propose, script, shell
from fixtures.workers import at_rest
from tenure.errors import InvalidArgument
from tenure.work.thoughts import BrainSettings

SETTINGS = BrainSettings(brain="scripted", models=MODELS[:1])
WORK = """
name: work
steps:
  - id: before
    run: echo before >> effects
    undo: echo undo >> effects
  - id: work
    needs: before
    work: Make it, for ${{ goal }}
    retry: 0
    verify: {file: made}
  - {id: after, needs: work, run: echo after >> effects}
"""


async def begin(stage: ThinkingStage, settings: BrainSettings | None) -> str:
    run = await stage.runs.create(
        agent="analyst", goal="the goal", playbook=WORK, playbook_name="work.yaml", inputs={}, settings=settings
    )
    return run.id


async def test_a_step_of_a_playbook_is_work_for_the_brain_and_judged_by_its_checks(thinking: ThinkingStage) -> None:
    async with thinking.working({"work": [done("I am sure"), shell("echo made > made"), done()]}) as thinker:
        run = await at_rest(thinking.runs, await begin(thinking, SETTINGS))
        assert run.state == "succeeded"
        assert thinker.tasks[0].instructions == "Make it, for the goal"
        assert await thinking.rungs(run) == [(1, "verification")]
        assert thinking.effects() == ["before", "after"]
        thinker.assert_complete()


async def test_what_another_plan_leaves_out_is_undone(thinking: ThinkingStage) -> None:
    other = propose(script("other", "echo other >> effects"), reason="not this way")
    async with thinking.working({"work": [other]}) as thinker:
        run = await at_rest(thinking.runs, await begin(thinking, SETTINGS))
        assert run.state == "succeeded"
        assert thinking.effects() == ["before", "undo", "other"]
        thinker.assert_complete()


async def test_work_for_nobody_is_refused_before_it_begins(thinking: ThinkingStage) -> None:
    with pytest.raises(InvalidArgument, match="'work' is work for a brain, and analyst has none") as refused:
        await begin(thinking, None)
    assert "tenure brain set analyst" in str(refused.value.hint)
    assert await thinking.runs.list() == []
