"""Compares the tables of two offices' databases, each in a throw-away server of its own.

A table's rows are read twice at most: first only to see whether they are the same as before, which most tables' are; if
not, they go from both servers into a third database, the *judge*, where nothing is but text. So what an agent made
is neither run nor held in memory here, however much it is. See `tenure.data.throwaway`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass
from typing import TypeVar

from tenure.data import judge
from tenure.data.tables import (
    CATALOG,
    CATALOG_BYTES_MAX,
    TABLES_MAX,
    DatabaseDiff,
    Reading,
    Table,
    TableDiff,
    begin,
    paired,
    read_catalog,
)
from tenure.data.throwaway import ThrowAway
from tenure.errors import ConnectionLost, TenureError, TooLarge
from tenure.faultpoints import reach
from tenure.postgres.client import Connection

T = TypeVar("T")
TIME_S = 120.0
TABLE_BYTES_MAX = 512 * 1024 * 1024
"""Of one table's rows as text, on each side. The judge needs three times as much room at most."""
ROOM_BYTES = 3 * 1024**3
"""What a volume must hold beyond its own for a comparison in it."""
ANSWER_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True)
class Bounds:
    """Of one comparison."""

    time_s: float = TIME_S
    """With the servers' start."""
    table_bytes_max: int = TABLE_BYTES_MAX


async def compare_databases(before: ThrowAway, after: ThrowAway, bounds: Bounds = Bounds()) -> DatabaseDiff:
    """What became of tables and rows. Does not raise for anything that a database holds or does: what could not be compared
    says so. Both servers are stopped at the end."""
    found = DatabaseDiff()
    try:
        async with asyncio.timeout(bounds.time_s):
            await _both(before.start(), after.start())
            reach("diff.reading")
            await _Comparison(before, after, bounds, found).run()
    except TimeoutError:
        found.problem = f"The time for it ({bounds.time_s:g} s) was over before all tables were compared."
    except (TenureError, OSError) as error:
        found.problem = error.message if isinstance(error, TenureError) else f"The database does not answer: {error}"
    finally:
        await asyncio.shield(_both(before.stop(), after.stop()))
    found.tables = [table for table in found.tables if not table.is_unchanged]
    return found


async def _both(first: Awaitable[T], second: Awaitable[T]) -> tuple[T, T]:
    """Both at once; when one fails, the other has ended, too."""
    done = await asyncio.gather(first, second, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return done  # type: ignore[return-value]


class _Comparison:
    def __init__(self, before: ThrowAway, after: ThrowAway, bounds: Bounds, found: DatabaseDiff) -> None:
        self._before, self._after, self._bounds, self._found = before, after, bounds, found
        self._deadline = time.monotonic() + bounds.time_s

    async def run(self) -> None:
        catalogs = await _both(self._catalog(self._before), self._catalog(self._after))
        pairs = [(pair, begin(*pair)) for pair in paired(*self._comparable(*catalogs))]
        # All at once, so that an end of the time in the middle leaves what the catalogs tell.
        self._found.tables = [told for _, told in pairs]
        for (then, now), told in pairs:
            if any(table is not None and table.has_rows for table in (then, now)):
                told.problem = "not compared: the time was over"
        for (then, now), told in pairs:
            if told.problem is not None:
                await self._compare(then, now, told)
            elif told.rows_added is None:
                told.rows_added = told.rows_removed = told.rows_changed = 0

    def _comparable(self, then: list[Table], now: list[Table]) -> tuple[list[Table], list[Table]]:
        """Without those past the end of a catalog that was cut: whether the other one has them is not known."""
        ends = [tables[-1].order for tables in (then, now) if len(tables) >= TABLES_MAX]
        if not ends:
            return then, now
        self._found.problem = f"There are more than {TABLES_MAX} tables; only the first were compared."
        end = min(ends)
        return [one for one in then if one.order <= end], [one for one in now if one.order <= end]

    @property
    def _left_s(self) -> float:
        return max(0.001, self._deadline - time.monotonic())

    async def _catalog(self, server: ThrowAway) -> list[Table]:
        async with _closing(server.read(self._left_s)) as connection:
            result = await connection.query(CATALOG, rows_max=TABLES_MAX, bytes_max=CATALOG_BYTES_MAX)
            if result.truncated:
                raise TooLarge("The tables have too many columns to be compared.")
            return read_catalog(result)

    async def _compare(self, then: Table | None, now: Table | None, told: TableDiff) -> None:
        reading = Reading.of(then, now)
        try:
            if not reading.columns:
                told.problem = "not compared: no column is there in both"
            else:
                await self._compare_rows(reading, then, now, told)
                told.problem = None
                self._found.compared += 1
        except ConnectionLost:  # the server is gone: it would be for every other table, too
            told.problem = "not compared: its database stopped"
            raise
        except TenureError as error:
            told.problem = f"not compared: {error.message}"

    async def _compare_rows(self, reading: Reading, then: Table | None, now: Table | None, told: TableDiff) -> None:
        prints = await _both(
            self._fingerprint(self._before, then, reading), self._fingerprint(self._after, now, reading)
        )
        if prints[0] == prints[1]:
            told.rows_added = told.rows_removed = told.rows_changed = 0
            return
        async with _closing(self._after.judge(self._left_s)) as judging:
            await judging.query(judge.make(reading))
            for server, table, side in ((self._before, then, "before"), (self._after, now, "after")):
                if table is not None:
                    async with _closing(server.read(self._left_s)) as source:
                        await judging.copy_in(judge.fill(side), source.copy_frames(reading.copy_out(table)))
            await judging.query(judge.find(reading))
            counts = (await judging.query(judge.COUNT, rows_max=1)).rows[0]
            rows = await judging.query(judge.show(reading), rows_max=1000, bytes_max=ANSWER_BYTES_MAX)
            await judging.query(judge.CLEAR)
        told.rows = judge.shown(reading, rows)
        told.rows_added, told.rows_removed, told.rows_changed = (int(count or 0) for count in counts)

    async def _fingerprint(self, server: ThrowAway, table: Table | None, reading: Reading) -> bytes:
        """The same for the same rows in the same order. Raises `TooLarge`."""
        digest, size = hashlib.blake2b(), 0
        if table is not None:
            async with _closing(server.read(self._left_s)) as source:
                async for piece in source.copy_frames(reading.copy_out(table)):
                    digest.update(piece)
                    size += len(piece)
                    if size > self._bounds.table_bytes_max:
                        raise TooLarge(f"its rows are more than {self._bounds.table_bytes_max >> 20} MiB of text")
        return digest.digest()


@contextlib.asynccontextmanager
async def _closing(opening: Awaitable[Connection]) -> AsyncGenerator[Connection]:
    connection = await opening
    try:
        yield connection
    finally:
        connection.close()
