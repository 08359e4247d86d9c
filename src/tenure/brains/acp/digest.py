"""What a program told of its work while it worked, condensed: what the journal needs and no more. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import JsonValue

from tenure.work.failures import tail

COST_USD_MAX = 1e9
MESSAGE_BYTES_MAX = 8192
"""Of what it said: the last part, where the conclusion stands."""
SAID_BYTES_MAX = 2000
"""Of what it said since the last report."""
TITLE_CHARS_MAX = 200
INPUT_CHARS_MAX = 6000
"""Of what a tool call is to do, as a person sees it."""
TOOLS_MAX = 20
"""Tool calls in one report."""
TOOLS_KNOWN_MAX = 500
PLAN_MAX = 30


class Digest:
    """Of session updates, as the protocol has them in JSON."""

    def __init__(self) -> None:
        self.message = ""
        """The last of what it said."""
        self.spent: dict[str, JsonValue] = {}
        """Dollars of the session, as far as it tells."""
        self.context: dict[str, JsonValue] = {}
        """How full its context is, in tokens."""
        self.tools: dict[str, dict[str, Any]] = {}
        """Its latest tool calls by their id: `title`, `kind`, `status`; `input` as it was told, cut, and its `mark`, which is of
        all of it."""
        self._said = ""
        self._news: dict[str, None] = {}
        self._left_out = 0
        self._plan: list[JsonValue] | None = None

    def hear(self, update: dict[str, Any]) -> None:
        match update.get("sessionUpdate"):
            case "agent_message_chunk":
                self._say(update.get("content"))
            case "tool_call" | "tool_call_update":
                self.hear_tool(update)
            case "plan":
                self._plan = [_entry(one) for one in _list(update.get("entries"))[:PLAN_MAX]]
            case "usage_update":
                self._count(update)
            case _:
                return

    def hear_tool(self, call: dict[str, Any]) -> dict[str, Any]:
        """A tool call, or what changed of one; what is known of it."""
        call_id = str(call.get("toolCallId"))[:TITLE_CHARS_MAX]
        known = self.tools.pop(call_id, {"title": "", "kind": "other", "status": "pending", "input": "", "mark": ""})
        for name in ("title", "kind", "status"):
            if isinstance(call.get(name), str):
                known[name] = call[name][:TITLE_CHARS_MAX]
        given = {name: call[name] for name in ("rawInput", "content", "locations") if call.get(name)}
        if given:
            text = json.dumps(given, sort_keys=True, ensure_ascii=False, default=str)
            known["input"] = text if len(text) <= INPUT_CHARS_MAX else f"{text[:INPUT_CHARS_MAX]} […]"
            known["mark"] = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        self.tools[call_id] = known
        while len(self.tools) > TOOLS_KNOWN_MAX:
            self.tools.pop(next(iter(self.tools)))
        self._news[call_id] = None
        if len(self._news) > TOOLS_MAX:
            self._news.pop(next(iter(self._news)))
            self._left_out += 1
        if self.message and not self.message.endswith("\n"):
            self.message += "\n"
        return known

    def take(self) -> dict[str, JsonValue] | None:
        """What is new since the last time; None: nothing."""
        told: dict[str, JsonValue] = {}
        if self._said.strip():
            told["said"] = self._said
        tools = [self.tools[call_id] for call_id in self._news if call_id in self.tools]
        if tools:
            told["tools"] = [{name: tool[name] for name in ("title", "kind", "status")} for tool in tools]
        if self._left_out:
            told["left_out"] = self._left_out
        if self._plan is not None:
            told["plan"] = self._plan
        self._said, self._news, self._left_out, self._plan = "", {}, 0, None
        return told or None

    def _say(self, content: Any) -> None:
        text = content.get("text") if isinstance(content, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(text, str):
            self.message = _end(self.message + text, MESSAGE_BYTES_MAX)
            self._said = _end(self._said + text, SAID_BYTES_MAX)

    def _count(self, update: dict[str, Any]) -> None:
        for name in ("used", "size"):
            if isinstance(update.get(name), int):
                self.context[f"context_{name}"] = update[name]
        cost = update.get("cost")
        if isinstance(cost, dict):
            amount, currency = cost.get("amount"), cost.get("currency")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            if isinstance(amount, (int, float)) and 0 <= amount < COST_USD_MAX and currency == "USD":
                self.spent["cost_usd"] = amount


def _entry(entry: Any) -> JsonValue:
    if not isinstance(entry, dict):
        return {}
    return {name: str(entry.get(name, ""))[:TITLE_CHARS_MAX] for name in ("content", "status")}  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]


def _end(text: str, bytes_max: int) -> str:
    return text if len(text) * 4 <= bytes_max else tail(text, bytes_max)
