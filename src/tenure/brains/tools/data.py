"""What is in the office's database, without writing the SQL that asks for it; results kept by name; search by meaning."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from tenure.brains.tools.sql import shown
from tenure.brains.tools.tool import Arguments, Call, Tool, done
from tenure.errors import AlreadyExists
from tenure.work.hands import SqlResult
from tenure.work.thoughts import CallResult

NAME_PATTERN = "^[a-z][a-z0-9_]{0,39}$"
TABLE_CHARS_MAX = 200
WHERE_CHARS_MAX = 10_000
QUERY_CHARS_MAX = 256 * 1024
SAMPLE_ROWS_DEFAULT, SAMPLE_ROWS_MAX = 10, 200
READ_ROWS_DEFAULT, READ_ROWS_MAX = 100, 2000
HITS_DEFAULT, HITS_MAX = 10, 50
TABLES_MAX = 200
EXTENSIONS_SHOWN = 60
CELL_CHARS_MAX = 300
WHERE = "Only rows for which this SQL condition holds, as after WHERE: amount > 100. Without it, all."
TABLE = "Name of a table or view, as it is, without quotes; or SCHEMA.NAME."


class Describe(Arguments):
    table: str = Field(
        default="", max_length=TABLE_CHARS_MAX, description=f"{TABLE} Without it, all of them, in short."
    )


class Sample(Arguments):
    table: str = Field(min_length=1, max_length=TABLE_CHARS_MAX, description=TABLE)
    rows: int = Field(
        default=SAMPLE_ROWS_DEFAULT,
        ge=1,
        le=SAMPLE_ROWS_MAX,
        description=f"How many. Without it, {SAMPLE_ROWS_DEFAULT}.",
    )
    seed: int = Field(
        default=0, ge=0, le=1_000_000, description="Another one brings other rows; the same one the same."
    )
    where: str = Field(default="", max_length=WHERE_CHARS_MAX, description=WHERE)


class Profile(Arguments):
    table: str = Field(min_length=1, max_length=TABLE_CHARS_MAX, description=TABLE)
    columns: list[str] = Field(default_factory=list[str], max_length=60, description="Only these. Without them, all.")
    where: str = Field(default="", max_length=WHERE_CHARS_MAX, description=WHERE)


class Save(Arguments):
    name: str = Field(
        pattern=NAME_PATTERN, description="a-z, 0-9, '_'. SQL calls it results.NAME; an earlier one is replaced."
    )
    query: str = Field(min_length=1, max_length=QUERY_CHARS_MAX, description="One SELECT; it may read other results.")
    expires_h: int = Field(default=0, ge=0, le=87_600, description="Hours after which it is dropped. 0: never.")


class Read(Arguments):
    name: str = Field(pattern=NAME_PATTERN, description="Of the result.")
    rows: int = Field(
        default=READ_ROWS_DEFAULT, ge=1, le=READ_ROWS_MAX, description=f"How many. Without it, {READ_ROWS_DEFAULT}."
    )
    offset: int = Field(default=0, ge=0, le=1_000_000_000, description="Rows to pass over first.")
    where: str = Field(default="", max_length=WHERE_CHARS_MAX, description=WHERE)


class Nothing(Arguments):
    pass


class Index(Arguments):
    name: str = Field(pattern=NAME_PATTERN, description="Of the search index: a-z, 0-9, '_'.")
    table: str = Field(
        min_length=1, max_length=TABLE_CHARS_MAX, description="Name of a table with a primary key, as it is."
    )
    columns: list[str] = Field(min_length=1, max_length=16, description="Whose text is searched, together.")


class Search(Arguments):
    query: str = Field(min_length=1, max_length=2000, description="Words, or a sentence that says what is looked for.")
    index: str = Field(default="", max_length=40, description="Name of the search index. Without it, the only one.")
    limit: int = Field(default=HITS_DEFAULT, ge=1, le=HITS_MAX, description=f"How many. Without it, {HITS_DEFAULT}.")
    where: str = Field(default="", max_length=WHERE_CHARS_MAX, description=WHERE)


async def describe(call: Call, wanted: Describe) -> CallResult:
    asked: dict[str, Any] = {"table": wanted.table} if wanted.table else {"limit": TABLES_MAX}
    found = await call.hands.ask_data(call.agent, "describe", asked)
    lines = [line for table in found["tables"] for line in (_whole(table) if wanted.table else [_in_short(table)])]
    if found["more"]:
        lines.append(f"[there are more than these {TABLES_MAX} tables: name one]")
    installed = [one["name"] for one in found["extensions"] if one["installed"] and one["name"] != "plpgsql"]
    others = [one["name"] for one in found["extensions"] if not one["installed"]][:EXTENSIONS_SHOWN]
    if not wanted.table:
        lines.append(f"Extensions: {', '.join(installed) or 'none yet'}.")
        if others:
            lines.append(f"CREATE EXTENSION adds {', '.join(others)}.")
    return done("\n".join(lines) if found["tables"] else "\n".join(["There are no tables yet.", *lines]))


def _name(table: dict[str, Any]) -> str:
    return table["name"] if table["in_schema"] == "public" else f"{table['in_schema']}.{table['name']}"


def _in_short(table: dict[str, Any]) -> str:
    rows = "" if table["rows_estimate"] is None else f", about {table['rows_estimate']} rows"
    columns = ", ".join(f"{one['name']} {one['type']}" for one in table["columns"])
    comment = f" -- {table['comment']}" if table["comment"] else ""
    return f"{_name(table)} ({table['kind']}{rows}): {columns}{comment}"


def _whole(table: dict[str, Any]) -> list[str]:
    left_out = ("in_schema", "name", "kind", "columns")
    facts = {name: value for name, value in table.items() if name not in left_out and value not in (None, [], 0)}
    lines = [f"{_name(table)} ({table['kind']})", json.dumps(facts, ensure_ascii=False)]
    for column in table["columns"]:
        said = {
            name: value for name, value in column.items() if name not in ("name", "type") and value not in (None, True)
        }
        lines.append(
            f"{column['name']} {column['type']} {json.dumps(said, ensure_ascii=False) if said else ''}".rstrip()
        )
    return lines


async def sample(call: Call, wanted: Sample) -> CallResult:
    asked = {"table": wanted.table, "rows": wanted.rows, "seed": wanted.seed, "where": wanted.where or None}
    return _rows(await call.hands.ask_data(call.agent, "sample", asked))


def _rows(found: dict[str, Any]) -> CallResult:
    rows = [[_cut(value) for value in row] for row in found["rows"]]
    return shown(SqlResult(found["columns"], rows, found["status"], found["truncated"]))


def _cut(value: Any) -> Any:
    """A long value says more about itself than about its table."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:CELL_CHARS_MAX] + "…" if len(text) > CELL_CHARS_MAX else value  # pyright: ignore[reportUnknownVariableType]


async def profile(call: Call, wanted: Profile) -> CallResult:
    asked: dict[str, Any] = {"table": wanted.table, "columns": wanted.columns, "where": wanted.where or None}
    found = await call.hands.ask_data(call.agent, "profile", asked)
    lines = [f"{found['rows']} rows" + (f" looked at, of about {found['rows_estimate']}" if found["sampled"] else "")]
    for column in found["columns"]:
        said = {
            name: value
            for name, value in column.items()
            if name not in ("name", "type") and value not in (None, [], {})
        }
        said["histogram"] = [[one["low"], one["high"], one["count"]] for one in column["histogram"]]
        said["top"] = [[one["value"], one["count"]] for one in column["top"]]
        kept = {name: value for name, value in said.items() if value not in (None, [], {})}
        lines.append(f"{column['name']} {column['type']} {json.dumps(kept, ensure_ascii=False)}")
    if found["columns_left_out"]:
        lines.append(f"[not looked at: {', '.join(found['columns_left_out'])}: name them]")
    return done("\n".join(lines))


async def save(call: Call, wanted: Save) -> CallResult:
    asked: dict[str, Any] = {"name": wanted.name, "query": wanted.query}
    if wanted.expires_h:
        asked["expires_s"] = wanted.expires_h * 3600.0
    found = await call.hands.ask_data(call.agent, "save_result", asked, key=call.key)
    return done(f"{found['table']} has the columns {', '.join(found['columns'])}.")


async def read(call: Call, wanted: Read) -> CallResult:
    asked = {"name": wanted.name, "rows": wanted.rows, "offset": wanted.offset, "where": wanted.where or None}
    return _rows(await call.hands.ask_data(call.agent, "read_result", asked))


async def list_all(call: Call, wanted: Nothing) -> CallResult:
    del wanted
    found = await call.hands.ask_data(call.agent, "list_results", {})
    lines = [
        f"{one['table']} ({', '.join(one['columns'])}), by {one['made_by']} at {one['made_at']}: {_cut(one['query'])}"
        for one in found["results"]
    ]
    return done("\n".join(lines) or "No result was saved yet.")


async def index(call: Call, wanted: Index) -> CallResult:
    asked: dict[str, Any] = {"name": wanted.name, "table": wanted.table, "columns": wanted.columns}
    try:
        found = await call.hands.ask_data(call.agent, "create_index", asked)
    except AlreadyExists:
        if call.order.fresh:
            raise
        return done(f"The search index {wanted.name} is there.")
    left = f" {found['pending']} rows are still to be brought in: searches do that." if found["pending"] else ""
    return done(
        f"The search index {wanted.name} is there, of {found['rows']} rows, by the model {found['model']}.{left}"
    )


async def search(call: Call, wanted: Search) -> CallResult:
    asked = {"query": wanted.query, "index": wanted.index or None, "limit": wanted.limit, "where": wanted.where or None}
    found = await call.hands.ask_data(call.agent, "search", asked)
    lines = [f"{json.dumps(hit['key'])} {hit['similarity']:.2f} {_cut(hit['text'])}" for hit in found["hits"]]
    if found["pending"]:
        lines.append(f"[{found['pending']} changed rows were not looked at yet: search again]")
    return done("\n".join(lines) or "Nothing fits.")


TOOLS = (
    Tool(
        "describe_data",
        "What tables the office's database has: columns, types, keys, indexes, sizes. Look here before you write SQL.",
        Describe,
        describe,
        reads=True,
    ),
    Tool("sample_rows", "Some rows of a table, by chance.", Sample, sample, reads=True),
    Tool(
        "profile_table",
        "What is in the columns of a table: how much is missing or different, least, most, mean, quantiles, frequent values.",
        Profile,
        profile,
        reads=True,
    ),
    Tool("save_result", "Keep the rows of a query by name, to go on with later, as a table.", Save, save),
    Tool("read_result", "Rows of a result that was saved by name.", Read, read, reads=True),
    Tool("list_results", "The results that were saved by name.", Nothing, list_all, reads=True),
    Tool(
        "index_text",
        "Make text columns of a table searchable by search_text; the index follows the table.",
        Index,
        index,
    ),
    Tool(
        "search_text",
        "Rows whose text fits a question best, by meaning and by words. index_text first.",
        Search,
        search,
        reads=True,
    ),
)
