"""An office's own database."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from tenure import wire
from tenure.server.access import AgentName, Has, of_agent, requires
from tenure.server.checks import check_text

router = APIRouter(prefix="/v1/agents/{name}", tags=["sql"])


@router.post("/sql", response_model=wire.SqlResult, dependencies=[requires("database:connect", of_agent("database"))])
async def sql(name: AgentName, body: wire.SqlRequest, has: Has) -> Any:
    """Runs statements in one transaction; with a `key` exactly once, and later calls return the stored result."""
    check_text("statement", body.statement)
    key = check_text("key", body.key) if body.key is not None else None
    database = await has.offices.database(name)
    return await database.execute(body.statement, key=key, rows_max=body.rows_max)
