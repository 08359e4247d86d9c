"""The tools that are decisions: the engine carries them out, not the office. Which there are depends on the purpose."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tenure.brains.base import Task
from tenure.brains.models.proposals import PARAMETERS, Proposal, plan_of
from tenure.work.thoughts import (
    OPTIONS_MAX,
    QUESTION_CHARS_MAX,
    Ask,
    Finish,
    Propose,
    Purpose,
    Wait,
)
from tenure.work.toolbox import ToolSpec

FINISH, ASK, WAIT, PROPOSE = "finish", "ask_person", "wait", "propose_plan"
WAIT_S_MAX = 7 * 86400.0
RUN_WAIT_S_DEFAULT = 86400.0
SUMMARY_CHARS_MAX = 10_000
OPTION_CHARS_MAX = 200

_FOR = {
    Purpose.PLAN: (PROPOSE, ASK),
    Purpose.REPLAN: (PROPOSE, ASK),
    Purpose.WORK: (FINISH, ASK, WAIT, PROPOSE),
    Purpose.MEND: (FINISH, ASK, WAIT),
}


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Finish(_Arguments):
    summary: str = Field(max_length=SUMMARY_CHARS_MAX)


class _Ask(_Arguments):
    question: str = Field(min_length=1, max_length=QUESTION_CHARS_MAX)
    options: tuple[str, ...] = Field(default=(), max_length=OPTIONS_MAX)


class _Wait(_Arguments):
    seconds: float | None = Field(default=None, ge=0, le=WAIT_S_MAX)
    run: str | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _something(self) -> _Wait:
        if self.seconds is None and not self.run:
            raise ValueError("give `seconds`, or the id of the `run` to wait for")
        return self


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_SPECS = {
    FINISH: ToolSpec(
        FINISH,
        "Say that the work is done. The checks are then made: if one does not hold, you are told and go on. Call it alone.",
        _object({"summary": {"type": "string", "description": "What was done, and where the result is."}}, "summary"),
    ),
    ASK: ToolSpec(
        ASK,
        "Ask the person who owns you, when nothing here can tell you or when only they may decide. The work rests until the "
        "answer comes, maybe for days. Call it alone.",
        _object(
            {
                "question": {"type": "string", "description": "With all that is needed to answer it."},
                "options": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "Answers to choose from; leave it out for a free answer.",
                },
            },
            "question",
        ),
    ),
    WAIT: ToolSpec(
        WAIT,
        "Rest for some seconds, or until another run is over; nothing is spent meanwhile. Call it alone.",
        _object(
            {
                "seconds": {"type": "number", "minimum": 0, "maximum": WAIT_S_MAX},
                "run": {"type": "string", "description": "Id of the run to wait for, then `seconds` at most."},
                "reason": {"type": "string"},
            },
        ),
    ),
    PROPOSE: ToolSpec(
        PROPOSE,
        "Propose the steps towards the goal. They take the place of all steps that are not done. Every step of the kind "
        "`work` needs at least one check that a machine can make; a step is done when its checks hold, whatever anybody "
        "says. Call it alone.",
        PARAMETERS,
    ),
}


def controls_for(purpose: Purpose) -> tuple[ToolSpec, ...]:
    return tuple(_SPECS[name] for name in _FOR[purpose])


def is_control(name: str) -> bool:
    return name in _SPECS


def decide(name: str, arguments: dict[str, Any], task: Task) -> Ask | Finish | Propose | Wait | str:
    """The decision that a call of the control tool means, or what is wrong with it, in words for the model."""
    arguments = _without_nulls(arguments)
    try:
        match name:
            case "finish":
                return Finish(summary=_Finish.model_validate(arguments).summary)
            case "ask_person":
                asked = _Ask.model_validate(arguments)
                return Ask(text=asked.question, options=tuple(option[:OPTION_CHARS_MAX] for option in asked.options))
            case "wait":
                wait = _Wait.model_validate(arguments)
                for_s = RUN_WAIT_S_DEFAULT if wait.seconds is None else wait.seconds
                return Wait(for_s=for_s, run=wait.run or None, reason=wait.reason)
            case _:
                proposal = Proposal.model_validate(arguments)
    except ValidationError as error:
        return in_words(error)
    plan = plan_of(proposal, task)
    return plan if isinstance(plan, str) else Propose(plan=plan, reason=proposal.reason)


def _without_nulls(value: Any) -> Any:
    """Models that have to name every field say null for what they leave out."""
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        return {key: _without_nulls(inner) for key, inner in given.items() if inner is not None}
    return [_without_nulls(inner) for inner in cast("list[Any]", value)] if isinstance(value, list) else value


def in_words(error: ValidationError) -> str:
    """Each violation with the place where it is, one per line."""
    lines: list[str] = []
    for violation in error.errors(include_url=False, include_input=False):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in violation["loc"]).lstrip(".")
        message = violation["msg"].removeprefix("Value error, ")
        lines.append(f"- {place}: {message}" if place else f"- {message}")
    return "\n".join(lines)
