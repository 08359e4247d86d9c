"""`AcpProgram`: a program that speaks the Agent Client Protocol, started inside of the office, as a brain.

The program depends on the connection to it, so it ends with its worker. The next worker starts it anew and has it load its
session, or begin another one that is told what was done. Each such start has a number in the journal: keys of the commands of
one start are never those of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import JsonValue

from tenure.brains import errands
from tenure.brains.acp.terminals import end_left
from tenure.brains.base import Errand, Report
from tenure.errors import LeaseLost, ServerUnreachable
from tenure.work.effects import Asks, Blocked, Failed, Outcome
from tenure.work.failures import failure_of, is_definite
from tenure.work.plan import Plan

RECONNECTS_MAX = 20
"""How often the program is started again in one go after its connection broke: a server that is restarted is no failure."""
MCP_URL = "http://api:8700/mcp"


class AcpProgram:
    """A `Brain` and a `Program`. The library is imported when it is first carried."""

    name = "acp"

    def __init__(self, *, mcp_url: str = MCP_URL) -> None:
        self._mcp_url = mcp_url

    def plan(self, goal: str, inputs: Mapping[str, Any]) -> Plan:
        return errands.one_step(goal, inputs)

    async def carry(self, errand: Errand) -> Outcome:
        """See `Program.carry`. `errand.timeout_s` is the longest silence: no message came, and none of its terminals runs."""
        try:
            return await self._carry(errand)
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the ladder has to hear of it
            failure = failure_of(error)
            return Failed(failure) if is_definite(error) else Blocked(failure)

    async def _carry(self, errand: Errand) -> Outcome:
        from tenure.brains.acp.conversation import Conversation

        if (refused := errands.refusal(errand, self.name)) is not None:
            return Failed(refused)
        if (question := errands.unanswered(errand)) is not None:
            return Asks(question)
        told: list[Report] = []

        async def report(what: str, data: JsonValue) -> None:
            await errand.report(what, data)
            told.append(Report(what, data))

        for left in range(RECONNECTS_MAX, -1, -1):
            known = replace(errand, reports=(*errand.reports, *told), report=report)
            number = starts_of(known)
            for earlier in range(number):
                await end_left(errand.hands, errand.agent, start_prefix(errand.key, earlier))
            await report("started", {"key": errand.key, "number": number})
            try:
                return await Conversation(known, number, self._mcp_url).to_end()
            except ServerUnreachable:
                if not left:
                    raise
        raise AssertionError("unreachable")

    async def halt(self, errand: Errand) -> None:
        """Ends whatever runs of an attempt whose worker died, when nobody will carry it on. Raises what `Hands` raises."""
        for number in range(starts_of(errand)):
            await end_left(errand.hands, errand.agent, start_prefix(errand.key, number))


def start_prefix(key: str, number: int) -> str:
    """Of the keys of one start's commands."""
    return f"{key}.s{number}"


def starts_of(errand: Errand) -> int:
    """How often the program was started in this attempt."""
    return sum(
        1
        for report in errand.reports
        if report.what == "started" and isinstance(report.data, dict) and report.data["key"] == errand.key
    )
