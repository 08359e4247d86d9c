"""Snapshots that are kept under a name."""

from __future__ import annotations

from pydantic import Field

from tenure.brains.tools.tool import Arguments, Call, Tool, done
from tenure.work.thoughts import CallResult

NAME_PATTERN = "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"


class Snapshot(Arguments):
    name: str = Field(
        pattern=NAME_PATTERN, description="a-z, 0-9, '-', beginning with a letter; no other snapshot has it."
    )


async def take(call: Call, wanted: Snapshot) -> CallResult:
    snapshot = await call.hands.keep_snapshot(call.agent, wanted.name, key=call.key)
    return done(f"The office as it is now is kept as {wanted.name} ({snapshot}). Its owner can go back to it.")


TOOLS = (
    Tool(
        "snapshot",
        "Keep the whole office as it is now (files, database, objects) under a name, such as before something risky.",
        Snapshot,
        take,
    ),
)
