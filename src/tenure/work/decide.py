"""`decide`: what should be going on, given the state of a run. Pure: the clock and the randomness are arguments.

The answer does not depend on who asks or how often. A driver carries out what is not already under way, writes what came
of it into the journal, and asks again; after a crash the next worker does the same with the same journal.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from tenure.work import events as e
from tenure.work.failures import EVIDENCE_BYTES_MAX, MESSAGE_CHARS_MAX, Failure, FailureClass, tail
from tenure.work.keys import effect_key, mend_key
from tenure.work.ladder import (
    MODEL_RETRIES_MAX,
    MODEL_TRIES_EACH,
    SHRINKS_MAX,
    Rung,
    Spent,
    model_delay_s,
    next_rung,
    retry_delay_s,
)
from tenure.work.plan import OnFailure, OnLost, Plan, described
from tenure.work.snapshots import restore_points
from tenure.work.state import Node, Phase, RunState
from tenure.work.template import Scope, TemplateError, holds, render
from tenure.work.thoughts import CallResult, OnExpiry, Question

OF_OFFICE = (FailureClass.DOOR, FailureClass.SANDBOX, FailureClass.DISK_FULL)
"""Failures of the office, which one recovery of it may end for all steps."""
FOR_A_PERSON = (FailureClass.BUDGET, FailureClass.AUTHENTICATION, FailureClass.MODEL)
"""Failures of the brain itself: another way of asking it does not help."""
CLAIMS_IN_A_ROW_MAX = 20
"""So many workers died on a run without writing anything: the next one asks a person instead."""


@dataclass(frozen=True)
class Write:
    """Put these into the journal; nothing is done outside."""

    events: tuple[e.AnyEvent, ...]


@dataclass(frozen=True)
class Attempt:
    """Carry out the node's effect: a new attempt when it is PENDING, else find out what became of the running one."""

    node: str


@dataclass(frozen=True)
class Expand:
    """Ask the database for the values of the node's `for_each`."""

    node: str


@dataclass(frozen=True)
class Verify:
    """Make the node's checks."""

    node: str


@dataclass(frozen=True)
class Mend:
    """Carry out the rung that the node is on."""

    node: str


@dataclass(frozen=True)
class Restore:
    """Carry out rung 6, on which the node is: let go of all else that is under way, for its ground will be gone."""

    node: str


@dataclass(frozen=True)
class Wait:
    """Nothing new before then, unless something under way ends or the owner speaks."""

    until: datetime


@dataclass(frozen=True)
class Halt:
    """The owner wants it to stop: end these commands (node → key), then write `RunCancelled`."""

    commands: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class End:
    """Write this and let go of the run: it is over, or parked."""

    event: e.RunSucceeded | e.RunFailed | e.Parked


Doing = Attempt | Expand | Verify | Mend | Restore
Action = Write | Doing | Wait | Halt | End


def decide(state: RunState, now: datetime, randomness: float) -> list[Action]:
    """The actions for `state` at `now`; `randomness` in [0, 1) jitters delays. Empty when the run is over or parked.

    Writes come alone: they change the state, so the driver asks again after them. Never empty otherwise; a `Restore` comes
    alone, and an `End`, when nothing else can go on."""
    plan = state.plan
    if state.outcome is not None or state.parked or plan is None:
        return []
    if state.cancel_requested:
        return [Halt(tuple((node.id, node.key) for node in state.nodes.values() if node.phase.active and node.key))]
    if state.refused is not None:
        return [End(e.RunFailed(reason=state.refused))]
    if state.claims_in_a_row > CLAIMS_IN_A_ROW_MAX:
        return [End(_parked_for_dying_workers(state))]
    if writes := _writes(state, plan, now, randomness):
        return [Write(tuple(writes))]
    restoring = [node for node in state.nodes.values() if node.phase is Phase.MENDING and node.rung is Rung.RESTORE]
    if restoring:
        return [Restore(restoring[0].id)]
    if actions := _actions(state, plan, now):
        return list(actions)
    asking = [node for node in state.nodes.values() if node.phase is Phase.ASKING]
    questions = [question for node in state.nodes.values() for question in node.questions.values()]
    if not asking and not questions:
        return [End(e.RunSucceeded())]
    parked = _parked(state, asking, questions)
    if asking and plan.on_failure is OnFailure.FAIL:
        return [End(e.RunFailed(reason=parked.question))]
    return [End(parked)]


def scope_of(state: RunState, node: Node) -> Scope:
    """What the expressions of `node`'s step may name now."""
    inputs = state.plan.inputs if state.plan else {}
    return Scope(inputs=inputs, outputs=state.outputs(), item=node.item, goal=state.goal)


def is_ready(state: RunState, node: Node) -> bool:
    """Whether everything that the node's step needs is done."""
    return all(state.done(need) for need in node.step.needs)


# --- what only has to be written -----------------------------------------------------------------------------------------
def _writes(state: RunState, plan: Plan, now: datetime, randomness: float) -> list[e.AnyEvent]:
    written: list[e.AnyEvent] = []
    mending = any(node.rung is not None and node.rung.of_office for node in state.nodes.values())
    for node in state.nodes.values():
        if node.phase is Phase.PENDING and (event := _condition_event(state, node)) is not None:
            written.append(event)
        elif node.phase is Phase.PENDING and _needs_leave(state, node):
            written.append(_ask_to_begin(state, node, now))
        elif node.phase is Phase.WAITING:
            written += _waited(node, now)
        elif node.phase is Phase.MENDING and node.helper is not None:
            written += _helped(state, node, state.nodes[node.helper])
        elif node.helps is not None and not node.phase.over and _is_orphan(state, node):
            written.append(e.StepSkipped(node=node.id, reason=f"{node.helps} begins anew without it"))
        elif node.phase is Phase.FAILED and node.failure is not None:
            climb = _climb(state, node, node.failure, mending, now, randomness)
            if climb is not None and climb.rung == Rung.ASK and _gives_up(node, node.failure):
                written.append(e.StepSkipped(node=node.id, reason=f"gave up: {climb.reason}"))
            elif climb is not None:
                written.append(climb)
                mending = mending or (Rung(climb.rung).of_office and not climb.joined)
        elif node.phase is Phase.UNVERIFIED and not node.step.verify:
            written.append(_after_loss(state, node, now, randomness))
    return written


def _condition_event(state: RunState, node: Node) -> e.StepSkipped | e.StepFailed | None:
    """None while the step may begin."""
    condition = node.step.condition
    if not condition or node.begun or not is_ready(state, node):
        return None
    try:
        if holds(condition, scope_of(state, node)):
            return None
    except TemplateError as error:
        return e.StepFailed(
            node=node.id, attempt=node.attempt, failure=Failure(kind=FailureClass.USAGE, message=str(error))
        )
    return e.StepSkipped(node=node.id, reason=f"if: {condition}")


def _climb(
    state: RunState, node: Node, failure: Failure, mending: bool, now: datetime, randomness: float
) -> e.RungEntered | None:
    """The rung that a failed node enters; None while it waits for another node's recovery of the same office."""
    if failure.kind is FailureClass.MODEL:
        return _ask_again(state, node, failure, now, randomness)
    if failure.kind is FailureClass.CONTEXT and node.talk.shrinks < SHRINKS_MAX:
        return _joined(node, Rung.RETRY, failure, "the conversation is cut", now)
    if failure.kind is FailureClass.BUDGET and failure.retry_after_s is not None:
        return _joined(node, Rung.RETRY, failure, failure.message, now + timedelta(seconds=failure.retry_after_s))
    spent, can_restore = Spent(node.spent, state.run_spent), bool(restore_points(state))
    rung = next_rung(failure.kind, node.step, spent, can_restore=can_restore, mind=state.mind)
    if failure.kind in OF_OFFICE and node.blocked_since is not None:
        if mending:
            return None
        if state.mended_seq > node.blocked_since:
            served = Rung.RECONNECT if failure.kind is FailureClass.DOOR else Rung.RESTART
            reason = "the office was recovered since this call began"
            return e.RungEntered(node=node.id, rung=served, reason=reason, evidence=failure.message, joined=True)
    elif rung.of_office and mending:
        return None
    return _enter(state, node, rung, failure, now, randomness)


def _ask_again(state: RunState, node: Node, failure: Failure, now: datetime, randomness: float) -> e.RungEntered:
    """The same model later, or another one; a person when none answered for hours."""
    failures, models = node.talk.model_failures, max(state.mind.models, 1)
    if failures > MODEL_RETRIES_MAX:
        return _enter(state, node, Rung.ASK, failure, now, randomness)
    other = models > 1 and failures % MODEL_TRIES_EACH == 0
    if other and failures < MODEL_TRIES_EACH * models:
        return _joined(node, Rung.OTHER, failure, "another model is asked", now)
    delay_s = model_delay_s(failures - 1, failure.retry_after_s, randomness)
    rung, reason = (Rung.OTHER, "another model is asked") if other else (Rung.RETRY, "the model is asked again")
    return _joined(node, rung, failure, reason, now + timedelta(seconds=delay_s))


def _joined(node: Node, rung: Rung, failure: Failure, reason: str, not_before: datetime) -> e.RungEntered:
    """Entered at no cost to its budget."""
    return e.RungEntered(
        node=node.id,
        rung=rung,
        reason=f"{failure.kind}: {failure.message}; {reason}"[:MESSAGE_CHARS_MAX],
        evidence=failure.evidence,
        not_before=not_before,
        joined=True,
    )


def _gives_up(node: Node, failure: Failure) -> bool:
    """Whether a node that helps another one leaves it to that one's ladder."""
    return node.helps is not None and failure.kind not in FOR_A_PERSON


def _is_orphan(state: RunState, node: Node) -> bool:
    helped = state.nodes.get(node.helps or "")
    return helped is None or helped.helper != node.id


def _helped(state: RunState, node: Node, helper: Node) -> list[e.AnyEvent]:
    """The end of a rung that a brain carried out."""
    if not helper.phase.over:
        return []
    ok = helper.phase is Phase.SUCCEEDED
    said = helper.result.output if ok else (helper.failure.message if helper.failure else "it was skipped")
    return [e.RungDone(node=node.id, rung=int(node.rung or 0), ok=ok, evidence=tail(f"{helper.id}: {said}"))]


def _needs_leave(state: RunState, node: Node) -> bool:
    """Each value of a `for_each` by itself, when the values are known."""
    return node.step.approval is not None and not node.approved and not node.expands and is_ready(state, node)


def _ask_to_begin(state: RunState, node: Node, now: datetime) -> e.Asked:
    approval = node.step.approval
    assert approval is not None
    expires_at = None if approval.expires_after_s is None else now + timedelta(seconds=approval.expires_after_s)
    name = f"{effect_key(state.run_id, node.id, node.attempt + 1)}:approve"
    earlier = sum(one.startswith(name) for one in state.ever_asked)  # it was denied, or undone, before it ever began
    question = Question(
        id=f"{name}{earlier + 1}" if earlier else name,
        text=_rendered(approval.text, state, node) or f"May {node.step.name or node.id} begin?",
        options=("yes", "no"),
        evidence=tail(_rendered(described(node.step.effect), state, node)),
        approval=True,
        expires_at=expires_at,
        on_expiry=OnExpiry.ESCALATE if approval.escalate_to else OnExpiry.DENY,
        escalate_to=approval.escalate_to,
    )
    return e.Asked(node=node.id, question=question)


def _rendered(text: str, state: RunState, node: Node) -> str:
    """With its expressions filled in; as it is where they cannot be: the step fails for that when it begins."""
    try:
        return render(text, scope_of(state, node))
    except TemplateError:
        return text


def _waited(node: Node, now: datetime) -> list[e.AnyEvent]:
    """What has come to an end that the node waited for."""
    if node.not_before is not None and node.not_before <= now and not node.questions:
        said = "The time is over." if node.waits_for is None else f"The time is over, and {node.waits_for} is not."
        result = CallResult(ok=node.waits_for is None, output=said)
        return [e.CallDone(node=node.id, attempt=node.attempt, turn=len(node.talk.turns) - 1, index=0, result=result)]
    return [
        _expired(node, question)
        for question in node.questions.values()
        if question.expires_at is not None and question.expires_at <= now
    ]


def _expired(node: Node, question: Question) -> e.AnyEvent:
    if question.on_expiry is OnExpiry.ESCALATE and question.escalate_to:
        again = question.model_copy(
            update={
                "id": f"{question.id}~",
                "to": question.escalate_to,
                "escalate_to": "",
                "on_expiry": OnExpiry.DENY,
                "expires_at": None,
                "replaces": question.id,
            }
        )
        return e.Asked(node=node.id, question=again)
    return e.QuestionAnswered(question=question.id, answer="no: nobody answered in time")


def _after_loss(state: RunState, node: Node, now: datetime, randomness: float) -> e.RungEntered:
    failure = node.failure or Failure(kind=FailureClass.LOST, message="lost")
    rung = Rung.ASK
    if node.step.on_lost is OnLost.RETRY:
        rung = next_rung(FailureClass.LOST, node.step, Spent(node.spent, state.run_spent), mind=state.mind)
    return _enter(state, node, rung, failure, now, randomness)


def _enter(
    state: RunState, node: Node, rung: Rung, failure: Failure, now: datetime, randomness: float
) -> e.RungEntered:
    not_before = None
    if rung is Rung.RETRY:
        not_before = now + timedelta(seconds=retry_delay_s(node.step.retry, node.spent[rung], randomness))
    return e.RungEntered(
        node=node.id,
        rung=rung,
        reason=f"{failure.kind}: {failure.message}"[:MESSAGE_CHARS_MAX],
        evidence=failure.evidence,
        not_before=not_before,
        # The number of the rung's entry makes the key: known again after a crash, and new for each entry.
        key=mend_key(state.run_id, node) if rung in (Rung.SELF_CORRECT, Rung.RESTORE) else "",
    )


# --- what has to be done -------------------------------------------------------------------------------------------------
def _actions(state: RunState, plan: Plan, now: datetime) -> list[Doing | Wait]:
    """Active nodes go on; pending ones begin, in the plan's order, while there are slots."""
    actions: list[Doing | Wait] = []
    waits: list[datetime] = []
    expiries: list[datetime] = []
    free = plan.concurrency - sum(node.phase.active for node in state.nodes.values())
    mending = any(node.rung is not None and node.rung.of_office for node in state.nodes.values())
    for node in state.nodes.values():
        due = node.not_before is None or node.not_before <= now
        match node.phase:
            case Phase.RUNNING | Phase.EFFECTED | Phase.UNVERIFIED if not due:
                waits.append(node.not_before or now)
            case Phase.RUNNING:
                actions.append(Attempt(node.id))
            case Phase.EFFECTED | Phase.UNVERIFIED:
                actions.append(Verify(node.id))
            case Phase.MENDING if node.helper is None:
                actions.append(Mend(node.id))
            case Phase.WAITING:
                expiries += [question.expires_at for question in node.questions.values() if question.expires_at]
                waits += [node.not_before] if node.not_before and not node.questions else []
            case Phase.PENDING if is_ready(state, node):
                if not due:
                    waits.append(node.not_before or now)
                elif (free > 0 or node.helps) and not mending:  # an office in recovery is given nothing new
                    free -= 0 if node.helps else 1  # whom it helps holds its place already
                    actions.append(Expand(node.id) if node.expands else Attempt(node.id))
            case _:
                pass
    if not actions and not waits:
        return []  # at most people are waited for: that is what parking is for
    waits += expiries
    return [*actions, Wait(min(waits))] if waits else actions


# --- asking the owner ----------------------------------------------------------------------------------------------------
def _parked(state: RunState, asking: list[Node], questions: list[Question]) -> e.Parked:
    lines = [f"{node.id}: {_question(node)}" for node in asking]
    lines += [question.text for question in questions]
    evidence = [f"--- {node.id}, attempt {node.attempt}\n{node.failure.evidence}" for node in asking if node.failure]
    evidence += [f"--- restored from {to}; what was there before: {before}" for to, before in state.restored]
    hint = "Answer `retry`, `skip` or `fail`"
    if any(node.failure is not None and node.failure.kind is FailureClass.LOST for node in asking):
        hint += ", or `accept` when you found that it did take effect"
    expiries = [question.expires_at for question in questions if question.expires_at is not None]
    return e.Parked(
        question=("\n".join(lines))[:MESSAGE_CHARS_MAX] + (f"\n{hint}." if asking else ""),
        evidence=tail("\n".join(evidence), EVIDENCE_BYTES_MAX),
        nodes=tuple(node.id for node in asking),
        questions=tuple(question.id for question in questions),
        until=min(expiries, default=None),
    )


def _question(node: Node) -> str:
    if node.failure is None:
        return "needs a person"
    if node.failure.kind is FailureClass.LOST:
        return f"its effect is unverified. {node.failure.message}"
    return f"{node.failure.message} ({node.failure.kind}, {node.attempt} attempts)"


def _parked_for_dying_workers(state: RunState) -> e.Parked:
    running = ", ".join(node.id for node in state.nodes.values() if node.phase.active) or "nothing"
    return e.Parked(
        question=f"{state.claims_in_a_row} workers in a row ended without getting this run on. Answer `retry` or `fail`.",
        evidence=f"Under way: {running}. The server's log says how its workers ended.",
    )
