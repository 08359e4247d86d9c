"""What the brains that are programs of the office have in common: their plan, what they are told, what was told of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from pydantic import JsonValue

from tenure.brains.base import REPORTS_MAX, Errand
from tenure.errors import UsageError
from tenure.work.failures import Failure, FailureClass, tail
from tenure.work.plan import STEP_TIMEOUT_S_MAX, Plan, PlanStep, Work
from tenure.work.thoughts import USAGE_REPORT, Purpose, Question, Usage

ENV_BYTES_MAX = 64 * 1024
"""Of one variable; of a longer text the last part is given. (Linux takes 128 KiB.)"""
REPORTS_KEPT = 100
"""Of `REPORTS_MAX`, for what has to be told whatever else was: sessions, questions, the last checkpoint."""
_YES = frozenset({"yes", "y", "ok", "true", "allow", "allowed", "approve", "approved"})


def one_step(goal: str, inputs: Mapping[str, Any]) -> Plan:
    """A single step, in which the program does all. It may take long: what ends it is its own silence, or the run's budget."""
    if not goal.strip():
        raise UsageError("A run needs a goal.")
    given = cast("dict[str, JsonValue]", json.loads(json.dumps(dict(inputs), default=str)))
    step = PlanStep(id="work", effect=Work(instructions=goal), timeout_s=STEP_TIMEOUT_S_MAX)
    return Plan(steps=(step,), inputs=given)


def refusal(errand: Errand, brain: str) -> Failure | None:
    """Why this errand is none for a program, if so."""
    if errand.purpose.plans:
        message = f"The brain {brain} makes no plans: it works on steps."
    elif not errand.settings.command:
        message = f"The brain {brain} has no command. Set the agent's `command` to the program that is to work."
    else:
        return None
    return Failure(kind=FailureClass.USAGE, message=message)


def environment(errand: Errand) -> dict[str, str]:
    """What the program finds in its environment."""
    answers = answers_by_name(errand)
    told = {
        "TENURE_GOAL": errand.goal,
        "TENURE_INSTRUCTIONS": errand.instructions,
        "TENURE_PURPOSE": Purpose(errand.purpose).value,
        "TENURE_RUN": errand.run_id,
        "TENURE_AGENT": errand.agent,
        "TENURE_STEP": errand.node,
        "TENURE_ATTEMPT": str(errand.attempt),
        "TENURE_TROUBLE": errand.trouble,
        "TENURE_ANSWERS": json.dumps(answers, ensure_ascii=False),
        "TENURE_ANSWER": list(answers.values())[-1] if answers else "",
    }
    return {**errand.settings.env, **errand.env, **{name: _fit(value) for name, value in told.items()}}


def _fit(value: str) -> str:
    return tail(value.replace("\0", "\ufffd"), ENV_BYTES_MAX)


def is_yes(answer: str) -> bool:
    """Whether a person's answer allows what was asked."""
    return answer.strip().strip(".!").lower() in _YES


# --- questions: `asked` is reported before the program is left, so that a crash between the two asks no other question -------
def asked(errand: Errand) -> list[dict[str, Any]]:
    """What was reported of every question, in order: `key`, `question` and what else the brain noted."""
    found: dict[str, dict[str, Any]] = {}
    for report in errand.reports:
        if report.what == "asked" and isinstance(report.data, dict):
            data = cast("dict[str, Any]", report.data)
            found[str(data["question"]["id"])] = data
    return list(found.values())


def unanswered(errand: Errand) -> Question | None:
    """A question of this attempt for whose answer it waits."""
    for data in asked(errand):
        if data["key"] == errand.key and data["question"]["id"] not in errand.answers:
            return Question.model_validate(data["question"])
    return None


def answers_by_name(errand: Errand) -> dict[str, str]:
    """Of the questions that were answered, by the name that the program gave each, the latest last."""
    return {
        str(data.get("name", data["question"]["id"])): errand.answers[data["question"]["id"]]
        for data in asked(errand)
        if data["question"]["id"] in errand.answers
    }


# --- reports -----------------------------------------------------------------------------------------------------------------
class Reporting:
    """Counts what is reported, so that a program that tells much is told of less and less often, and never too often."""

    def __init__(self, errand: Errand, every_s: float) -> None:
        self._errand, self._every_s = errand, every_s
        self._count, self._bytes = len(errand.reports), 0
        self._due_s = 0.0

    def is_due(self, now_s: float) -> bool:
        return now_s >= self._due_s and self._count < REPORTS_MAX - REPORTS_KEPT

    async def tell(self, what: str, data: JsonValue, now_s: float) -> None:
        """The next one is due later. Nothing more once the limit is reached."""
        if self._count >= REPORTS_MAX:
            return
        self._count += 1
        self._bytes += len(json.dumps(data))
        self._due_s = now_s + spacing_s(self._every_s, self._count, self._bytes)
        await self._errand.report(what, data)

    async def must_tell(self, what: str, data: JsonValue) -> None:
        """What has to be in the journal. Nothing more once the limit is reached."""
        if self._count < REPORTS_MAX:
            self._count += 1
            await self._errand.report(what, data)


class Spending:
    """Reports what a program took. It tells the sum of its session each time; what is new since the last report counts."""

    def __init__(self, errand: Errand, reporting: Reporting, session: str) -> None:
        self._reporting, self._session = reporting, session
        self._program = errand.settings.command[0] if errand.settings.command else ""
        self._told = next(
            (
                _usage(report.data)
                for report in reversed(errand.reports)
                if report.what == USAGE_REPORT and isinstance(report.data, dict) and report.data["session"] == session
            ),
            Usage(requests=0),
        )

    async def tell(self, total: Mapping[str, JsonValue], **more: JsonValue) -> bool:
        """Whether anything was new. `total` has `input_tokens`, `output_tokens` and `cost_usd`, as far as they are known."""
        now = _usage(total)
        new: dict[str, JsonValue] = {
            "requests": 0,
            "input_tokens": max(0, now.input_tokens - self._told.input_tokens),
            "output_tokens": max(0, now.output_tokens - self._told.output_tokens),
            "cost_usd": None if now.cost_usd is None else max(0.0, now.cost_usd - (self._told.cost_usd or 0.0)),
        }
        if not any(new.values()):
            return False
        known = {name: max(value, getattr(self._told, name) or 0) for name, value in now if value is not None}
        self._told = Usage(**known)
        said: dict[str, JsonValue] = {"session": self._session, "program": self._program, **known, "new": new, **more}
        del said["requests"]
        await self._reporting.must_tell(USAGE_REPORT, said)
        return True


def _usage(total: Mapping[str, Any]) -> Usage:
    given = {name: total[name] for name in ("input_tokens", "output_tokens", "cost_usd") if total.get(name) is not None}
    return Usage(requests=0, **given)


REPORTS_PER_SPACING = 500
BYTES_PER_SPACING = 4 * 1024 * 1024
DOUBLED_MAX = 40


def spacing_s(every_s: float, reports: int, total_bytes: int) -> float:
    """How long after a report the next one may follow: twice as long after each 500 of them, or 4 MiB."""
    doubled = reports // REPORTS_PER_SPACING + total_bytes // BYTES_PER_SPACING
    return every_s * 2.0 ** min(doubled, DOUBLED_MAX)
