"""The journal's vocabulary: what can happen to a run, one class each.

An event says what *was decided or happened*, never what is to be done: folding the events of a run gives its state
(`state.py`), and `decide` looks only at that. Old events are read for ever: give a new field a default, and never change
what an old one means.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from tenure.work.failures import Failure
from tenure.work.plan import Check, Plan
from tenure.work.thoughts import BrainSettings, CallResult, Question, Thought


class Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Result(BaseModel):
    """What an effect gave. `output` is the last part of what it printed, or a query's value."""

    model_config = ConfigDict(frozen=True)

    output: str = ""
    output_bytes: int = 0
    exit_code: int | None = None
    duration_s: float | None = None


# --- the run -------------------------------------------------------------------------------------------------------
class RunCreated(Event):
    kind: Literal["run_created"] = "run_created"
    agent: str
    goal: str
    brain: str
    playbook_name: str | None = None
    inputs: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    settings: BrainSettings | None = None
    """None: there is no brain that thinks."""
    accept: tuple[Check, ...] = ()
    """What has to hold in the end, whatever the plan."""
    parent: str | None = None
    """The run that this one is a sub-goal of."""


class Planned(Event):
    """The first plan, or one that takes the place of the one before: then the steps that are done stay done, and those that
    are under way go on."""

    kind: Literal["planned"] = "planned"
    plan: Plan
    node: str = ""
    """Whose thought it was; empty for the first."""
    reason: str = ""


class RunClaimed(Event):
    """A worker took the run: the first one, or another after the one before it died."""

    kind: Literal["run_claimed"] = "run_claimed"
    worker: str
    attempt: int


class Parked(Event):
    """Rung 8: nothing goes on until the owner answers."""

    kind: Literal["parked"] = "parked"
    question: str
    evidence: str = ""
    nodes: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    """Those that wait for answers of their own."""
    until: datetime | None = None
    """When the first of them expires: then a worker looks again."""


class Answered(Event):
    """By the owner. `retry`, `accept` (it did take effect), `skip` or `fail`; any other text means `retry`, and the steps
    find it in `TENURE_ANSWER`."""

    kind: Literal["answered"] = "answered"
    answer: str = "retry"


class CancelRequested(Event):
    kind: Literal["cancel_requested"] = "cancel_requested"


class Forked(Event):
    """From here on the journal is of a run that goes on with another run's work, in an office that is a clone of the snapshot:
    what stands before this is a copy of the other's journal, up to that moment."""

    kind: Literal["forked"] = "forked"
    agent: str
    run: str
    """The run that it was forked of, and below its step, and how far its journal had come."""
    step: str
    before: bool = False
    snapshot: str
    seq: int
    plan: Plan | None = None
    """Instead of the origin's; None: the same."""


class RunSucceeded(Event):
    kind: Literal["run_succeeded"] = "run_succeeded"


class RunFailed(Event):
    kind: Literal["run_failed"] = "run_failed"
    reason: str


class RunCancelled(Event):
    kind: Literal["run_cancelled"] = "run_cancelled"


# --- steps: `node` is a step, or one value of a step with for_each ------------------------------------------------
class StepExpanded(Event):
    """A query gave the values of a `for_each`."""

    kind: Literal["step_expanded"] = "step_expanded"
    node: str
    values: tuple[str, ...]


class StepStarted(Event):
    """The intent: written before the effect is tried, with the key under which it can be asked for afterwards."""

    kind: Literal["step_started"] = "step_started"
    node: str
    attempt: int
    key: str


class EffectDone(Event):
    """The effect succeeded; its checks are still to be made."""

    kind: Literal["effect_done"] = "effect_done"
    node: str
    attempt: int
    result: Result


class StepSucceeded(Event):
    kind: Literal["step_succeeded"] = "step_succeeded"
    node: str
    attempt: int
    result: Result = Result()
    evidence: str = ""
    """Which checks held."""


class StepFailed(Event):
    """This attempt is over, for certain: a next one is a new effect."""

    kind: Literal["step_failed"] = "step_failed"
    node: str
    attempt: int
    failure: Failure


class StepBlocked(Event):
    """The office or its door failed, so that the effect's outcome is not known *yet*: it will be asked for by its key. The call
    began when the journal had `since_seq` entries."""

    kind: Literal["step_blocked"] = "step_blocked"
    node: str
    attempt: int
    failure: Failure
    since_seq: int
    model: str = ""
    """That could not be asked."""


class StepUnverified(Event):
    """The effect was started and lost: whether it happened is unknown, unless a check can tell."""

    kind: Literal["step_unverified"] = "step_unverified"
    node: str
    attempt: int
    failure: Failure


class StepSkipped(Event):
    kind: Literal["step_skipped"] = "step_skipped"
    node: str
    reason: str


class SnapshotTaken(Event):
    """Of the whole office, before a step's effect or after its checks; written together with `StepStarted` or `StepSucceeded`.
    What the journal up to `at_seq` says to be done is in it. `verified`: nothing else is."""

    kind: Literal["snapshot_taken"] = "snapshot_taken"
    node: str
    attempt: int
    snapshot: str
    before: bool
    verified: bool
    at_seq: int


# --- thinking ------------------------------------------------------------------------------------------------------------
class Thinking(Event):
    """The brain was asked, and what it decided. The intent of every tool call in it, too."""

    kind: Literal["thinking"] = "thinking"
    node: str
    attempt: int
    turn: int
    """Counts from 0 in each attempt."""
    thought: Thought
    duration_s: float = 0.0


class CallDone(Event):
    """What came of one call of a turn's thought, or of its question, wait or proposal (then `index` is 0)."""

    kind: Literal["call_done"] = "call_done"
    node: str
    attempt: int
    turn: int
    index: int
    result: CallResult


class Reported(Event):
    """What a program that works on a step said of itself: a checkpoint to go on from, its session, its progress. Not evidence."""

    kind: Literal["reported"] = "reported"
    node: str
    attempt: int
    what: str
    data: JsonValue = None


class Waiting(Event):
    """The node rests until then, or until the other run is over."""

    kind: Literal["waiting"] = "waiting"
    node: str
    until: datetime
    run: str | None = None
    reason: str = ""


class SubGoalEnded(Event):
    """A run that this one began, or waits for, is over."""

    kind: Literal["sub_goal_ended"] = "sub_goal_ended"
    run: str
    outcome: str
    summary: str = ""


# --- asking people -------------------------------------------------------------------------------------------------------
class Asked(Event):
    kind: Literal["asked"] = "asked"
    node: str
    question: Question


class QuestionAnswered(Event):
    """By a person, or by its own expiry (`by` is empty then). The first answer counts; nobody can write a second."""

    kind: Literal["question_answered"] = "question_answered"
    question: str
    answer: str
    by: str = ""


# --- the ladder ------------------------------------------------------------------------------------------------------
class RungEntered(Event):
    """A recovery begins. `joined`: another step's recovery of the office serves this one too, at no cost to its budget."""

    kind: Literal["rung_entered"] = "rung_entered"
    node: str
    rung: int
    reason: str
    evidence: str = ""
    not_before: datetime | None = None
    key: str = ""
    joined: bool = False


class RungDone(Event):
    kind: Literal["rung_done"] = "rung_done"
    node: str
    rung: int
    ok: bool
    evidence: str = ""


class OfficeRestored(Event):
    """Rung 6 put the office back to the snapshot, which has what was done up to `to_seq`. The nodes in `undone` are not in it
    and begin anew. `before` is a snapshot of what was there: the evidence."""

    kind: Literal["office_restored"] = "office_restored"
    node: str
    snapshot: str
    before: str
    to_seq: int
    undone: tuple[str, ...] = ()


AnyEvent = Annotated[
    RunCreated
    | Planned
    | Forked
    | RunClaimed
    | Parked
    | Answered
    | CancelRequested
    | RunSucceeded
    | RunFailed
    | RunCancelled
    | StepExpanded
    | StepStarted
    | EffectDone
    | StepSucceeded
    | StepFailed
    | StepBlocked
    | StepUnverified
    | StepSkipped
    | SnapshotTaken
    | RungEntered
    | RungDone
    | OfficeRestored
    | Thinking
    | CallDone
    | Reported
    | Waiting
    | SubGoalEnded
    | Asked
    | QuestionAnswered,
    Field(discriminator="kind"),
]
_ADAPTER: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


@dataclass(frozen=True)
class Record:
    """One entry of a journal. `seq` counts from 1 without gaps."""

    seq: int
    at: datetime
    event: AnyEvent


def encode(event: AnyEvent) -> str:
    """The event's fields but `kind`, as JSON that PostgreSQL's jsonb takes (it refuses NUL and lone surrogates)."""
    body = event.model_dump(mode="json", exclude={"kind"})
    return json.dumps(_storable(body), ensure_ascii=False)


def decode(kind: str, body: dict[str, Any]) -> AnyEvent:
    """The event that `encode` was given. Raises `pydantic.ValidationError` for a kind that this version does not know."""
    return _ADAPTER.validate_python({"kind": kind, **body})


def _storable(value: Any) -> Any:
    match value:
        case str():
            return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
        case dict():
            return {_storable(key): _storable(inner) for key, inner in value.items()}  # pyright: ignore[reportUnknownVariableType]
        case list():
            return [_storable(inner) for inner in value]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return value
