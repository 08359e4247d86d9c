"""What passes between the engine and a brain that thinks: decisions, what came of them, what they cost. All of it is data of
the journal."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from tenure.work.plan import Plan

CALLS_MAX = 32
"""Tools called in one turn."""
RESULT_CHARS_MAX = 32_000
"""Of what a tool gave, in the journal and before the brain; more is cut in the middle, and says where the whole is."""
PROGRAMS = ("acp", "process")
"""Brains that are programs of the office."""
QUESTION_CHARS_MAX = 10_000
OPTIONS_MAX = 20


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Purpose(StrEnum):
    """Why a brain is asked."""

    PLAN = "plan"
    """For the steps towards the goal: it ends with `Propose`."""
    WORK = "work"
    """To do what a step says: it ends with `Finish`, which the step's checks confirm or refute."""
    MEND = "mend"
    """To take out of the way what keeps another step from succeeding, which is then tried again: it ends with `Finish`."""
    REPLAN = "replan"
    """For other steps, since those there are do not lead to the goal: it ends with `Propose`."""

    @property
    def plans(self) -> bool:
        return self in (Purpose.PLAN, Purpose.REPLAN)


# --- decisions -----------------------------------------------------------------------------------------------------------
class ToolCall(Part):
    """`id` is the brain's own name for it."""

    id: str
    tool: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])


class CallTools(Part):
    """All at once; they are independent of each other."""

    kind: Literal["call"] = "call"
    calls: tuple[ToolCall, ...] = Field(max_length=CALLS_MAX)


class Propose(Part):
    """These steps instead of all that are not done; the steps that are done stay. One that is left out though it is done is
    undone, by its `undo`."""

    kind: Literal["plan"] = "plan"
    plan: Plan
    reason: str = ""


class Ask(Part):
    """A person. The run goes on with whatever else it has to do, or parks."""

    kind: Literal["ask"] = "ask"
    text: str = Field(max_length=QUESTION_CHARS_MAX)
    options: tuple[str, ...] = Field(default=(), max_length=OPTIONS_MAX)
    expires_after_s: float | None = None


class Wait(Part):
    """For seconds, or until another run is over (`run`, then `for_s` at most)."""

    kind: Literal["wait"] = "wait"
    for_s: float = Field(ge=0)
    run: str | None = None
    reason: str = ""


class Finish(Part):
    """It says that the work is done. Checks decide."""

    kind: Literal["finish"] = "finish"
    summary: str = ""


class Say(Part):
    """Neither a tool nor an end: it only said something. It is told what it may do."""

    kind: Literal["say"] = "say"


Decision = Annotated[CallTools | Propose | Ask | Wait | Finish | Say, Field(discriminator="kind")]


class Usage(Part):
    """What one thought took. `cost_usd` None: nobody knows the model's price."""

    requests: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def plus(self, other: Usage) -> Usage:
        """Both; the cost as far as it is known."""
        known = [one for one in (self.cost_usd, other.cost_usd) if one is not None]
        return Usage(
            requests=self.requests + other.requests,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_usd=sum(known) if known else None,
        )


NOTHING = Usage(requests=0)
USAGE_REPORT = "usage"
"""The name of a program's report (`Reported`) of what it took: a `Usage` under `new`, since the last such report."""


class Thought(Part):
    """`memory` is for the brain alone: what it needs to go on with the conversation, such as a provider's message."""

    decision: Decision
    text: str = ""
    """What it said besides, for people."""
    model: str = ""
    usage: Usage = Usage()
    memory: JsonValue = None


# --- what came of them ---------------------------------------------------------------------------------------------------
class CallResult(Part):
    """Of one tool call, or the answer to any other decision. `unverified`: it was begun and nobody knows how it ended."""

    ok: bool
    output: str = ""
    unverified: bool = False
    duration_s: float | None = None


class Turn(Part):
    """One thought and what came of it: a result per call, or one for any other decision that was answered. `note` is what the
    engine tells the brain after it: a check that failed, a warning."""

    thought: Thought
    results: tuple[CallResult | None, ...] = ()
    note: str = ""


# --- questions -----------------------------------------------------------------------------------------------------------
class OnExpiry(StrEnum):
    ESCALATE = "escalate"
    """Asked once more, of whom it names as next, without an end."""
    DENY = "deny"
    """As if answered with `no`."""


class Question(Part):
    """`id` names it for good: an answer is for one question, once."""

    id: str
    text: str
    options: tuple[str, ...] = ()
    evidence: str = ""
    approval: bool = False
    """Yes or no: whether a step or a tool call may go on."""
    expires_at: datetime | None = None
    on_expiry: OnExpiry = OnExpiry.DENY
    escalate_to: str = ""
    to: str = ""
    """Whom it is asked of; empty: the owner."""
    replaces: str = ""
    """The question that nobody answered in time."""


# --- what it may cost ----------------------------------------------------------------------------------------------------
class Budget(Part):
    """Of one run; None: as much as it takes. A healthy run is not cut by a clock: there is none here."""

    tokens: int | None = Field(default=None, gt=0)
    cost_usd: float | None = Field(default=None, gt=0)
    requests: int | None = Field(default=None, gt=0)
    agent_day_cost_usd: float | None = Field(default=None, gt=0)
    """Of all runs of the agent, per day in UTC."""
    turns_without_progress: int = Field(default=60, gt=0)
    """Thoughts since a step's checks last held."""


class BrainSettings(Part):
    """How an agent's brain thinks. Kept in each run's journal, as it was when the run began; never a key."""

    brain: str = "pydantic_ai"
    models: tuple[str, ...] = ()
    """`provider:model`; the first is asked, the next ones where it fails (rung 2)."""
    base_url: str | None = None
    """Of an OpenAI-compatible server, for models of `openai:`."""
    key_env: str | None = None
    """Environment variable of the worker with the provider's key; None: the provider's usual one."""
    model_settings: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    context_tokens_max: int = Field(default=100_000, ge=2_000)
    command: tuple[str, ...] = ()
    """Of brains that are programs of the office."""
    env: dict[str, str] = Field(default_factory=dict[str, str])
    budget: Budget = Budget()
    approve: tuple[str, ...] = ()
    """Tools (`fnmatch` patterns) that a person has to allow, each call."""

    @property
    def thinks(self) -> bool:
        """Whether the engine acts for it, turn by turn; else it is a program that acts by itself."""
        return self.brain not in PROGRAMS
