"""What others sent to this agent: deliveries of its webhooks, which lie in its own database."""

from __future__ import annotations

import json

from pydantic import Field

from tenure.brains.tools.tool import Arguments, Call, Tool, done
from tenure.data.webhooks.delivery import TABLE, quoted
from tenure.errors import DatabaseError
from tenure.postgres.client import INVALID_SCHEMA_NAME, UNDEFINED_TABLE
from tenure.work.thoughts import CallResult

BODY_CHARS_SHOWN = 4000


class Deliveries(Arguments):
    hook: str = Field(default="", max_length=40, description="Of this webhook alone.")
    delivery: str = Field(default="", max_length=64, description="This one alone, with its headers.")
    limit: int = Field(default=10, ge=1, le=100, description="So many at most, the latest first.")


async def deliveries(call: Call, wanted: Deliveries) -> CallResult:
    which = [f"{name} = {quoted(value)}" for name, value in (("hook", wanted.hook), ("id", wanted.delivery)) if value]
    headers = "headers" if wanted.delivery else "null"
    statement = (
        f"select id, hook, received_at, signature, length(body), {headers}, "
        f"substr(coalesce(cast(json as text), encode(body, 'escape')), 1, {BODY_CHARS_SHOWN}) from {TABLE} "
        f"{'where ' + ' and '.join(which) if which else ''} order by received_at desc limit {wanted.limit}"
    )
    try:
        found = await call.hands.sql(call.agent, statement, rows_max=wanted.limit, read_only=True)
    except DatabaseError as error:
        if error.details.get("sqlstate") not in (UNDEFINED_TABLE, INVALID_SCHEMA_NAME):
            raise
        return done("Nothing was ever sent to a webhook of this agent.")
    told = [
        f"{name} to {hook} at {at}, signature {signature}, {size} bytes"
        + (f"\n{json.dumps(head)}" if head else "")
        + f"\n{body}"
        for name, hook, at, signature, size, head, body in found.rows
    ]
    return done("\n\n".join(told) or "There are no such deliveries.")


TOOLS = (
    Tool(
        "webhook_deliveries",
        f"What others sent to this agent's webhooks: rows of {TABLE} in its database.",
        Deliveries,
        deliveries,
        reads=True,
    ),
)
