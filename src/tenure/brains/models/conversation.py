"""The messages of a conversation, rebuilt from its turns: the same for every worker and for every model that goes on with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from tenure.brains.base import Task
from tenure.brains.models.controls import controls_for, is_control
from tenure.brains.models.digest import digest
from tenure.brains.models.memory import UNTIMED, Remembered, recall
from tenure.brains.models.prompts import cut, first_prompt, system_prompt
from tenure.work.talk import SAY_NOTE
from tenure.work.thoughts import CallResult, Turn
from tenure.work.toolbox import ToolSpec

BYTES_PER_TOKEN = 3
"""Fewer than texts have (about four), so that the estimate errs towards compacting early."""
KEPT_SHARE = 0.6
"""Of the context, after compacting: the next turns fit without compacting again, and the provider's cache serves them."""
DIGEST_SHARE = 0.2
RESULT_CHARS_MIN = 500

CUT_OFF = "Cut off: this was begun, and nobody knows whether it happened or how it ended. Look before you do it again."
UNVERIFIED = "unverified: this was begun, and nobody knows whether it happened. Look before you do it again."
TOO_LONG = "Your last answer was cut off at its greatest length. Go on in smaller pieces."
GO_ON = "Go on by calling a tool."
NOT_DONE = "It is not done."


@dataclass(frozen=True)
class Conversation:
    instructions: str
    messages: tuple[ModelMessage, ...]
    tools: tuple[ToolSpec, ...]
    compacted_turns: int = 0
    """How many of the first turns are only in the digest."""

    @property
    def tokens(self) -> int:
        """Estimated, of the whole request."""
        size = sum(_message_bytes(message) for message in self.messages)
        return _tokens(len(self.instructions.encode()) + _tools_bytes(self.tools) + size)


def conversation_of(task: Task) -> Conversation:
    """What is sent. Longer than `task.context_tokens_max` (estimated), the first turns give way to a digest of them; the first
    instruction and the newest turns stay whole, and no call is parted from its result."""
    instructions, first = system_prompt(task), first_prompt(task)
    tools = tools_of(task)
    told = [_Told.of(turn, index) for index, turn in enumerate(task.turns)]
    base = _tokens(len(instructions.encode()) + _tools_bytes(tools) + len(first.encode()))
    limit = task.context_tokens_max
    digest_tokens = int(limit * DIGEST_SHARE)
    start = first_kept([turn.tokens for turn in told], base=base, digest_tokens=digest_tokens, limit=limit)
    opening: list[ModelRequestPart] = [_user(first)]
    if start:
        opening.append(_user(digest(task.turns[:start], digest_tokens * BYTES_PER_TOKEN)))
    kept = told[start:]
    if start and start == len(told) - 1:
        room = limit - base - digest_tokens
        kept = [kept[0].within(room)] if kept[0].tokens > room else kept
    elif len(told) == 1 and base + told[0].tokens > limit:
        kept = [told[0].within(limit - base)]
    messages: list[ModelMessage] = [ModelRequest(parts=opening)]
    for turn in kept:
        messages += [turn.response, ModelRequest(parts=list(turn.parts))]
    return Conversation(instructions, tuple(messages), tools, start)


def tools_of(task: Task) -> tuple[ToolSpec, ...]:
    """The office's, then the decisions; a decision's name is its own."""
    return (*(spec for spec in task.tools if not is_control(spec.name)), *controls_for(task.purpose))


def first_kept(costs: Sequence[int], *, base: int, digest_tokens: int, limit: int) -> int:
    """The first turn that is kept whole. Found by going through the turns in their order, so that a longer conversation gives way
    at the same places as it did when it was shorter: between two compactions each request begins with the one before."""
    start = size = 0
    for index, cost in enumerate(costs):
        size += cost
        if base + (digest_tokens if start else 0) + size <= limit:
            continue
        while start < index and base + digest_tokens + size > limit * KEPT_SHARE:
            size -= costs[start]
            start += 1
    return start


@dataclass(frozen=True)
class _Told:
    """One turn as two messages: what the model said, and what it is told."""

    response: ModelResponse
    parts: tuple[ModelRequestPart, ...]

    @classmethod
    def of(cls, turn: Turn, index: int) -> _Told:
        remembered = recall(turn.thought, index)
        parts: list[ModelRequestPart] = list(_returns(turn, remembered))
        texts: list[str] = []
        if not remembered.response.tool_calls:
            texts += [result.output for result in turn.results if result and result.output]
            if remembered.response.finish_reason == "length":
                texts.append(TOO_LONG)
        if turn.note and not (parts and turn.note == SAY_NOTE):  # its calls were answered: it did more than talk
            texts.append(turn.note)
        if not parts and not texts:
            texts.append(GO_ON)
        return cls(remembered.response, (*parts, *(_user(text) for text in texts)))

    @property
    def tokens(self) -> int:
        return _tokens(_message_bytes(self.response) + _message_bytes(ModelRequest(parts=list(self.parts))))

    def within(self, tokens: int) -> _Told:
        """With results cut in the middle, so that it fits as far as they make it long."""
        returns = [part for part in self.parts if isinstance(part, ToolReturnPart)]
        others = self.tokens - _tokens(sum(len(str(part.content).encode()) for part in returns))
        share = max(RESULT_CHARS_MIN, (tokens - others) * BYTES_PER_TOKEN // max(1, len(returns)))
        parts = [
            replace(part, content=_cut_bytes(str(part.content), share)) if isinstance(part, ToolReturnPart) else part
            for part in self.parts
        ]
        return replace(self, parts=tuple(parts))


def _returns(turn: Turn, remembered: Remembered) -> list[ToolReturnPart]:
    """One for each call, in the order of the calls."""
    results = iter(turn.results)
    parts: list[ToolReturnPart] = []
    for call, answer in zip(remembered.response.tool_calls, remembered.answers, strict=True):
        if answer is not None:
            parts.append(_return(call, answer, ok=False))
        elif is_control(call.tool_name):
            result = next(results, None)
            parts.append(_return(call, result.output if result else NOT_DONE, ok=result is not None and result.ok))
        else:
            parts.append(_return_of(call, next(results, None)))
    return parts


def _return_of(call: ToolCallPart, result: CallResult | None) -> ToolReturnPart:
    if result is None:
        return _return(call, CUT_OFF, ok=False)
    if result.unverified:
        return _return(call, f"{UNVERIFIED}\n{result.output}".rstrip(), ok=False)
    return _return(call, result.output or ("(no output)" if result.ok else "failed, without a word"), ok=result.ok)


def _return(call: ToolCallPart, text: str, *, ok: bool) -> ToolReturnPart:
    outcome = "success" if ok else "failed"
    return ToolReturnPart(call.tool_name, text, call.tool_call_id, outcome=outcome, timestamp=UNTIMED)


def _user(text: str) -> UserPromptPart:
    return UserPromptPart(text, timestamp=UNTIMED)


def _message_bytes(message: ModelMessage) -> int:
    size = 0
    for part in message.parts:
        match part:
            case ToolCallPart():
                size += len(part.tool_name) + len(part.args_as_json_str().encode())
            case TextPart() | ThinkingPart():
                size += len(part.content.encode())
            case ToolReturnPart() | UserPromptPart():
                size += len(str(part.content).encode())
            case _:
                pass
        size += 16  # a message's own frame
    return size


def _tools_bytes(tools: Sequence[ToolSpec]) -> int:
    return sum(
        len(spec.name) + len(spec.description.encode()) + len(json.dumps(dict(spec.parameters))) for spec in tools
    )


def _tokens(size: int) -> int:
    return -(-size // BYTES_PER_TOKEN)


def _cut_bytes(text: str, bytes_max: int) -> str:
    size = len(text.encode())
    return text if size <= bytes_max else cut(text, max(1, len(text) * bytes_max // size))
