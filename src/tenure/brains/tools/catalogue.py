"""`OfficeTools`: the catalogue as a `Toolbox`, and the one way from a call to its result."""

from __future__ import annotations

import time
from typing import Any

from pydantic import JsonValue, ValidationError

from tenure.brains.tools import (
    data,
    files,
    goals,
    messages,
    notes,
    objects,
    schedules,
    services,
    shell,
    snapshots,
    sql,
    web,
    webhooks,
)
from tenure.brains.tools.tool import Call, Refused, Tool, failed
from tenure.brains.tools.words import NOT_PLAIN, cut, is_plain, told, unknown_tool, wrong_arguments
from tenure.errors import LeaseLost, TenureError, Unauthenticated
from tenure.faultpoints import reach
from tenure.work.effects import Blocked
from tenure.work.failures import failure_of, is_definite
from tenure.work.hands import Hands
from tenure.work.thoughts import CallResult, Purpose
from tenure.work.toolbox import CallOrder, ToolSpec

CATALOGUE: tuple[Tool[Any], ...] = (
    *shell.TOOLS,
    *services.TOOLS,
    *files.TOOLS,
    *sql.TOOLS,
    *data.TOOLS,
    *objects.TOOLS,
    *web.TOOLS,
    *messages.TOOLS,
    *snapshots.TOOLS,
    *notes.TOOLS,
    *goals.TOOLS,
    *schedules.TOOLS,
    *webhooks.TOOLS,
)


class OfficeTools:
    """All of the office's tools. Holds no state: calls may be made at the same time, by any worker."""

    def __init__(self, tools: tuple[Tool[Any], ...] = CATALOGUE) -> None:
        self._tools = {tool.name: tool for tool in tools}

    def specs(self, purpose: Purpose) -> tuple[ToolSpec, ...]:
        return tuple(tool.spec for tool in self._tools.values() if tool.reads or not purpose.plans)

    def reads(self, name: str) -> bool:
        """Whether the tool changes nothing, so that planning may use it. A tool that is not there does not."""
        return name in self._tools and self._tools[name].reads

    async def call(self, hands: Hands, order: CallOrder) -> CallResult | Blocked:
        began_s = time.monotonic()
        tool = self._tools.get(order.tool)
        if tool is None:
            return failed(unknown_tool(order.tool, self._tools))
        try:
            arguments = tool.arguments.model_validate(_given(order.arguments))
        except ValidationError as error:
            return failed(cut(wrong_arguments(tool.name, error, tool.arguments.model_fields)))
        if not is_plain(arguments.model_dump_json()):
            return failed(f"Nothing was done: {NOT_PLAIN}")
        try:
            reach(f"tool.{tool.name}.before/{order.node}")
            result = await tool.act(Call(hands, order), arguments)
            reach(f"tool.{tool.name}.after/{order.node}")
        except LeaseLost:
            raise
        except Refused as refusal:
            result = failed(str(refusal))
        except Exception as error:  # noqa: BLE001 - whatever it is, the ladder has to hear of it
            if not _is_the_brains(error):
                return Blocked(failure_of(error))
            result = failed(told(error) if isinstance(error, TenureError) else str(error))
        duration_s = time.monotonic() - began_s if result.duration_s is None else result.duration_s
        return result.model_copy(update={"output": cut(result.output), "duration_s": duration_s})


def _given(arguments: Any) -> dict[str, JsonValue]:
    """Without those that are null: models send it for what they leave out."""
    return {name: value for name, value in arguments.items() if value is not None}


def _is_the_brains(error: Exception) -> bool:
    """Whether the call surely did nothing for a reason that the brain can mend. Who we are it cannot."""
    return is_definite(error) and not isinstance(error, Unauthenticated)
