"""`propose_plan`: a plan in a shape that models manage, checked as hard as a playbook, every problem said back in words."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from tenure.brains.base import StepSummary, Task
from tenure.brains.playbook.graph import cycle_in, upstream_of
from tenure.brains.playbook.problems import did_you_mean
from tenure.brains.playbook.schema import STEP_ID
from tenure.errors import InvalidName
from tenure.names import check_bucket
from tenure.work import plan as p
from tenure.work import template
from tenure.work.state import Phase

STEPS_PROPOSED_MAX = 100
CHECKS_MAX = 20
TEXT_CHARS_MAX = 32_000
PROBLEMS_SHOWN_MAX = 20
_DONE = (Phase.SUCCEEDED, Phase.SKIPPED)
_UNDER_WAY = (Phase.RUNNING, Phase.EFFECTED, Phase.UNVERIFIED, Phase.ASKING, Phase.WAITING)
KINDS = ("work", "run", "sql", "put", "notify")
CHECKS = ("run", "sql", "file", "http")


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Put(_Shape):
    path: str = Field(min_length=1)
    bucket: str = Field(min_length=1)
    name: str = Field(min_length=1)


class _Notify(_Shape):
    subject: str = Field(min_length=1)
    body: str = ""


class _Check(_Shape):
    run: str | None = None
    sql: str | None = None
    equals: JsonValue = None
    file: str | None = None
    http: str | None = None
    status: int = Field(default=200, ge=100, le=599)
    contains: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> _Check:
        if sum(bool(getattr(self, kind)) for kind in CHECKS) != 1:
            raise ValueError(f"a check has exactly one of {', '.join(CHECKS)}")
        if self.equals is not None and not self.sql:
            raise ValueError("equals belongs to sql")
        return self


class _Step(_Shape):
    id: str = Field(pattern=STEP_ID)
    what: str = Field(min_length=1, max_length=500)
    work: str | None = None
    run: str | None = None
    sql: str | None = None
    put: _Put | None = None
    notify: _Notify | None = None
    needs: tuple[str, ...] = ()
    checks: tuple[_Check, ...] = Field(default=(), max_length=CHECKS_MAX)
    retry: int = Field(default=p.RETRIES_DEFAULT, ge=0, le=p.RETRIES_MAX)
    timeout_s: float = Field(default=p.STEP_TIMEOUT_S_DEFAULT, gt=0, le=p.STEP_TIMEOUT_S_MAX)
    undo: str | None = None
    risky: bool = False
    approval: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> _Step:
        given = [kind for kind in KINDS if getattr(self, kind)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)} (found {', '.join(given) or 'none'})")
        if self.work and not self.checks:
            raise ValueError("a work step needs at least one check that a machine can make: run, sql, file or http")
        return self


class Proposal(_Shape):
    reason: str = Field(default="", max_length=4000)
    steps: tuple[_Step, ...] = Field(min_length=1, max_length=STEPS_PROPOSED_MAX)
    undo: tuple[str, ...] = ()


def plan_of(proposal: Proposal, task: Task) -> p.Plan | str:
    """The plan, or its problems, a line each. Steps that are done stay, unless the proposal undoes them."""
    done = {_step_of(step): step for step in task.steps if step.state in _DONE and step.id != task.node}
    kept = {id: step for id, step in done.items() if id not in proposal.undo}
    there = {_step_of(step) for step in task.steps if step.state in _UNDER_WAY and step.id != task.node} | kept.keys()
    steps = [step for step in proposal.steps if step.id not in kept]
    problems = _problems(steps, there, proposal, done)
    if problems:
        more = len(problems) - PROBLEMS_SHOWN_MAX
        shown = "\n".join(f"- {problem}" for problem in problems[:PROBLEMS_SHOWN_MAX])
        return f"{shown}\n- … and {more} more" if more > 0 else shown
    try:
        return p.Plan(
            # One that can be undone would be, were it left out.
            steps=(*(s.step for s in kept.values() if s.step and s.step.undo), *(_step(step) for step in steps)),
            inputs=dict(task.inputs),
        )
    except ValidationError as error:
        return "\n".join(f"- {violation['msg']}" for violation in error.errors(include_url=False, include_input=False))


def _step_of(summary: StepSummary) -> str:
    """The step's id, also for one value of a `for_each`."""
    return summary.step.id if summary.step else summary.id.partition("[")[0]


def _problems(steps: list[_Step], there: Set[str], proposal: Proposal, done: Mapping[str, StepSummary]) -> list[str]:
    given = [step.id for step in steps]
    known = {*there, *given}
    problems = [f"undo: no step {name!r} is done" for name in proposal.undo if name not in done]
    if not steps:
        problems.append("steps: all of these are done already; propose what is still to do")
    for name in sorted({name for name in given if given.count(name) > 1}):
        problems.append(f"{name}: the id is given twice")
    for step in steps:
        for need in step.needs:
            if need == step.id:
                problems.append(f"{step.id}: it cannot need itself")
            elif need not in known:
                problems.append(f"{step.id}: needs {need!r}, and there is no such step{did_you_mean(need, known)}")
    if problems:
        return problems
    needs: dict[str, tuple[str, ...]] = {**dict.fromkeys(there, ()), **{step.id: step.needs for step in steps}}
    if cycle := cycle_in(needs):
        return [f"steps need each other in a circle: {' → '.join([*cycle, cycle[0]])}"]
    upstream = upstream_of(needs)
    return [problem for step in steps for problem in _problems_of(step, proposal, upstream[step.id])]


def _problems_of(step: _Step, proposal: Proposal, upstream: list[str]) -> list[str]:
    problems: list[str] = []
    if step.put:
        try:
            check_bucket(step.put.bucket)
        except InvalidName as error:
            problems.append(f"{step.id}: put.bucket: {error.message}")
    for text in _texts(step):
        if len(text) > TEXT_CHARS_MAX:
            problems.append(f"{step.id}: a text of {len(text)} characters; {TEXT_CHARS_MAX} are allowed")
        found = template.check(text, inputs=[], upstream=upstream, has_item=False, suggest=did_you_mean)
        problems += [f"{step.id}: {problem}" for problem in found]
    return problems


def _texts(step: _Step) -> list[str]:
    texts = [step.work, step.run, step.sql, step.undo]
    texts += [step.put.path, step.put.bucket, step.put.name] if step.put else []
    texts += [step.notify.subject, step.notify.body] if step.notify else []
    texts += [text for check in step.checks for text in (check.run, check.sql, check.file, check.http)]
    return [text for text in texts if text]


def _step(step: _Step) -> p.PlanStep:
    return p.PlanStep(
        id=step.id,
        name=step.what,
        needs=tuple(dict.fromkeys(step.needs)),
        effect=_effect(step),
        timeout_s=step.timeout_s,
        retry=p.Retry(attempts=step.retry),
        verify=tuple(_check(check) for check in step.checks),
        risky=step.risky,
        undo=step.undo or None,
        approval=p.Approval(text=step.approval) if step.approval else None,
    )


def _effect(step: _Step) -> p.Effect:
    if step.work:
        return p.Work(instructions=step.work)
    if step.run:
        return p.RunScript(script=step.run)
    if step.sql:
        return p.RunSql(statement=step.sql)
    if step.put:
        return p.PutObject(path=step.put.path, bucket=step.put.bucket, name=step.put.name)
    assert step.notify is not None
    return p.Notify(subject=step.notify.subject, body=step.notify.body)


def _check(check: _Check) -> p.Check:
    if check.run:
        return p.RunCheck(script=check.run)
    if check.sql:
        return p.SqlCheck(statement=check.sql, equals=check.equals)
    if check.file:
        return p.FileCheck(path=check.file)
    assert check.http is not None
    return p.HttpCheck(url=check.http, status=check.status, contains=check.contains)


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


_CHECK_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "Exactly one of run, sql, file, http.",
    "properties": {
        "run": _text(
            "Shell script that exits with 0 when the step is done. It changes nothing: it may run more than once."
        ),
        "sql": _text("Query; holds when its first value is true or not 0, or the same as `equals`."),
        "equals": _text("With sql: the value, as text."),
        "file": _text("Path of a file in the office that has to exist and not be empty."),
        "http": _text("URL; holds when a GET from the office is answered with `status`."),
        "status": {"type": "integer", "description": "With http; 200 when it is left out."},
        "contains": _text("With http: what the body has to contain."),
    },
}
_STEP_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "Exactly one of work, run, sql, put, notify says what it does.",
    "properties": {
        "id": _text("Short name of letters, digits, - and _, such as load-data."),
        "what": _text("One line for people."),
        "work": _text(
            "What you shall do with your tools, for a step that takes judgement. Write down all that you need to "
            "know then: you will see the goal, the steps and their output, but not this conversation. Needs checks."
        ),
        "run": _text("Shell script, run as it is."),
        "sql": _text("Statements for the office's PostgreSQL, in one transaction."),
        "put": {
            "type": "object",
            "description": "Copies a file of the office into its object storage.",
            "properties": {"path": _text("File."), "bucket": _text("Bucket."), "name": _text("Name of the object.")},
            "required": ["path", "bucket", "name"],
        },
        "notify": {
            "type": "object",
            "description": "Leaves a message in the owner's inbox.",
            "properties": {"subject": _text("Subject."), "body": _text("Body.")},
            "required": ["subject"],
        },
        "needs": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Ids of steps that have to be done before. "
            "Steps that do not need each other run at the same time.",
        },
        "checks": {"type": "array", "items": _CHECK_SCHEMA, "description": "By which the step is judged."},
        "retry": {"type": "integer", "minimum": 0, "description": "How often it is tried again when it fails."},
        "timeout_s": {"type": "number", "description": "Seconds that it may take."},
        "undo": _text("Shell script that takes back what the step did, should the plan change."),
        "risky": {"type": "boolean", "description": "True: a snapshot of the office is taken before it."},
        "approval": _text("Given: a person has to allow the step before it begins; what they should know."),
    },
    "required": ["id", "what"],
}
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": _text("Why these steps."),
        "steps": {
            "type": "array",
            "items": _STEP_SCHEMA,
            "description": "All steps that are still to be done. Those that are "
            "done stay without being repeated; new ones may need them.",
        },
        "undo": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Ids of steps that are done and have to be taken back.",
        },
    },
    "required": ["steps"],
}
