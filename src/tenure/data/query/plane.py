"""`DataPlane`: all that can be asked of one database, in one place, for the API and for brains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenure.data.query import describe, profile, results, sample
from tenure.data.query.search import indexes, refreshing, searching
from tenure.data.query.search.models import Models
from tenure.data.query.source import Source
from tenure.errors import InvalidArgument, NotFound
from tenure.work.hands import SqlResult


@dataclass(frozen=True)
class DataPlane:
    """Of `source`, asked by `by`, who is written down with what is made. Raises as the functions that it stands for."""

    source: Source
    models: Models
    by: str

    async def describe(self, table: str | None = None, like: str | None = None, limit: int = 100) -> describe.Schema:
        return await describe.describe(self.source, table=table, like=like, limit=limit)

    async def sample(
        self, table: str, *, rows: int = 20, seed: int = 0, columns: Sequence[str] = (), where: str | None = None
    ) -> SqlResult:
        return await sample.sample(self.source, table, rows=rows, seed=seed, columns=columns, where=where)

    async def profile(
        self, table: str, *, columns: Sequence[str] = (), where: str | None = None, seed: int = 0
    ) -> profile.Profile:
        return await profile.profile(self.source, table, columns=columns, where=where, seed=seed)

    # --- results -------------------------------------------------------------------------------------------------------
    async def save_result(
        self, name: str, query: str, *, expires_s: float | None = None, key: str | None = None
    ) -> results.SavedResult:
        return await results.save(self.source, name, query, by=self.by, expires_s=expires_s, key=key)

    async def list_results(self) -> list[results.SavedResult]:
        return await results.list_results(self.source)

    async def read_result(
        self, name: str, *, rows: int = results.ROWS_DEFAULT, offset: int = 0, where: str | None = None
    ) -> SqlResult:
        return await results.read(self.source, name, rows=rows, offset=offset, where=where)

    async def drop_result(self, name: str) -> None:
        await results.drop(self.source, name)

    # --- search --------------------------------------------------------------------------------------------------------
    async def create_index(
        self, name: str, table: str, columns: Sequence[str], model: str | None = None
    ) -> indexes.Index:
        """With as many of its rows as can be brought in within `refreshing.REFRESH_S`; the rest is pending."""
        embedder = self.models.get(model)
        made = await indexes.create(self.source, name, table, columns, embedder, by=self.by)
        await refreshing.refresh(self.source, made, embedder)
        return await indexes.get(self.source, name)

    async def list_indexes(self) -> list[indexes.Index]:
        return await indexes.list_indexes(self.source)

    async def refresh_index(self, name: str) -> indexes.Index:
        found = await indexes.get(self.source, name)
        await refreshing.refresh(self.source, found, self.models.get(found.model))
        return await indexes.get(self.source, name)

    async def drop_index(self, name: str) -> None:
        await indexes.drop(self.source, name)

    async def search(
        self,
        query: str,
        *,
        index: str | None = None,
        limit: int = searching.LIMIT_DEFAULT,
        where: str | None = None,
        columns: Sequence[str] = (),
    ) -> tuple[indexes.Index, searching.Found]:
        """In the index called so, or the only one there is."""
        found = await self._index(index)
        embedder = self.models.get(found.model)
        return found, await searching.search(
            self.source, found, embedder, query, limit=limit, where=where, columns=columns
        )

    async def _index(self, name: str | None) -> indexes.Index:
        if name is not None:
            return await indexes.get(self.source, name)
        there = await indexes.list_indexes(self.source)
        if len(there) == 1:
            return there[0]
        if not there:
            raise NotFound("There is no search index.", hint="Make one: `tenure search create AGENT TABLE COLUMN…`.")
        raise InvalidArgument(
            "There are several search indexes.", hint="Name one: " + ", ".join(one.name for one in there)
        )
