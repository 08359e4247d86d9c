"""What is in a database, for the SDK: `agent.data.describe()`, `.sample("sales")`, `.profile("sales")`, `.search("late pay")`.

Tables are named as they are, without quotes, or as SCHEMA.TABLE; `where` is a condition in SQL, as after WHERE, and only reads.
Every method raises `NotFound`, `InvalidArgument`, `DatabaseError`, `CommandTimeout`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenure import wire
from tenure.client import data_calls, views
from tenure.client.transport import AsyncTransport, Transport
from tenure.wire import data


class Data:
    """Of one database: `of` says which (`data_calls.of_agent`)."""

    def __init__(self, transport: Transport, of: str) -> None:
        self._transport, self._of = transport, of

    def describe(self, table: str | None = None, *, like: str | None = None, limit: int = 100) -> data.DataSchema:
        """Tables and views with columns, types, keys, indexes, comments, row estimates and sizes: all of them, one, or those
        with `like` in their name. With them the database's extensions."""
        return self._transport.send(data_calls.describe(self._of, table, like, limit))

    def sample(
        self, table: str, rows: int = 20, *, seed: int = 0, columns: Sequence[str] = (), where: str | None = None
    ) -> wire.SqlResult:
        """Some rows by chance: the same ones for the same seed, while the table does not change."""
        with views.refusing():
            request = data.SampleRequest(table=table, rows=rows, seed=seed, columns=list(columns), where=where)
        return self._transport.send(data_calls.sample(self._of, request))

    def profile(
        self, table: str, *, columns: Sequence[str] = (), where: str | None = None, seed: int = 0
    ) -> data.DataProfile:
        """Of each column what is missing, different, least, most, usual and frequent. Of a large table, from a part of it."""
        with views.refusing():
            request = data.ProfileRequest(table=table, columns=list(columns), where=where, seed=seed)
        return self._transport.send(data_calls.profile(self._of, request))

    def save_result(
        self, name: str, query: str, *, expires_s: float | None = None, key: str | None = None
    ) -> data.SavedResult:
        """Keeps the rows of a query as the table `results.NAME`, in the place of an earlier one; with a `key` once."""
        with views.refusing():
            request = data.ResultRequest(query=query, expires_s=expires_s, key=key)
        return self._transport.send(data_calls.save_result(self._of, name, request))

    def results(self) -> list[data.SavedResult]:
        """The newest first."""
        return self._transport.send(data_calls.list_results(self._of)).results

    def read_result(self, name: str, rows: int = 100, *, offset: int = 0, where: str | None = None) -> wire.SqlResult:
        with views.refusing():
            request = data.ResultReadRequest(rows=rows, offset=offset, where=where)
        return self._transport.send(data_calls.read_result(self._of, name, request))

    def drop_result(self, name: str) -> None:
        self._transport.send(data_calls.drop_result(self._of, name))

    def search(
        self,
        query: str,
        *,
        index: str | None = None,
        limit: int = 10,
        where: str | None = None,
        columns: Sequence[str] = (),
    ) -> data.SearchFound:
        """Rows whose text fits best, by vectors and words together; `columns` are told beside the text. `index` may be left out
        where there is one only. Changes since the last search are brought in first, as far as that is quick."""
        with views.refusing():
            request = data.SearchRequest(query=query, index=index, limit=limit, where=where, columns=list(columns))
        return self._transport.send(data_calls.search(self._of, request))

    def indexes(self) -> data.SearchIndexList:
        """The search indexes, and the models that one can be made with."""
        return self._transport.send(data_calls.list_indexes(self._of))

    def create_index(
        self, name: str, table: str, columns: Sequence[str], *, model: str | None = None
    ) -> data.SearchIndex:
        """A search index of the text of columns, together one text of each row; the table needs a primary key. Raises
        `AlreadyExists`, `ModelError`."""
        with views.refusing():
            request = data.SearchIndexRequest(table=table, columns=list(columns), model=model)
        return self._transport.send(data_calls.create_index(self._of, name, request))

    def refresh_index(self, name: str) -> data.SearchIndex:
        """Brings in rows that changed, for a minute at most; `pending` says how many are left."""
        return self._transport.send(data_calls.refresh_index(self._of, name))

    def drop_index(self, name: str) -> None:
        self._transport.send(data_calls.drop_index(self._of, name))


class AsyncData:
    """Of one database: `of` says which (`data_calls.of_agent`)."""

    def __init__(self, transport: AsyncTransport, of: str) -> None:
        self._transport, self._of = transport, of

    async def describe(self, table: str | None = None, *, like: str | None = None, limit: int = 100) -> data.DataSchema:
        """Tables and views with columns, types, keys, indexes, comments, row estimates and sizes: all of them, one, or those
        with `like` in their name. With them the database's extensions."""
        return await self._transport.send(data_calls.describe(self._of, table, like, limit))

    async def sample(
        self, table: str, rows: int = 20, *, seed: int = 0, columns: Sequence[str] = (), where: str | None = None
    ) -> wire.SqlResult:
        """Some rows by chance: the same ones for the same seed, while the table does not change."""
        with views.refusing():
            request = data.SampleRequest(table=table, rows=rows, seed=seed, columns=list(columns), where=where)
        return await self._transport.send(data_calls.sample(self._of, request))

    async def profile(
        self, table: str, *, columns: Sequence[str] = (), where: str | None = None, seed: int = 0
    ) -> data.DataProfile:
        """Of each column what is missing, different, least, most, usual and frequent. Of a large table, from a part of it."""
        with views.refusing():
            request = data.ProfileRequest(table=table, columns=list(columns), where=where, seed=seed)
        return await self._transport.send(data_calls.profile(self._of, request))

    async def save_result(
        self, name: str, query: str, *, expires_s: float | None = None, key: str | None = None
    ) -> data.SavedResult:
        """Keeps the rows of a query as the table `results.NAME`, in the place of an earlier one; with a `key` once."""
        with views.refusing():
            request = data.ResultRequest(query=query, expires_s=expires_s, key=key)
        return await self._transport.send(data_calls.save_result(self._of, name, request))

    async def results(self) -> list[data.SavedResult]:
        """The newest first."""
        return (await self._transport.send(data_calls.list_results(self._of))).results

    async def read_result(
        self, name: str, rows: int = 100, *, offset: int = 0, where: str | None = None
    ) -> wire.SqlResult:
        with views.refusing():
            request = data.ResultReadRequest(rows=rows, offset=offset, where=where)
        return await self._transport.send(data_calls.read_result(self._of, name, request))

    async def drop_result(self, name: str) -> None:
        await self._transport.send(data_calls.drop_result(self._of, name))

    async def search(
        self,
        query: str,
        *,
        index: str | None = None,
        limit: int = 10,
        where: str | None = None,
        columns: Sequence[str] = (),
    ) -> data.SearchFound:
        """Rows whose text fits best, by vectors and words together; `columns` are told beside the text. `index` may be left out
        where there is one only. Changes since the last search are brought in first, as far as that is quick."""
        with views.refusing():
            request = data.SearchRequest(query=query, index=index, limit=limit, where=where, columns=list(columns))
        return await self._transport.send(data_calls.search(self._of, request))

    async def indexes(self) -> data.SearchIndexList:
        """The search indexes, and the models that one can be made with."""
        return await self._transport.send(data_calls.list_indexes(self._of))

    async def create_index(
        self, name: str, table: str, columns: Sequence[str], *, model: str | None = None
    ) -> data.SearchIndex:
        """A search index of the text of columns, together one text of each row; the table needs a primary key. Raises
        `AlreadyExists`, `ModelError`."""
        with views.refusing():
            request = data.SearchIndexRequest(table=table, columns=list(columns), model=model)
        return await self._transport.send(data_calls.create_index(self._of, name, request))

    async def refresh_index(self, name: str) -> data.SearchIndex:
        """Brings in rows that changed, for a minute at most; `pending` says how many are left."""
        return await self._transport.send(data_calls.refresh_index(self._of, name))

    async def drop_index(self, name: str) -> None:
        await self._transport.send(data_calls.drop_index(self._of, name))
