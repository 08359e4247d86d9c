"""How a run looks from outside: the wire models, made of its row and its folded journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenure import wire
from tenure.work import events as e
from tenure.work.failures import FailureClass
from tenure.work.state import Node, Phase, RunState
from tenure.work.thoughts import NOTHING, Question, Usage

SUMMARY_CHARS_MAX = 4000
_STATES = {
    Phase.PENDING: wire.StepState.PENDING,
    Phase.RUNNING: wire.StepState.RUNNING,
    Phase.EFFECTED: wire.StepState.RUNNING,
    Phase.UNVERIFIED: wire.StepState.UNVERIFIED,
    Phase.FAILED: wire.StepState.FAILED,
    Phase.MENDING: wire.StepState.RUNNING,
    Phase.WAITING: wire.StepState.WAITING,
    Phase.ASKING: wire.StepState.FAILED,
    Phase.SUCCEEDED: wire.StepState.SUCCEEDED,
    Phase.SKIPPED: wire.StepState.SKIPPED,
}


def run_view(row: Mapping[str, Any], state: RunState) -> wire.Run:
    """`row` is the run's row of the control database."""
    return wire.Run(
        id=row["id"],
        agent=row["agent"],
        goal=row["goal"],
        brain=row["brain"],
        state=row["state"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        question=row["question"],
        error=state.error,
        origin=None if state.origin is None else wire.RunOrigin.model_validate(state.origin),
        parent=state.parent,
        summary=state.summary()[:SUMMARY_CHARS_MAX] if row["state"] == wire.RunState.SUCCEEDED else "",
        spent=_spent(state.usage),
        questions=[
            question_view(row["id"], row["agent"], node.id, question)
            for node in state.nodes.values()
            for question in node.questions.values()
        ],
        steps=[_step(state, node) for nodes in state.nodes_of.values() for node in map(state.nodes.__getitem__, nodes)],
    )


def _step(state: RunState, node: Node) -> wire.RunStep:
    shown = _STATES[node.phase]
    if node.phase is Phase.ASKING and node.failure is not None and node.failure.kind is FailureClass.LOST:
        shown = wire.StepState.UNVERIFIED
    seconds = None
    if node.started_at is not None and node.finished_at is not None:
        seconds = (node.finished_at - node.started_at).total_seconds()
    return wire.RunStep(
        id=node.id,
        state=shown,
        attempts=node.attempt,
        rungs=list(node.rungs),
        snapshots=[wire.StepSnapshot.model_validate(one) for one in state.snapshots if one.node == node.id],
        started_at=node.started_at,
        finished_at=node.finished_at,
        duration_s=seconds,
        error=node.failure.message if node.failure and not node.phase.over else None,
        spent=_spent(node.usage),
    )


def _spent(usage: Usage) -> wire.Spent | None:
    return wire.Spent.model_validate(usage) if usage != NOTHING else None


def question_view(run: str, agent: str, step: str, question: Question) -> wire.Question:
    return wire.Question(
        id=question.id,
        run=run,
        agent=agent,
        step=step,
        text=question.text,
        options=list(question.options),
        evidence=question.evidence,
        approval=question.approval,
        expires_at=question.expires_at,
        to=question.to,
    )


def event_view(record: e.Record) -> wire.RunEvent:
    """One journal record; `step` is the plan node that it is about."""
    data = record.event.model_dump(mode="json", exclude={"kind", "node"})
    step = getattr(record.event, "node", None)
    return wire.RunEvent(seq=record.seq, kind=record.event.kind, at=record.at, step=step, data=data)
