"""What a brain hands to the work engine: steps with what each does, needs, and may cost.

Everything here is data, kept in the journal with the run: a run goes on with the plan that it started with, whatever
becomes of the file that it came from.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

STEPS_MAX = 500
NODES_MAX = 2000
"""Steps with their `for_each` values counted singly."""
FOR_EACH_VALUES_MAX = 500
ITEM_CHARS_MAX = 200
PLAN_BYTES_MAX = 1024 * 1024
CONCURRENCY_DEFAULT = 8
CONCURRENCY_MAX = 64
STEP_TIMEOUT_S_DEFAULT = 3600.0
STEP_TIMEOUT_S_MAX = 7 * 86400.0
RETRIES_DEFAULT = 2
RETRIES_MAX = 100
RETRY_DELAY_S_DEFAULT = 2.0
RETRY_DELAY_S_MAX = 3600.0


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Retry(Part):
    """How often a failed step is tried again, and how long before each: `delay_s * backoff ** n`, jittered, and never more
    than `RETRY_DELAY_S_MAX`."""

    attempts: int = Field(default=RETRIES_DEFAULT, ge=0, le=RETRIES_MAX)
    delay_s: float = Field(default=RETRY_DELAY_S_DEFAULT, ge=0, le=RETRY_DELAY_S_MAX)
    backoff: float = Field(default=2.0, ge=1, le=10)


class RunScript(Part):
    kind: Literal["run"] = "run"
    script: str


class RunSql(Part):
    kind: Literal["sql"] = "sql"
    statement: str


class PutObject(Part):
    kind: Literal["put"] = "put"
    path: str
    bucket: str
    name: str


class Notify(Part):
    kind: Literal["notify"] = "notify"
    subject: str
    body: str = ""


class Work(Part):
    """Done by the run's brain with the office's tools, until it says that it is done. `purpose` as `thoughts.Purpose`."""

    kind: Literal["work"] = "work"
    instructions: str
    purpose: str = "work"
    about: str = ""
    """The step that it is to mend, or for whose sake another plan is wanted."""


Effect = Annotated[RunScript | RunSql | PutObject | Notify | Work, Field(discriminator="kind")]


def described(effect: Effect) -> str:
    """What it does, for people."""
    match effect:
        case RunScript():
            return effect.script
        case RunSql():
            return effect.statement
        case Work():
            return effect.instructions
        case PutObject():
            return f"{effect.path} → {effect.bucket}/{effect.name}"
        case Notify():
            return f"{effect.subject}\n\n{effect.body}".strip()


class SqlCheck(Part):
    """Holds when the first value of the first row equals `equals` (without `equals`: when it is true, or a number but 0)."""

    kind: Literal["sql"] = "sql"
    statement: str
    equals: JsonValue = None


class RunCheck(Part):
    """Holds when the script exits with 0. It must not change anything: it may run more than once."""

    kind: Literal["run"] = "run"
    script: str


class FileCheck(Part):
    """Holds when the file exists in the office and is not empty."""

    kind: Literal["file"] = "file"
    path: str


class HttpCheck(Part):
    """Holds when a GET, made inside the office (through its egress, unless it is of the office itself), is answered with
    `status`, and the body has `contains` in it."""

    kind: Literal["http"] = "http"
    url: str
    status: int = 200
    contains: str = ""


Check = Annotated[SqlCheck | RunCheck | FileCheck | HttpCheck, Field(discriminator="kind")]


class OnLost(StrEnum):
    """What to do about an effect that may or may not have happened, where no check can tell."""

    ASK = "ask"
    RETRY = "retry"


class Approval(Part):
    """A person has to allow the step before it begins."""

    text: str = ""
    expires_after_s: float | None = Field(default=None, gt=0)
    escalate_to: str = ""
    """Whom to ask when nobody answered in time; without it the answer is no then."""


class ForEach(Part):
    """One node per value: given, or the first column of a query (run once, when the step becomes ready)."""

    values: tuple[str, ...] | None = None
    sql: str | None = None


class PlanStep(Part):
    id: str
    name: str = ""
    needs: tuple[str, ...] = ()
    effect: Effect
    env: dict[str, str] = Field(default_factory=dict[str, str])
    cwd: str | None = None
    timeout_s: float = Field(default=STEP_TIMEOUT_S_DEFAULT, gt=0, le=STEP_TIMEOUT_S_MAX)
    retry: Retry = Retry()
    verify: tuple[Check, ...] = ()
    for_each: ForEach | None = None
    condition: str | None = None
    on_error: str | None = None
    """Script of rung 1: it is given what the step printed when it failed."""
    on_lost: OnLost = OnLost.ASK
    risky: bool = False
    """It may leave the office worse than it found it: a snapshot is taken before it, and the ladder goes back to that."""
    snapshot: bool | None = None
    """Whether one is taken after it; None: if it has checks, and not too soon after another."""
    approval: Approval | None = None
    undo: str | None = None
    """Script that takes back what the step did, for a plan that goes another way (the last one done is undone first)."""
    final: bool = False
    """What it does outside of the office cannot be undone, so the ladder never goes back to before it."""


class OnFailure(StrEnum):
    ASK = "ask"
    FAIL = "fail"


class Plan(Part):
    steps: tuple[PlanStep, ...]
    env: dict[str, str] = Field(default_factory=dict[str, str])
    inputs: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    concurrency: int = Field(default=CONCURRENCY_DEFAULT, ge=1, le=CONCURRENCY_MAX)
    on_failure: OnFailure = OnFailure.ASK
    """What follows when the ladder ends: park and ask a person, or let the run fail."""


def node_id(step: str, item: str | None) -> str:
    """The plan node of a step, or of one value of its `for_each`."""
    return step if item is None else f"{step}[{item}]"


def item_text(value: Any) -> str:
    """How a value is written into scripts and node names: text as it is, everything else as in JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
