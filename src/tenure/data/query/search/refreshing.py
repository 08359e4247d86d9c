"""Brings a search index up to what its table holds: what is pending is embedded and stored, some rows at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from tenure.data.query.search.embedder import TEXT_CHARS_MAX, Embedder
from tenure.data.query.search.indexes import Index
from tenure.data.query.source import Source, literal, values
from tenure.errors import Conflict, NotFound

BATCH = 100
BATCH_TIMEOUT_S = 120.0
REFRESH_S = 60.0
"""How long a refresh goes on that somebody asked for; what is left is pending still."""
ROWS_MAX = 100_000


async def refresh(
    source: Source, index: Index, embedder: Embedder, *, rows_max: int = ROWS_MAX, within_s: float = REFRESH_S
) -> int:
    """How many rows it went through. May be called by several at once, and die at any moment: a row leaves the pending ones in
    the statement that stores its vector, and only if it was not changed since it was read. Raises what `embedder` raises,
    `Conflict` when the index is of another model, `NotFound` when its table is gone."""
    if not index.table:
        raise NotFound(f"The table of the search index {index.name} is gone.", hint="Drop the index.")
    if embedder.name != index.model or await embedder.dimension() != index.dimension:
        raise Conflict(
            f"The search index {index.name} is of the model {index.model}, which is not the one that is set up now.",
            hint="Drop it and make it again.",
        )
    until, done = time.monotonic() + within_s, 0
    while done < rows_max:
        read = await _pending(source, index, min(BATCH, rows_max - done))
        if not read:
            break
        texts = [text for _, _, text in read if text]
        vectors = iter(await embedder.embed(texts)) if texts else iter(())
        await _store(
            source, index, [(key, change, text, next(vectors) if text else None) for key, change, text in read]
        )
        done += len(read)
        if time.monotonic() > until:
            break
    return done


async def _pending(source: Source, index: Index, count: int) -> Sequence[tuple[Any, int, str | None]]:
    """Key, number of the last change, and the text of rows; of one that is gone none."""
    found = await values(
        source,
        f"SELECT json_build_array(p.key::text, p.change::text, (SELECT nullif(btrim(left({index.content}, {TEXT_CHARS_MAX}), "
        "E' \\n\\t\\r'), '') "
        f"FROM {index.table} t WHERE {index.joined('p.key')})) "
        f"FROM (SELECT * FROM search.pending WHERE name = {literal(index.name)} ORDER BY change LIMIT {count}) p",
        rows_max=count,
        timeout_s=BATCH_TIMEOUT_S,
    )
    return [(key, int(change), text) for key, change, text in found]


async def _store(source: Source, index: Index, rows: Sequence[tuple[str, int, str | None, list[float] | None]]) -> None:
    said = [
        {"k": key, "c": change, "t": text, "v": None if vector is None else _vector(vector)}
        for key, change, text, vector in rows
    ]
    # Of a row that was changed meanwhile, the pending one has another number: it stays pending, and what was read is dropped.
    await source.execute(
        f"WITH said AS MATERIALIZED (SELECT k::jsonb AS k, c, t, v FROM json_to_recordset({literal(json.dumps(said))}::json) "
        "AS x(k text, c bigint, t text, v text)), "
        f"still AS (DELETE FROM search.pending p USING said WHERE p.name = {literal(index.name)} AND p.key = said.k "
        "AND p.change = said.c RETURNING said.k, said.t, said.v), "
        f"gone AS (DELETE FROM {index.data} d USING still WHERE d.key = still.k AND still.t IS NULL) "
        f"INSERT INTO {index.data} (key, content, embedding) "
        f"SELECT k, t, v::{index.vectors}.vector FROM still WHERE t IS NOT NULL "
        "ON CONFLICT (key) DO UPDATE SET content = excluded.content, embedding = excluded.embedding",
        timeout_s=BATCH_TIMEOUT_S,
    )


def _vector(numbers: Sequence[float]) -> str:
    """As pgvector reads it, in the precision that it keeps."""
    return "[" + ",".join(f"{number:.8g}" for number in numbers) + "]"
