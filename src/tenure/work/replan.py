"""Another plan in the place of the one that a run has: what is done or under way stays, what is left out is undone. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter

from tenure.work.plan import STEPS_MAX, Check, Plan, PlanStep, Retry, RunScript, Work
from tenure.work.state import Node, Phase, RunState, stays

ACCEPT = "accept"
"""The last step, by which the goal's own checks are made."""
_RESERVED = ("undo-", "mend-", "replan-")


def merged(state: RunState, proposed: Plan, by: Node) -> Plan | list[str]:
    """The plan to go on with when `by` proposes `proposed`; or why not, in sentences for the brain."""
    assert state.plan is not None
    kept = _kept(state, proposed, by)
    if problems := list(_problems(state, proposed, kept)):
        return problems
    wanted = {step.id: step for step in proposed.steps}
    dropped = [nodes for step, nodes in _by_step(state).items() if step not in wanted and step not in kept]
    undone = _undoing([node for nodes in dropped for node in nodes if node.begun and node.step.undo])
    after = (undone[-1].id,) if undone else ()
    fresh = [step.model_copy(update={"needs": (*step.needs, *after)}) for step in proposed.steps if step.id not in kept]
    steps = [*kept.values(), *undone, *fresh]
    if state.accept:
        steps = [step for step in steps if step.id != ACCEPT]
        steps.append(accepting(state.accept, [step.id for step in steps]))
    return state.plan.model_copy(update={"steps": tuple(steps), "concurrency": proposed.concurrency})


def accepting(checks: tuple[Check, ...], after: Iterable[str]) -> PlanStep:
    """The step that ends a run whose goal came with checks."""
    return PlanStep(
        id=ACCEPT,
        name="the goal's checks",
        needs=tuple(after),
        effect=RunScript(script="true"),
        retry=Retry(attempts=0),
        verify=checks,
    )


def _by_step(state: RunState) -> dict[str, list[Node]]:
    return {step: [state.nodes[name] for name in names] for step, names in state.nodes_of.items()}


def _kept(state: RunState, proposed: Plan, by: Node) -> dict[str, PlanStep]:
    """The steps that go on as they are: those that finished, unless they can be undone and the plan leaves them out; those under
    way; and who proposes, when that is its whole purpose."""
    kept: dict[str, PlanStep] = {}
    wanted = {step.id: step for step in proposed.steps}
    for step, nodes in _by_step(state).items():
        if nodes[0].helps is not None:
            continue  # they are no part of a plan
        own = nodes[0].step
        planning = nodes[0].purpose is not None and nodes[0].purpose.plans
        asked_for = step in wanted and _does_the_same(own, wanted[step])
        if planning or any(_is_fixed(node, by, asked_for) for node in nodes):
            kept[step] = own
    return kept


def _is_fixed(node: Node, by: Node, asked_for: bool) -> bool:
    if node.id == by.helps:
        return False  # for whose sake another plan is wanted
    if node is by or (node.phase is Phase.SUCCEEDED and node.step.undo is not None):
        return asked_for
    return stays(node)


def _problems(state: RunState, proposed: Plan, kept: dict[str, PlanStep]) -> Iterable[str]:
    ids = [step.id for step in proposed.steps]
    if not ids:
        yield "The plan has no steps."
    if len(ids) + len(kept) > STEPS_MAX:
        yield f"The plan has more than {STEPS_MAX} steps."
    for name in sorted({name for name in ids if ids.count(name) > 1}):
        yield f"{name} is there twice."
    known = {*ids, *kept}
    for step in proposed.steps:
        if step.id.startswith(_RESERVED) or (step.id == ACCEPT and state.accept):
            yield f"{step.id}: this name is taken. Give the step another one."
        if step.id in kept and not _does_the_same(kept[step.id], step):
            yield f"{step.id} is done or under way already, and does something else in your plan. Give the new step another id."
        for need in step.needs:
            if need not in known:
                yield f"{step.id} needs {need}, and there is no such step."
        if isinstance(step.effect, Work) and not step.verify:
            yield f"{step.id} has no check. Work counts as done when a check holds that a machine can make."
    yield from _cycles(proposed.steps)


def _cycles(steps: Sequence[PlanStep]) -> Iterable[str]:
    try:
        TopologicalSorter({step.id: step.needs for step in steps}).prepare()
    except CycleError as error:
        yield f"The steps need each other in a circle: {' → '.join(error.args[1])}."


def _does_the_same(one: PlanStep, other: PlanStep) -> bool:
    return one.effect == other.effect and one.for_each == other.for_each


def _undoing(nodes: list[Node]) -> list[PlanStep]:
    """One step for each, the last done first, each after the one before."""
    steps: list[PlanStep] = []
    seen: set[str] = set()
    for node in sorted(nodes, key=lambda node: node.over_seq or node.begun_seq, reverse=True):
        if node.step.id in seen:
            continue
        seen.add(node.step.id)
        steps.append(
            PlanStep(
                id=f"undo-{node.step.id}"[:60],
                name=f"undo {node.step.name or node.step.id}",
                needs=(steps[-1].id,) if steps else (),
                effect=RunScript(script=node.step.undo or ""),
                env=node.step.env,
                cwd=node.step.cwd,
                timeout_s=node.step.timeout_s,
            )
        )
    return steps
