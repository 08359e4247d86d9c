"""`FakeHands`' answers to questions about data: the same shapes, of SQLite tables. A search finds words, nothing is estimated."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue, ValidationError

from tenure.errors import AlreadyExists, InvalidArgument, NotFound
from tenure.wire import data
from tenure.work.hands import Hands

MADE_AT = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
KEPT = "tenure_kept"


async def fake_answer(
    hands: Hands, agent: str, question: str, arguments: Mapping[str, JsonValue], key: str | None
) -> dict[str, Any]:
    if question not in data.QUESTIONS:
        raise InvalidArgument(f"There is no question {question[:40]!r}.")
    asked, answered = data.QUESTIONS[question]
    try:
        wanted = asked.model_validate(dict(arguments)).model_dump()
    except ValidationError as error:
        raise InvalidArgument(str(error)) from None
    found = await _Database(hands, agent).answer(question, wanted, key)
    return answered.model_validate(found).model_dump(mode="json")


class _Database:
    def __init__(self, hands: Hands, agent: str) -> None:
        self._hands, self._agent = hands, agent

    async def _rows(self, statement: str, rows_max: int = 1000, key: str | None = None) -> Any:
        reads = statement.startswith("select")
        return await self._hands.sql(self._agent, statement, rows_max=rows_max, key=key, read_only=reads)

    async def answer(self, question: str, wanted: dict[str, Any], key: str | None) -> Any:
        match question:
            case "describe":
                return await self._describe(wanted["table"])
            case "sample":
                await self._columns(wanted["table"])
                return _plain(await self._rows(f'select * from "{wanted["table"]}" order by 1', wanted["rows"]))
            case "profile":
                return await self._profile(wanted["table"])
            case "save_result":
                return await self._save(wanted, key)
            case "list_results":
                return {"results": await self._kept("result")}
            case "read_result":
                await self._one("result", wanted["name"])
                return _plain(await self._rows(f'select * from "results_{wanted["name"]}"', wanted["rows"]))
            case "create_index":
                return await self._index(wanted)
            case "list_indexes":
                return {"indexes": await self._kept("index"), "models": ["fake"]}
            case _:
                return await self._search(wanted)

    async def _tables(self) -> list[str]:
        found = await self._rows("select name from sqlite_master where type = 'table' and name not like 'tenure_%'")
        return sorted(row[0] for row in found.rows)

    async def _columns(self, table: str) -> list[Any]:
        if table not in await self._tables():
            raise NotFound(f"There is no table {table!r}.")
        return (await self._rows(f"select name, type, \"notnull\", pk from pragma_table_info('{table}')")).rows

    async def _describe(self, table: str | None) -> dict[str, Any]:
        tables: list[dict[str, Any]] = []
        for name in [table] if table else await self._tables():
            columns = await self._columns(name)
            said = [{"name": one, "type": kind, "nullable": not full} for one, kind, full, _ in columns]
            key = [one for one, _, _, place in columns if place]
            empty: dict[str, Any] = {"unique_keys": [], "foreign_keys": [], "checks": [], "indexes": []}
            fields = {"in_schema": "public", "name": name, "kind": "table", "size_bytes": 0, "primary_key": key}
            tables.append(fields | empty | {"columns": said})
        return {"tables": tables, "more": False, "extensions": [], "size_bytes": 0}

    async def _profile(self, table: str) -> dict[str, Any]:
        columns: list[dict[str, Any]] = []
        rows = 0
        for name, kind, *_ in await self._columns(table):
            asked = f'count(*), count("{name}"), count(distinct "{name}"), min("{name}"), max("{name}")'
            rows, there, distinct, low, high = (await self._rows(f'select {asked} from "{table}"')).rows[0]
            said = {"name": name, "type": kind, "nulls": rows - there, "distinct": distinct, "min": low, "max": high}
            columns.append(said)
        fields: dict[str, Any] = {
            "in_schema": "public",
            "table": table,
            "rows": rows,
            "sampled": False,
            "columns_left_out": list[str](),
        }
        return fields | {"columns": columns}

    async def _save(self, wanted: dict[str, Any], key: str | None) -> Any:
        table = f"results_{wanted['name']}"
        await self._keep("result", wanted["name"], "", [])
        query = str(wanted["query"]).rstrip("; ")
        await self._rows(f'drop table if exists "{table}"; create table "{table}" as {query}', key=key)
        return (await self._one("result", wanted["name"])) | {"query": query}

    async def _index(self, wanted: dict[str, Any]) -> Any:
        await self._columns(wanted["table"])
        if any(one["name"] == wanted["name"] for one in await self._kept("index")):
            raise AlreadyExists(f"There is a search index {wanted['name']} already.")
        await self._keep("index", wanted["name"], wanted["table"], wanted["columns"])
        return await self._one("index", wanted["name"])

    async def _search(self, wanted: dict[str, Any]) -> dict[str, Any]:
        indexes = await self._kept("index")
        index = next((one for one in indexes if wanted["index"] in (None, one["name"])), None)
        if index is None:
            raise NotFound("There is no search index.")
        names = ", ".join(f'"{name}"' for name in index["columns"])
        hits: list[dict[str, Any]] = []
        for rowid, *texts in (await self._rows(f'select rowid, {names} from "{index["table"]}"')).rows:
            text = " ".join(map(str, texts))
            score = sum(word in text.lower() for word in wanted["query"].lower().split())
            if score:
                hits.append({"key": {"rowid": rowid}, "score": score, "similarity": 0.0, "text": text, "row": {}})
        hits.sort(key=lambda hit: -hit["score"])
        return {"hits": hits[: wanted["limit"]], "index": index["name"], "model": "fake", "pending": 0}

    async def _keep(self, kind: str, name: str, table: str, columns: list[str]) -> None:
        await self._rows(f"create table if not exists {KEPT} (kind, name, of, columns, primary key (kind, name))")
        listed = ",".join(columns)
        await self._rows(f"insert or replace into {KEPT} values ('{kind}', '{name}', '{table}', '{listed}')")

    async def _one(self, kind: str, name: str) -> Any:
        for one in await self._kept(kind):
            if one["name"] == name:
                return one
        raise NotFound(f"There is no {kind} {name!r}.")

    async def _kept(self, kind: str) -> list[dict[str, Any]]:
        if not (await self._rows(f"select 1 from sqlite_master where name = '{KEPT}'")).rows:
            return []
        found = (await self._rows(f"select name, of, columns from {KEPT} where kind = '{kind}' order by name")).rows
        said: list[dict[str, Any]] = []
        for name, table, columns in found:
            names: list[str] = str(columns).split(",") if columns else []
            one: dict[str, Any] = {"name": name, "made_by": "fake", "made_at": MADE_AT, "columns": names}
            if kind == "index":
                said.append(one | {"table": table, "model": "fake", "dimension": 1, "rows": 0, "pending": 0})
            else:
                said.append(one | {"table": f"results_{name}", "query": "", "size_bytes": 0})
        return said


def _plain(found: Any) -> dict[str, Any]:
    return {"columns": found.columns, "rows": found.rows, "status": found.status, "truncated": found.truncated}
