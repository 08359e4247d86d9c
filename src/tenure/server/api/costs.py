"""What the brains of agents took: thoughts, tokens, money."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from tenure import wire
from tenure.names import check_name
from tenure.server.access import Has, of_own, requires

router = APIRouter(prefix="/v1/costs", tags=["runs"])

LIST_DEFAULT, LIST_MAX = 200, 1000


@router.get("", response_model=wire.CostList, dependencies=[requires("cost:read", of_own("cost"))])
async def list_costs(
    has: Has,
    agent: str | None = None,
    by: wire.CostsBy = wire.CostsBy.RUN,
    limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = LIST_DEFAULT,
) -> Any:
    """Summed by agent, run, step, model or day (UTC); the one with the latest thought first."""
    if agent is not None:
        check_name(agent)
    return {"by": by, "costs": await has.runs.costs(by, agent=agent, limit=limit)}
