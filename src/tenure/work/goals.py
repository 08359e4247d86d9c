"""From a goal to a run's first plan, before anybody thought about it."""

from __future__ import annotations

from tenure.work.plan import Check, Plan, PlanStep, Work
from tenure.work.replan import accepting
from tenure.work.thoughts import BrainSettings, Purpose

PLAN_STEP = "plan"
GOAL_STEP = "goal"


def first_plan(settings: BrainSettings, goal: str, accept: tuple[Check, ...]) -> Plan:
    """For a brain that thinks: to find the steps. For a program: the whole work, as one step with the goal's checks."""
    if settings.thinks:
        step = PlanStep(id=PLAN_STEP, name="find a plan", effect=Work(instructions=goal, purpose=Purpose.PLAN))
        return Plan(steps=(step, accepting(accept, [step.id])) if accept else (step,))
    return Plan(steps=(PlanStep(id=GOAL_STEP, name="the goal", effect=Work(instructions=goal), verify=accept),))
