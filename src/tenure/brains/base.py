"""The contract of a brain: what turns a goal into steps, and does those that need judgement.

Two kinds do the work of a step (`Work`): a *thinker* decides turn by turn, and the engine acts (`pydantic_ai`); a *program*
acts in the office itself (`acp`, `process`). Neither is believed: a step is done when its checks hold.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import JsonValue

from tenure.work.effects import Outcome
from tenure.work.failures import Failure
from tenure.work.hands import Hands
from tenure.work.plan import Check, Plan, PlanStep
from tenure.work.thoughts import BrainSettings, Purpose, Thought, Turn
from tenure.work.toolbox import ToolSpec


class Brain(Protocol):
    """Plans; never acts. What it decides becomes events of the run's journal, and workers act on those."""

    @property
    def name(self) -> str:
        """A short word for listings and the journal, such as "playbook"."""
        ...

    def plan(self, goal: str, inputs: Mapping[str, Any]) -> Plan:
        """The steps towards `goal`, without thinking: for a brain that thinks, a single step in which it does. Raises
        `UsageError` (or a class below it) when there is no plan for these inputs."""
        ...


@dataclass(frozen=True)
class StepSummary:
    """One step of the plan. `state` as in `tenure.work.state.Phase`; `output` the last part of what it gave or said."""

    id: str
    state: str
    what: str = ""
    output: str = ""
    step: PlanStep | None = None
    """As it stands in the plan: a proposal that has it again keeps it."""


@dataclass(frozen=True)
class Left:
    """What of the run's budget is left; None: not limited."""

    tokens: int | None = None
    cost_usd: float | None = None
    requests: int | None = None


@dataclass(frozen=True)
class Task:
    """What a thinker is asked: everything it may know. It keeps nothing itself, so that any worker can ask on."""

    run_id: str
    agent: str
    node: str
    purpose: Purpose
    goal: str
    instructions: str
    settings: BrainSettings
    model: str = ""
    """Of `settings.models`, the one to ask."""
    inputs: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    steps: tuple[StepSummary, ...] = ()
    checks: tuple[Check, ...] = ()
    """By which the work, or in the end the goal, is judged."""
    trouble: str = ""
    """What went wrong, when it is asked for that reason."""
    turns: tuple[Turn, ...] = ()
    """The conversation so far; every call in it has its result, but for `None` where it was cut off."""
    tools: tuple[ToolSpec, ...] = ()
    """Of the office. Planning, asking, waiting, finishing are decisions, not tools of the office."""
    left: Left = Left()
    context_tokens_max: int = 100_000
    """Of one request; a longer conversation is to be compacted."""
    answer: str = ""
    """What the owner said when the run was parked and went on."""


class Thinker(Protocol):
    """Asks one question of a model: state, tools, budget → a decision."""

    async def think(self, task: Task) -> Thought:
        """The next decision. Raises `ModelError` when the model cannot be asked or makes no sense (`retry_after_s` where it
        said so), `ContextTooLong`, `Unauthenticated`, and `UsageError` when it cannot be asked this way at all. Bounded by a
        timeout of its own. May be called again for the same task."""
        ...


@dataclass(frozen=True)
class Report:
    """What the program said earlier in this attempt, or in the one before it; the journal has it."""

    what: str
    data: JsonValue = None


@dataclass(frozen=True)
class Errand:
    """What a program is sent with. `report` commits to the journal before it returns; it may be called at most
    `REPORTS_MAX` times."""

    hands: Hands
    run_id: str
    agent: str
    node: str
    attempt: int
    key: str
    """The idempotency key of this attempt: the same after a crash of the worker."""
    purpose: Purpose
    goal: str
    instructions: str
    settings: BrainSettings
    env: Mapping[str, str]
    timeout_s: float
    fresh: bool
    """False: another worker may have begun it under this key."""
    reports: tuple[Report, ...]
    trouble: str
    """Why the attempt before this one failed, in words for the program."""
    answers: Mapping[str, str]
    """Of people, by the questions that were asked with `Asks`."""
    report: Callable[[str, JsonValue], Awaitable[None]]
    over_budget: Callable[[], Awaitable[Failure | None]]
    """Why it may take no more, by what was reported of its usage; None while it may."""


REPORTS_MAX = 10_000


class Program(Protocol):
    """Works in the office by itself."""

    async def carry(self, errand: Errand) -> Outcome:
        """Runs to its end, or finds the one that runs and waits for that. Raises only `LeaseLost`. Cancelled (the worker ends,
        the run is cancelled), it leaves nothing behind that acts."""
        ...

    async def halt(self, errand: Errand) -> None:
        """Ends whatever still runs of an attempt whose worker died, when nobody will carry it on. Raises what `Hands` raises."""
        ...
