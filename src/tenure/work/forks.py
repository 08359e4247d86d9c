"""Where a run may be forked, pure: the moment of a step, as of which both its journal and its office are still there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tenure.errors import Conflict, InvalidArgument, NotFound
from tenure.work import events as e
from tenure.work.plan import Plan
from tenure.work.snapshots import StepSnapshot, mismatches, of_step
from tenure.work.state import RunState, fold


@dataclass(frozen=True)
class ForkPoint:
    """What a fork begins with: a clone of the snapshot, and a copy of these entries of the journal."""

    run: str
    agent: str
    snapshot: StepSnapshot
    step: str
    seqs: tuple[int, ...]
    plan: Plan | None

    def forked(self, new_agent: str) -> e.Forked:
        """The first entry of the fork's own."""
        return e.Forked(
            agent=new_agent,
            run=self.run,
            step=self.step,
            before=self.snapshot.before,
            snapshot=self.snapshot.id,
            seq=self.snapshot.seq,
            plan=self.plan,
        )


def fork_point(
    run_id: str,
    records: Sequence[e.Record],
    at: str,
    *,
    there: Collection[str],
    before: bool | None = None,
    plan: Plan | None = None,
) -> ForkPoint:
    """The moment of the step `at`: after it, or `before` it; with None after it if there is such a snapshot, else before it.
    `there` are the snapshots that were not deleted; `plan` replaces the origin's. Raises `NotFound` for a step that is not
    in the run or has no snapshot, `InvalidArgument` for a plan that does not go on from there."""
    state = fold(run_id, records)
    usable = [one for one in state.snapshots if one.id in there]
    wanted = of_step(state, usable, at, before=before)
    if wanted is None:
        raise _nowhere(state, usable, at, before)
    seqs = [record.seq for record in records if record.seq <= wanted.seq]
    if not wanted.before:
        seqs += _success_of(records, wanted)
    by_seq = {record.seq: record for record in records}
    then = fold(run_id, [by_seq[seq] for seq in seqs])
    if plan is not None and (problems := mismatches(then, plan.steps)):
        raise InvalidArgument(
            f"The playbook cannot go on from {at}: {'; '.join(problems)}.",
            hint="What has begun at that moment must be in it, with the same run, sql, put or notify, for_each and if.",
        )
    return ForkPoint(run_id, state.agent, wanted, at, tuple(seqs), plan)


def _success_of(records: Sequence[e.Record], taken: StepSnapshot) -> list[int]:
    """Of the step after which the snapshot was taken: written together with it."""
    for record in records:
        event = record.event
        if isinstance(event, e.StepSucceeded) and (event.node, event.attempt) == (taken.node, taken.attempt):
            return [record.seq]
    raise Conflict(f"The journal does not say how {taken.node} ended.")


def _nowhere(state: RunState, usable: Sequence[StepSnapshot], at: str, before: bool | None) -> NotFound:
    if at not in state.nodes_of and at not in state.nodes:
        return NotFound(
            f"{state.run_id} has no step {at[:60]!r}.", hint=f"Its steps: {', '.join(state.nodes_of) or 'none yet'}."
        )
    moment = {None: "before or after", True: "before", False: "after"}[before]
    message = f"There is no snapshot from {moment} {at}, so {state.run_id} cannot be forked there."
    if not usable:
        return NotFound(
            message, hint="No step of it has one: they are taken after steps with `verify`, and before `risky` ones."
        )
    found = dict.fromkeys(f"{'before' if one.before else 'after'} {one.node}" for one in usable)
    return NotFound(message, hint=f"There is one: {', '.join(found)}.")
