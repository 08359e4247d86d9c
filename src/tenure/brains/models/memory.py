"""What a thought leaves for the next one: the provider's message, and what its calls are answered where no tool answers them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from pydantic import JsonValue, ValidationError
from pydantic_ai.messages import (
    ModelMessagesTypeAdapter,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ToolCallPart,
)

from tenure.work.thoughts import Ask, CallTools, Finish, Propose, Thought, Wait

_FORMAT = 1
UNTIMED = datetime(1970, 1, 1, tzinfo=UTC)
"""No provider is told when a message was written; so rebuilt ones are the same whenever that is done."""


@dataclass(frozen=True)
class Remembered:
    """`answers` has one entry per tool call of the message: what it is told, or None where its result is the turn's."""

    response: ModelResponse
    answers: tuple[str | None, ...]


def memory_of(remembered: Remembered) -> JsonValue:
    dumped = cast("list[JsonValue]", ModelMessagesTypeAdapter.dump_python([remembered.response], mode="json"))
    return {"format": _FORMAT, "message": dumped[0], "answers": list(remembered.answers)}


def recall(thought: Thought, turn: int) -> Remembered:
    """The message of a thought. Without a memory that can be read (another brain's, another version's) it is made up of the
    decision, so that the conversation goes on all the same."""
    memory = thought.memory
    if isinstance(memory, dict) and memory.get("format") == _FORMAT:
        try:
            message = ModelMessagesTypeAdapter.validate_python([memory.get("message")])[0]
        except ValidationError:
            return _from_decision(thought, turn)
        answers = memory.get("answers")
        if isinstance(message, ModelResponse) and isinstance(answers, list):
            told = tuple(answer if isinstance(answer, str) else None for answer in answers)
            if len(told) == len(message.tool_calls):
                return Remembered(message, told)
    return _from_decision(thought, turn)


def _from_decision(thought: Thought, turn: int) -> Remembered:
    calls: list[ToolCallPart] = []
    match thought.decision:
        case CallTools(calls=asked):
            calls = [
                ToolCallPart(call.tool, dict(call.arguments), tool_call_id=f"call_{turn}_{index}")
                for index, call in enumerate(asked)
            ]
        case Finish(summary=summary):
            calls = [ToolCallPart("finish", {"summary": summary}, tool_call_id=f"call_{turn}_0")]
        case Ask(text=text, options=options):
            arguments = {"question": text, "options": list(options)}
            calls = [ToolCallPart("ask_person", arguments, tool_call_id=f"call_{turn}_0")]
        case Wait(for_s=for_s, run=run, reason=reason):
            arguments = {"seconds": for_s, **({"run": run} if run else {}), "reason": reason}
            calls = [ToolCallPart("wait", arguments, tool_call_id=f"call_{turn}_0")]
        case Propose(plan=plan, reason=reason):
            steps = [{"id": step.id, "what": step.name} for step in plan.steps]
            calls = [ToolCallPart("propose_plan", {"reason": reason, "steps": steps}, tool_call_id=f"call_{turn}_0")]
        case _:
            pass
    parts: list[ModelResponsePart] = [*([TextPart(thought.text)] if thought.text or not calls else []), *calls]
    if not calls and not thought.text:
        parts = [TextPart("…")]
    return Remembered(ModelResponse(parts=parts, timestamp=UNTIMED), (None,) * len(calls))
