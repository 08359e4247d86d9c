"""From a model's answer to a decision. Whatever is wrong with its calls is said back to it; only what is no answer is raised."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, cast

import pydantic_core
from pydantic import JsonValue
from pydantic_ai.messages import ModelResponse, ToolCallPart

from tenure.brains.base import Task
from tenure.brains.models.controls import controls_for, decide, is_control
from tenure.brains.models.memory import Remembered, memory_of, recall
from tenure.brains.playbook.problems import did_you_mean
from tenure.errors import ModelError
from tenure.work.thoughts import CALLS_MAX, CallTools, Decision, Say, ToolCall

TEXT_CHARS_MAX = 20_000
"""Of what a model said besides, for people."""
CALLS_KEPT_MAX = 2 * CALLS_MAX
"""Of one answer; a model that loops inside of one writes thousands."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,40}\Z")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_CUT = " Your answer was cut off at its greatest length: write less at once, in several calls."


@dataclass(frozen=True)
class Read:
    decision: Decision
    text: str
    memory: JsonValue


def read(response: ModelResponse, task: Task) -> Read:
    """Raises `ModelError` when it is no answer: empty, refused, or cut off before it said anything."""
    text = (response.text or "").strip()
    if not response.tool_calls and not text:
        raise ModelError(_nothing(response), hint=_hint(response))
    response = _tidy(response, task)
    decision, answers = _decide(response, task)
    return Read(decision, text[:TEXT_CHARS_MAX], memory_of(Remembered(response, answers)))


def _nothing(response: ModelResponse) -> str:
    match response.finish_reason:
        case "length":
            return "The model's answer was cut off at its greatest length before it said anything."
        case "content_filter":
            return "The provider's content filter kept the model's answer back."
        case _:
            return "The model answered with nothing: no text, no tool call."


def _hint(response: ModelResponse) -> str | None:
    if response.finish_reason == "length":
        return "Give it more room: `max_tokens` in the brain's model settings; or less to think about."
    return None


def _tidy(response: ModelResponse, task: Task) -> ModelResponse:
    """With calls that every provider takes back: ids that occur once in the conversation, names of letters and digits."""
    taken = {
        call.tool_call_id
        for turn, earlier in enumerate(task.turns)
        for call in recall(earlier.thought, turn).response.tool_calls
    }
    parts: list[Any] = []
    index = 0
    for part in response.parts:
        if not isinstance(part, ToolCallPart):
            parts.append(part)
            continue
        if index >= CALLS_KEPT_MAX:
            continue
        id, name = part.tool_call_id, part.tool_name
        if not _ID.match(id) or id in taken:
            id = f"call_{len(task.turns)}_{index}"
        if not _NAME.match(name):
            name = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "unnamed"
        taken.add(id)
        parts.append(
            replace(part, tool_call_id=id, tool_name=name)
            if (id, name) != (part.tool_call_id, part.tool_name)
            else part
        )
        index += 1
    return replace(response, parts=parts)


def _decide(response: ModelResponse, task: Task) -> tuple[Decision, tuple[str | None, ...]]:
    calls = response.tool_calls
    controls = {spec.name for spec in controls_for(task.purpose)}
    if not any(is_control(call.tool_name) for call in calls):
        return _tools(calls, task, response)
    if len(calls) > 1:
        return Say(), tuple(_alone(call, calls) for call in calls)
    (call,) = calls
    if call.tool_name not in controls:
        return Say(), (f"`{call.tool_name}` cannot be used now. What ends this: {', '.join(sorted(controls))}.",)
    arguments = _arguments(call, response)
    if isinstance(arguments, str):
        return Say(), (arguments,)
    decided = decide(call.tool_name, arguments, task)
    if isinstance(decided, str):
        return Say(), (f"`{call.tool_name}` was not accepted:\n{decided}\nMend this and call it again.",)
    return decided, (None,)


def _alone(call: ToolCallPart, calls: list[ToolCallPart]) -> str:
    if is_control(call.tool_name):
        return f"Nothing was done: call `{call.tool_name}` alone, after you have seen the results of all other calls."
    control = next(other.tool_name for other in calls if is_control(other.tool_name))
    return f"Not called, because `{control}` has to be called alone. Call this again if it is still needed."


def _tools(calls: list[ToolCallPart], task: Task, response: ModelResponse) -> tuple[Decision, tuple[str | None, ...]]:
    names = [spec.name for spec in (*task.tools, *controls_for(task.purpose))]
    good: list[ToolCall] = []
    answers: list[str | None] = []
    for call in calls:
        arguments = _arguments(call, response)
        if call.tool_name not in names:
            close = did_you_mean(call.tool_name, names)
            answers.append(f"There is no tool `{call.tool_name}`{close}. There are: {', '.join(names)}.")
        elif isinstance(arguments, str):
            answers.append(arguments)
        elif len(good) == CALLS_MAX:
            answers.append(f"Not called: at most {CALLS_MAX} tools are called at once. Call it again if it is needed.")
        else:
            good.append(ToolCall(id=call.tool_call_id, tool=call.tool_name, arguments=arguments))
            answers.append(None)
    return (CallTools(calls=tuple(good)) if good else Say()), tuple(answers)


def _arguments(call: ToolCallPart, response: ModelResponse) -> dict[str, JsonValue] | str:
    """The arguments as an object; or what is wrong with them, in words for the model."""
    cut = _CUT if response.finish_reason == "length" else ""
    if not call.args:
        return {}
    try:
        found: Any = (
            pydantic_core.from_json(call.args, allow_inf_nan=False) if isinstance(call.args, str) else call.args
        )
    except ValueError as error:
        return f"Not called: the arguments of `{call.tool_name}` are not JSON ({error}).{cut}"
    if not isinstance(found, dict):
        return f"Not called: the arguments of `{call.tool_name}` are JSON, but not an object.{cut}"
    return cast("dict[str, JsonValue]", found)
