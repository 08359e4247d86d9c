"""What is in a database: schema, samples, profiles, results by name, search. The same for every kind of database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from tenure import wire
from tenure.data.query.plane import DataPlane
from tenure.data.query.search.indexes import Index
from tenure.data.query.source import Source
from tenure.server.access import AgentName, Caller, DatabaseName, Has, of_agent, of_database, requires
from tenure.server.api.databases import Agent, acting
from tenure.server.api.sql import while_wanted
from tenure.server.checks import check_text
from tenure.server.services import Databases
from tenure.wire import data
from tenure.work.hands import SqlResult


def add_routes(
    router: APIRouter, of: str, resource: Callable[..., Awaitable[Any]], source_of: Callable[..., Awaitable[Source]]
) -> None:
    """Adds the routes below `of` for a database that `source_of`, a dependency, finds, and that `resource` says what it is of to
    whoever decides."""
    may = [requires("database:connect", resource)]

    async def plane_of(has: Has, caller: Caller, source: Source = Depends(source_of)) -> DataPlane:
        return DataPlane(source, has.models, str(caller))

    its_plane = Depends(plane_of)

    @router.get(f"{of}/data/schema", response_model=data.DataSchema, dependencies=may)
    async def describe(
        table: Annotated[str | None, Query(max_length=data.TABLE_CHARS_MAX)] = None,
        like: Annotated[str | None, Query(max_length=data.TABLE_CHARS_MAX)] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
        plane: DataPlane = its_plane,
    ) -> Any:
        """Tables and views with columns, types, keys, indexes, comments, about how many rows and how large; the extensions."""
        return await plane.describe(_text("table", table), _text("like", like), limit)

    @router.post(f"{of}/data/sample", response_model=wire.SqlResult, dependencies=may)
    async def sample(body: data.SampleRequest, request: Request, plane: DataPlane = its_plane) -> Any:
        """Some rows of a table by chance, the same ones for the same seed."""
        work = plane.sample(
            check_text("table", body.table), rows=body.rows, seed=body.seed, columns=body.columns, where=body.where
        )
        return await while_wanted(request, work)

    @router.post(f"{of}/data/profile", response_model=data.DataProfile, dependencies=may)
    async def profile(body: data.ProfileRequest, request: Request, plane: DataPlane = its_plane) -> Any:
        """Of each column: how many values are missing or different, least, most, mean, quantiles, histogram, frequent ones."""
        work = plane.profile(check_text("table", body.table), columns=body.columns, where=body.where, seed=body.seed)
        return await while_wanted(request, work)

    @router.get(f"{of}/data/results", response_model=data.SavedResultList, dependencies=may)
    async def list_results(plane: DataPlane = its_plane) -> Any:
        """The newest first."""
        return {"results": await plane.list_results()}

    @router.put(f"{of}/data/results/{{result}}", response_model=data.SavedResult, dependencies=may)
    async def save_result(result: str, body: data.ResultRequest, request: Request, plane: DataPlane = its_plane) -> Any:
        """Keeps the rows of a query by name; one of the same name is replaced."""
        key = check_text("key", body.key) if body.key is not None else None
        work = plane.save_result(result, check_text("query", body.query), expires_s=body.expires_s, key=key)
        return await work if key is not None else await while_wanted(request, work)

    @router.post(f"{of}/data/results/{{result}}/rows", response_model=wire.SqlResult, dependencies=may)
    async def read_result(
        result: str, body: data.ResultReadRequest, request: Request, plane: DataPlane = its_plane
    ) -> Any:
        work = plane.read_result(result, rows=body.rows, offset=body.offset, where=body.where)
        return await while_wanted(request, work)

    @router.delete(f"{of}/data/results/{{result}}", status_code=204, dependencies=may)
    async def drop_result(result: str, plane: DataPlane = its_plane) -> None:
        await plane.drop_result(result)

    @router.post(f"{of}/data/search", response_model=data.SearchFound, dependencies=may)
    async def search(body: data.SearchRequest, request: Request, plane: DataPlane = its_plane) -> Any:
        """Rows whose text fits best, by vectors and by words together."""
        work = plane.search(
            check_text("query", body.query), index=body.index, limit=body.limit, where=body.where, columns=body.columns
        )
        index, found = await while_wanted(request, work)
        return {"hits": found.hits, "index": index.name, "model": index.model, "pending": found.pending}

    @router.get(f"{of}/data/search", response_model=data.SearchIndexList, dependencies=may)
    async def list_indexes(has: Has, plane: DataPlane = its_plane) -> Any:
        """The search indexes, and the models that there can be ones with."""
        return {"indexes": [shown(one) for one in await plane.list_indexes()], "models": has.models.names}

    @router.put(f"{of}/data/search/{{index}}", response_model=data.SearchIndex, dependencies=may)
    async def create_index(index: str, body: data.SearchIndexRequest, plane: DataPlane = its_plane) -> Any:
        """Makes a search index of text columns, and brings its rows in, for a minute at most: the rest is pending."""
        return shown(await plane.create_index(index, check_text("table", body.table), body.columns, body.model))

    @router.post(f"{of}/data/search/{{index}}/refresh", response_model=data.SearchIndex, dependencies=may)
    async def refresh_index(index: str, plane: DataPlane = its_plane) -> Any:
        """Brings in what is pending, for a minute at most."""
        return shown(await plane.refresh_index(index))

    @router.delete(f"{of}/data/search/{{index}}", status_code=204, dependencies=may)
    async def drop_index(index: str, plane: DataPlane = its_plane) -> None:
        await plane.drop_index(index)


def shown(index: Index) -> dict[str, Any]:
    """As `wire.data.SearchIndex` says it."""
    names = ("name", "table", "columns", "model", "dimension", "rows", "pending", "made_by", "made_at")
    return {name: getattr(index, name) for name in names}


def _text(name: str, text: str | None) -> str | None:
    return None if text is None else check_text(name, text)


async def _of_agent(name: AgentName, has: Has) -> Source:
    return await has.offices.database(name)


@dataclass(frozen=True)
class SharedSource:
    """A shared database as the owner, or as an agent with what was granted to it."""

    databases: Databases
    name: str
    agent: str | None

    async def execute(
        self,
        statement: str,
        *,
        key: str | None = None,
        rows_max: int = 1000,
        timeout_s: float = wire.STATEMENT_TIMEOUT_S_MAX,
        read_only: bool = False,
    ) -> SqlResult:
        """See `tenure.data.query.source.Source`."""
        return await self.databases.execute(
            self.name, statement, agent=self.agent, key=key, rows_max=rows_max, timeout_s=timeout_s, read_only=read_only
        )


async def _of_shared(name: DatabaseName, has: Has, caller: Caller, agent: Agent = None) -> Source:
    return SharedSource(has.databases, name, acting(caller, agent))


router = APIRouter(tags=["data"])
add_routes(router, "/v1/agents/{name}", of_agent("database"), _of_agent)
add_routes(router, "/v1/databases/{name}", of_database, _of_shared)
