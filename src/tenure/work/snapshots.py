"""Snapshots around steps, pure: when one is taken, which of them a run may go back to, and what is undone then.

A snapshot is *verified* when the office held, at its instant, nothing but what finished steps had done: every other step was
over or had not begun. Those with checks had passed them. Only to such a one the ladder goes back: the steps that were not in
it yet are then as if they had never begun. A snapshot that was taken while other steps were under way has their unfinished
work in it, too; it is for forks, where those steps go on as after a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenure.work.plan import Notify, PlanStep

if TYPE_CHECKING:
    from tenure.work.state import Node, RunState

SPACING = 10.0
"""The time between two snapshots after steps, in times of what the last one took: so they take a tenth of a run at most,
whatever the steps. Those that a playbook asks for by name, and those before risky steps, are taken in any case."""


@dataclass
class StepSnapshot:
    """One that the journal tells of. `seq`: what the journal up to there says to be done is in it."""

    id: str
    node: str
    attempt: int
    before: bool
    verified: bool
    seq: int
    is_current: bool = True
    """Whether the run's work since then is still part of it; not so once the run went back to an earlier moment."""


@dataclass
class Spacing:
    """When the last snapshots were taken, by the clock of one driver, in seconds. Kept in memory only: to forget it costs one
    snapshot more."""

    last_s: float | None = None
    last_verified_s: float | None = None
    took_s: float = 0.0

    def is_due(self, now_s: float, *, verified: bool) -> bool:
        """Whether there is room for another one. One that could be gone back to does not wait for one that could not."""
        last_s = self.last_verified_s if verified else self.last_s
        return last_s is None or now_s >= last_s + SPACING * self.took_s

    def taken(self, began_s: float, now_s: float, *, verified: bool) -> None:
        self.took_s, self.last_s = now_s - began_s, now_s
        if verified:
            self.last_verified_s = now_s


# --- taking --------------------------------------------------------------------------------------------------------------
def is_clean(state: RunState, node: Node) -> bool:
    """Whether no other step has anything in the office but finished work."""
    return all(other.phase.over or not other.begun for other in state.nodes.values() if other is not node)


def wants_before(node: Node) -> bool:
    """A risky step has one before its first attempt, not before each: that is the office without it."""
    return node.step.risky and not node.begun


def may_want_after(step: PlanStep) -> bool:
    """Whether there is one after some steps of its kind."""
    return step.snapshot is not False and bool(step.verify or step.snapshot)


def wants_after(state: RunState, node: Node) -> bool:
    """Whether `node`, which is just succeeding, ends a step that has one: with checks, or when the playbook says so. The values
    of a `for_each` have one together."""
    if not may_want_after(node.step):
        return False
    step = node.step
    return all(state.nodes[other].phase.over for other in state.nodes_of[step.id] if other != node.id)


# --- going back ----------------------------------------------------------------------------------------------------------
def restore_points(state: RunState) -> list[StepSnapshot]:
    """The snapshots to which the run may go back, the newest first."""
    return [one for one in reversed(state.snapshots) if one.verified and one.is_current and _may_undo(state, one)]


def undone_by(state: RunState, to: StepSnapshot) -> list[str]:
    """The nodes that are not in the snapshot and so begin anew when the office is as it was then, in the plan's order."""
    return [node.id for node in state.nodes.values() if _is_undone(node, to)]


def _is_undone(node: Node, to: StepSnapshot) -> bool:
    if not (node.begun or node.phase.over) or node.waived:
        return False
    if node.phase.over and isinstance(node.step.effect, Notify):
        return False  # the message is not in the office: it was left, and is not left again
    inside = node.over_seq is not None and node.over_seq <= to.seq
    return not (node.phase.over and (inside or (node.id == to.node and not to.before)))


def _may_undo(state: RunState, to: StepSnapshot) -> bool:
    return not any(node.step.final and node.begun for node in state.nodes.values() if _is_undone(node, to))


# --- forks ---------------------------------------------------------------------------------------------------------------
def of_step(
    state: RunState, usable: Sequence[StepSnapshot], wanted: str, *, before: bool | None
) -> StepSnapshot | None:
    """The newest snapshot before or after a step (or one value of its `for_each`); with None the newest after it, or else
    before it."""
    mine = [one for one in usable if one.node == wanted or one.node in state.nodes_of.get(wanted, ())]
    for kind in (False, True) if before is None else (before,):
        if found := [one for one in mine if one.before is kind]:
            return found[-1]
    return None


def mismatches(state: RunState, steps: tuple[PlanStep, ...]) -> list[str]:
    """Why `steps` cannot go on from `state`, as sentences: what has begun by then must be in them, doing the same."""
    wanted = {step.id: step for step in steps}
    problems: list[str] = []
    for step_id, nodes in state.nodes_of.items():
        touched = [state.nodes[node] for node in nodes if state.nodes[node].begun or state.nodes[node].phase.over]
        if not touched:
            continue
        what = "is done" if all(node.phase.over for node in touched) else "has begun"
        if step_id not in wanted:
            problems.append(f"{step_id} {what} by then, and is not in the new playbook")
        elif not _does_the_same(touched[0].step, wanted[step_id]):
            problems.append(f"{step_id} {what} by then, and does something else in the new playbook")
    return problems


def _does_the_same(one: PlanStep, other: PlanStep) -> bool:
    return (one.effect, one.for_each, one.condition) == (other.effect, other.for_each, other.condition)
