"""What brains took: sums over the thoughts in the journals, and over what programs reported.

A fork's copy of another run's journal is not counted again."""

from __future__ import annotations

from typing import LiteralString

from tenure import wire
from tenure.database.connect import ControlDatabase

ROWS_MAX = 1000

_GROUPS: dict[wire.CostsBy, dict[LiteralString, LiteralString]] = {
    wire.CostsBy.AGENT: {"agent": "runs.agent"},
    wire.CostsBy.RUN: {"agent": "runs.agent", "run": "runs.id"},
    wire.CostsBy.STEP: {"agent": "runs.agent", "run": "runs.id", "step": "body->>'node'"},
    wire.CostsBy.MODEL: {"model": "coalesce(body->'thought'->>'model', body->'data'->>'program')"},
    wire.CostsBy.DAY: {"day": "(journal.at at time zone 'utc')::date"},
}

_SPENT: LiteralString = """
    select {columns},
        sum(coalesce((usage->>'requests')::bigint, 1)) as requests,
        sum((usage->>'input_tokens')::bigint) as input_tokens,
        sum((usage->>'output_tokens')::bigint) as output_tokens,
        sum((usage->>'cost_usd')::double precision) as cost_usd,
        count(*) filter (where usage->>'cost_usd' is null) as unpriced,
        sum(coalesce((body->>'duration_s')::double precision, 0)) as duration_s
    from journal
        join runs on runs.id = journal.run_id,
        lateral (select coalesce(body->'thought'->'usage', body->'data'->'new') as usage) as taken
    where (journal.kind = 'thinking' or journal.kind = 'reported' and body->>'what' = 'usage')
        and journal.fence is not null -- else it is a fork's copy
        and (%(agent)s::text is null or runs.agent = %(agent)s)
    group by {groups}
    order by max(journal.at) desc
    limit %(limit)s
"""


async def spent(
    database: ControlDatabase, by: wire.CostsBy, *, agent: str | None = None, limit: int = 200
) -> list[wire.Cost]:
    """One row per agent, run, step, model or day (UTC), the one with the latest thought first."""
    groups = _GROUPS[by]
    columns = ", ".join(f"{expression} as {name}" for name, expression in groups.items())
    statement = _SPENT.format(columns=columns, groups=", ".join(groups.values()))
    rows = await database.fetch(statement, {"agent": agent, "limit": min(limit, ROWS_MAX)})
    return [wire.Cost.model_validate(dict(row)) for row in rows]
