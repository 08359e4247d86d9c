"""Asks a search index: nearest vectors, words and parts of words, ranked together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenure.data.query.search.embedder import Embedder
from tenure.data.query.search.indexes import Index
from tenure.data.query.search.refreshing import refresh
from tenure.data.query.source import Source, condition, literal, values
from tenure.data.tables import quoted
from tenure.errors import InvalidArgument

LIMIT_DEFAULT, LIMIT_MAX = 10, 100
QUERY_CHARS_MAX = 2000
SNIPPET_CHARS = 500
COLUMNS_MAX = 50
CANDIDATES = 100
"""Of each of the three rankings that go into one."""
FRESH_ROWS_MAX, FRESH_S = 1000, 5.0
"""Pending rows that a search brings in first, and how long that may take. More than that, `refresh` does."""
RANK_AT = 60
"""Reciprocal rank fusion: a place counts 1 / (60 + place)."""
SEARCH_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Hit:
    key: dict[str, Any]
    """The primary key, as text."""
    score: float
    """Of the ranking; not comparable between searches."""
    similarity: float
    """Cosine of the vectors: 1 the same, 0 nothing in common."""
    text: str
    """The indexed text, its beginning."""
    row: dict[str, Any]
    """The columns asked for."""


@dataclass(frozen=True)
class Found:
    hits: list[Hit]
    """Best first."""
    pending: int
    """Changed rows that were not looked at yet; `refresh` brings them in."""


async def search(
    source: Source,
    index: Index,
    embedder: Embedder,
    query: str,
    *,
    limit: int = LIMIT_DEFAULT,
    where: str | None = None,
    columns: Sequence[str] = (),
) -> Found:
    """The rows of the index's table, of those that `where` holds for, that fit `query` best. Raises as `refresh`, and
    `InvalidArgument`, `DatabaseError`."""
    if not query.strip() or len(query) > QUERY_CHARS_MAX:
        raise InvalidArgument(f"What is searched for has 1 to {QUERY_CHARS_MAX} characters.")
    if not 1 <= limit <= LIMIT_MAX:
        raise InvalidArgument(f"A search finds 1 to {LIMIT_MAX} rows.")
    if len(columns) > COLUMNS_MAX:
        raise InvalidArgument(f"At most {COLUMNS_MAX} columns can be asked for.")
    where = condition(where)
    done = await refresh(source, index, embedder, rows_max=FRESH_ROWS_MAX, within_s=FRESH_S) if index.pending else 0
    vector = (await embedder.embed([query]))[0]
    statement = _statement(index, vector, query, limit, where, columns)
    found = await values(source, statement, rows_max=limit, timeout_s=SEARCH_TIMEOUT_S)
    hits = [
        Hit(dict(zip(index.keys, key, strict=True)), score, similarity, text, row)
        for key, score, similarity, text, row in found
    ]
    return Found(hits, max(0, index.pending - done))


def _statement(
    index: Index, vector: Sequence[float], query: str, limit: int, where: str, columns: Sequence[str]
) -> str:
    text, space = literal(query), index.trigrams
    point = f"'[{','.join(f'{number:.8g}' for number in vector)}]'::{index.vectors}.vector"
    distance = f"d.embedding OPERATOR({index.vectors}.<=>) {point}"
    # With a condition the nearest of all may not hold it: then every row that does is compared, without the index.
    by_distance = f"({distance}) + 0" if where else distance
    rows = f"{index.data} d"
    if where:
        rows += f" WHERE d.key IN (SELECT {index.key_of_source} FROM (SELECT * FROM {index.table}{where}) t)"
    also = "AND" if where else "WHERE"
    row = ", ".join(f"{literal(name)}, t.{quoted(name)}" for name in columns)
    words = f"(SELECT nullif(replace(plainto_tsquery('simple', {text})::text, '&', '|'), '')::tsquery)"
    return f"""SET LOCAL hnsw.ef_search = {2 * CANDIDATES};
WITH near AS (SELECT d.key, row_number() OVER () AS place FROM (
        SELECT d.key FROM {rows} ORDER BY {by_distance} LIMIT {CANDIDATES}) d),
worded AS (SELECT d.key, row_number() OVER () AS place FROM (
        SELECT d.key FROM {rows} {also} to_tsvector('simple', d.content) @@ {words}
        ORDER BY ts_rank_cd(to_tsvector('simple', d.content), {words}, 1) DESC, d.key LIMIT {CANDIDATES}) d),
alike AS (SELECT d.key, row_number() OVER () AS place FROM (
        SELECT d.key FROM {rows} {also} {text} OPERATOR({space}.<%) d.content
        ORDER BY {space}.word_similarity({text}, d.content) DESC, d.key LIMIT {CANDIDATES}) d),
ranked AS (SELECT key, sum(1.0 / ({RANK_AT} + place))::float8 AS score FROM (
        SELECT * FROM near UNION ALL SELECT * FROM worded UNION ALL SELECT * FROM alike) every GROUP BY key)
SELECT json_build_array(d.key, r.score, 1 - ({distance}), left(d.content, {SNIPPET_CHARS}), json_build_object({row}))
FROM ranked r JOIN {index.data} d ON d.key = r.key JOIN {index.table} t ON {index.joined("d.key")}
ORDER BY r.score DESC, {distance}, d.key LIMIT {limit}"""
