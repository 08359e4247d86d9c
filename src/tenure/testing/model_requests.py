"""What a provider of chat completions refuses: a request is checked as hard as the strictest of them would."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, cast

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


@dataclass(frozen=True)
class ModelRequestSeen:
    """One request as it came. `headers` have small names."""

    number: int
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.body["messages"]

    @property
    def tools(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.body.get("tools", [])]

    @property
    def instructions(self) -> str:
        return "\n".join(m["content"] for m in self.messages if m["role"] in ("system", "developer"))

    @property
    def first(self) -> str:
        """What the user said first."""
        return next((str(m["content"]) for m in self.messages if m["role"] == "user"), "")

    @property
    def results(self) -> list[str]:
        """What the calls of the last answer gave."""
        found: list[str] = []
        for message in reversed(self.messages):
            if message["role"] == "assistant":
                break
            if message["role"] == "tool":
                found.insert(0, message["content"])
        return found

    @property
    def last(self) -> str:
        return str(self.messages[-1]["content"])


@dataclass
class _Walk:
    problems: list[str] = field(default_factory=list[str])
    open: list[str] = field(default_factory=list[str])
    """Calls that are still to be answered, in their order."""
    seen: set[str] = field(default_factory=set[str])


def problems_of(body: Any) -> list[str]:
    """Why it is no valid conversation; nothing when it is one."""
    fields = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    messages = cast("list[dict[str, Any]] | None", fields.get("messages"))
    if not messages:
        return ["no messages"]
    walk = _Walk()
    for index, message in enumerate(messages):
        _message(walk, index, message)
    if walk.open:
        walk.problems.append(f"the calls {walk.open} are not answered")
    if messages[-1]["role"] == "assistant":
        walk.problems.append("the last message is the assistant's own")
    if not isinstance(fields.get("model"), str):
        walk.problems.append("no model")
    _tools(walk, fields.get("tools", []))
    return walk.problems


def _message(walk: _Walk, index: int, message: dict[str, Any]) -> None:
    role = message.get("role")
    if role == "tool":
        id = message.get("tool_call_id")
        if not walk.open or walk.open[0] != id:
            expected = walk.open[0] if walk.open else "no answer at all"
            walk.problems.append(f"message {index} answers the call {id}; expected was {expected}")
        if id in walk.open:
            walk.open.remove(id)
        if not isinstance(message.get("content"), str):
            walk.problems.append(f"message {index}: a result is text")
        return
    if walk.open:
        walk.problems.append(f"message {index} is of {role}, and the calls {walk.open} are not answered")
        walk.open.clear()
    if role in ("system", "developer"):
        if index:
            walk.problems.append(f"message {index}: {role} does not come first")
    elif role == "assistant":
        _assistant(walk, index, message)
    elif role != "user":
        walk.problems.append(f"message {index} has the role {role!r}")
    elif not message.get("content"):
        walk.problems.append(f"message {index}: the user says nothing")


def _assistant(walk: _Walk, index: int, message: dict[str, Any]) -> None:
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    if not calls and not message.get("content"):
        walk.problems.append(f"message {index}: the assistant neither says nor calls anything")
    for call in calls:
        id, function = call.get("id"), call.get("function", {})
        if not isinstance(id, str) or not id or id in walk.seen:
            walk.problems.append(f"message {index}: the id {id!r} of a call is missing, or was used before")
        if not _NAME.match(function.get("name") or ""):
            walk.problems.append(f"message {index}: {function.get('name')!r} is no name of a tool")
        try:
            if not isinstance(json.loads(function.get("arguments", "")), dict):
                raise ValueError
        except ValueError:
            walk.problems.append(f"message {index}: the arguments of {function.get('name')} are no JSON object")
        walk.open.append(str(id))
        walk.seen.add(str(id))


def _tools(walk: _Walk, tools: list[dict[str, Any]]) -> None:
    names = [tool.get("function", {}).get("name") or "" for tool in tools]
    for name in names:
        if not _NAME.match(name) or names.count(name) > 1:
            walk.problems.append(f"the tool {name!r} has no name, or is there twice")
    for tool in tools:
        if tool.get("function", {}).get("parameters", {}).get("type") != "object":
            walk.problems.append(f"the parameters of {tool.get('function', {}).get('name')} are no object")
