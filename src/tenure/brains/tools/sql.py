"""The office's own database."""

from __future__ import annotations

import json

from pydantic import Field

from tenure.brains.tools.tool import Arguments, Call, Tool, done, failed
from tenure.errors import CommandTimeout
from tenure.work.hands import SqlResult
from tenure.work.thoughts import CallResult

STATEMENT_CHARS_MAX = 256 * 1024
ROWS_DEFAULT, ROWS_MAX = 200, 2000
ROWS_CHARS_MAX = 30_000
TIMED_OUT = "The statement did not end"
"""How the office's database begins to say so; then nothing of it happened."""


class Statement(Arguments):
    statement: str = Field(
        min_length=1,
        max_length=STATEMENT_CHARS_MAX,
        description="SQL for PostgreSQL, one or more statements. All of it is one transaction: leave BEGIN and COMMIT out.",
    )
    rows_max: int = Field(
        default=ROWS_DEFAULT, ge=1, le=ROWS_MAX, description=f"How many rows to see. Without it, {ROWS_DEFAULT}."
    )


async def run(call: Call, wanted: Statement) -> CallResult:
    try:
        return shown(await call.hands.sql(call.agent, wanted.statement, key=call.key, rows_max=wanted.rows_max))
    except CommandTimeout as error:
        return _timed_out(error)


async def query(call: Call, wanted: Statement) -> CallResult:
    try:
        return shown(await call.hands.sql(call.agent, wanted.statement, rows_max=wanted.rows_max, read_only=True))
    except CommandTimeout as error:
        return _timed_out(error)


def _timed_out(error: CommandTimeout) -> CallResult:
    if not error.message.startswith(TIMED_OUT):
        raise error
    return failed(
        f"{error.message} Nothing was changed. Do less at a time, or run it with psql by shell or service_start."
    )


def shown(found: SqlResult) -> CallResult:
    """The command tag, and each row as a line of JSON below the names of the columns."""
    lines = [found.status]
    if found.columns:
        lines.append(json.dumps(found.columns, ensure_ascii=False))
    room = ROWS_CHARS_MAX
    for number, row in enumerate(found.rows):
        line = json.dumps(row, ensure_ascii=False, default=str)
        room -= len(line) + 1
        if room < 0:
            lines.append(f"[{number} of {len(found.rows)} rows shown: select fewer columns, or use LIMIT and OFFSET]")
            break
        lines.append(line)
    else:
        if found.truncated:
            lines.append(f"[there are more than these {len(found.rows)} rows: use LIMIT and OFFSET, or count]")
    return done("\n".join(lines))


TOOLS = (
    Tool("sql", "Run SQL in the office's own PostgreSQL database.", Statement, run),
    Tool(
        "query",
        "Look something up in the office's own PostgreSQL database: SQL that only reads. What would change something is refused.",
        Statement,
        query,
        reads=True,
    ),
)
