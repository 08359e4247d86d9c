"""Puts a file's rows into a table: all of it in one transaction, which is also the only place where it is known to have happened.

New rows go straight into a new table, or one that only grows; else into a temporary one, and from there where they belong at
the end, so that readers see the old rows or the new ones. Whatever dies in the middle, PostgreSQL rolls back: nothing is left.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tenure.data import effects
from tenure.data.ingestion import evolve, types
from tenure.data.ingestion.batches import RAW_CHARS_MAX, REJECTS_MAX
from tenure.data.ingestion.evolve import Change, Fit, TableColumn
from tenure.data.ingestion.names import COLUMNS_MAX, Table, quoted
from tenure.data.ingestion.parser import Parsers, Progress
from tenure.data.ingestion.plan import Column, Hints, Outcome, Plan
from tenure.errors import Conflict, DatabaseError, InvalidArgument, TooLarge
from tenure.faultpoints import reach
from tenure.postgres import wire
from tenure.postgres.client import Connection

TIMEOUT_S = 6 * 3600.0
RESULT_BYTES_MAX = 4 * 1024 * 1024
PASSES_MAX = 6
"""Readings of one file: each one after the first knows more of its types."""
FILE_BYTES = 1024 * 1024
STAGING = '"pg_temp"."tenure_staging"'
LINE = "tenure_line"
MODES = ("append", "replace", "upsert")
_REJECTS = (("load", "text"), ("line", "bigint"), ("reason", "text"), ("raw", "text"))


class Sessions(Protocol):
    """The database that a load goes into."""

    def session(self, timeout_s: float) -> AbstractAsyncContextManager[Connection]: ...


@dataclass(frozen=True)
class Order:
    """What is to become of a file. `digest` is that of its content."""

    load: str
    table: Table
    digest: str
    mode: str = "append"
    keys: tuple[str, ...] = ()
    hints: Hints = field(default_factory=Hints)
    again: bool = False

    def check(self) -> Order:
        """Raises `InvalidArgument`."""
        if self.mode not in MODES:
            raise InvalidArgument(f"{self.mode!r} is not a way to load.", hint=f"One of: {', '.join(MODES)}.")
        if (self.mode == "upsert") != bool(self.keys):
            raise InvalidArgument(
                "upsert needs the columns of its key, and nothing else does.", hint="Give --key COL,COL."
            )
        if len(set(self.keys)) != len(self.keys) or len(self.keys) > 32:
            raise InvalidArgument("A key is up to 32 columns, each once.")
        self.hints.check()
        return self

    @property
    def key(self) -> str:
        """Of the effect: the same content into the same table in the same way is one."""
        said = json.dumps([self.digest, self.mode, self.keys, vars(self.hints), self.load if self.again else ""])
        return f"{self.prefix}{hashlib.sha256(said.encode()).hexdigest()}"

    @property
    def prefix(self) -> str:
        return f"load:{hashlib.sha256(str(self.table).encode()).hexdigest()[:24]}:"


@dataclass(frozen=True)
class Loaded:
    """`by` is the load that did it, which may be an earlier one."""

    by: str
    rows: int
    rejected: int
    columns: tuple[tuple[str, str], ...]
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asks:
    """Nothing was done: these changes have to be allowed."""

    plan: Plan
    changes: tuple[Change, ...]


async def load(
    sessions: Sessions,
    parsers: Parsers,
    directory: Path,
    plan: Plan,
    order: Order,
    progress: Progress,
    *,
    allowed: bool,
) -> Loaded | Asks:
    """Loads the file in `directory`, or finds that it was. With `allowed` the table is changed to fit, without it that is asked.
    Raises `DatabaseError`, `ConnectionLost` (it is not known whether it happened: `find` tells), `DiskFull`, and what reading
    raises; then nothing happened."""
    for _ in range(PASSES_MAX):
        async with sessions.session(TIMEOUT_S) as connection:
            if not await _claimed(connection, order):
                return await _stored(connection, order)
            found = await _Pass(connection, parsers, directory, plan, order, progress, allowed=allowed).carry_out()
            if not isinstance(found, Plan):
                return found
            plan = found
    raise InvalidArgument(
        f"After {PASSES_MAX} readings the types of the columns are still not clear; nothing was loaded.",
        hint="Load into a table whose columns are text.",
    )


async def find(sessions: Sessions, order: Order) -> Loaded | None:
    """What became of a load whose end nobody saw."""
    async with sessions.session(TIMEOUT_S) as connection:
        try:
            return await _stored(connection, order)
        except (Conflict, DatabaseError):
            return None


async def _claimed(connection: Connection, order: Order) -> bool:
    if await effects.claim(connection, order.key):
        return True
    if await _relation(connection, order.table) is not None:
        return False
    # Its table was dropped since: then it is not loaded.
    await connection.query(f"DELETE FROM tenure.effects WHERE key = {literal(order.key)}")
    return await effects.claim(connection, order.key)


async def _stored(connection: Connection, order: Order) -> Loaded:
    kept = await effects.stored(connection, order.key, bytes_max=RESULT_BYTES_MAX)
    columns = tuple((str(name), str(kind)) for name, kind in kept["columns"])
    return Loaded(str(kept["by"]), int(kept["rows"]), int(kept["rejected"]), columns, tuple(kept["changes"]))


async def _relation(connection: Connection, table: Table) -> str | None:
    """What kind of thing there is of that name."""
    found = await connection.query(
        f"SELECT relkind FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass({literal(table.sql)})", rows_max=1
    )
    return found.rows[0][0].decode() if found.rows and found.rows[0][0] else None


class _Pass:
    """One reading of the file, in an open transaction."""

    def __init__(
        self,
        connection: Connection,
        parsers: Parsers,
        directory: Path,
        plan: Plan,
        order: Order,
        progress: Progress,
        *,
        allowed: bool,
    ) -> None:
        self._sql, self._parsers, self._directory = connection, parsers, directory
        self._plan, self._order, self._progress, self._allowed = plan, order, progress, allowed
        self._table = order.table

    async def carry_out(self) -> Loaded | Asks | Plan:
        kind = await _relation(self._sql, self._table)
        if kind not in (None, "r", "p"):
            raise InvalidArgument(f"{self._table} is not a table.", hint="Name another one with --into.")
        fit = await self._fitted(is_new=kind is None)
        if fit.changes and not self._allowed:
            await self._sql.query("ROLLBACK")
            return Asks(self._plan, fit.changes)
        needed = self._places_of_keys(fit.plan)
        is_new, mode = kind is None, self._order.mode
        if is_new:
            await self._sql.query(f"CREATE TABLE {self._table.sql} ({_definitions(fit.plan.columns)})")
        else:
            await self._change(fit.changes)
        staged = mode == "upsert" or bool(fit.through_text) or (mode == "replace" and not is_new)
        if staged:
            await self._stage(fit)
        target = STAGING if staged else self._table.sql
        outcome, rows = await self._copy(fit, target, needed, numbered=bool(fit.through_text))
        if outcome.again is not None:
            await self._sql.query("ROLLBACK")
            return _renamed(outcome.again, self._plan)
        rejected = outcome.rejects
        if rejected:
            await self._keep_rejects()
        if fit.through_text:
            rejected += await self._reject_misfits(fit.through_text, rejected)
        if staged:
            rows = await self._move(fit, is_new=is_new)
        return await self._settle(fit, rows, rejected)

    # --- before -------------------------------------------------------------------------------------------------------
    async def _fitted(self, *, is_new: bool) -> Fit:
        if is_new:
            return Fit(self._plan, (), {})
        # Nobody else changes or fills it meanwhile; readers go on.
        await self._sql.query(f"LOCK TABLE {self._table.sql} IN SHARE ROW EXCLUSIVE MODE")
        found = await self._sql.query(
            "SELECT attname, pg_catalog.format_type(atttypid, atttypmod), attgenerated <> '' FROM pg_catalog.pg_attribute "
            f"WHERE attrelid = pg_catalog.to_regclass({literal(self._table.sql)}) AND attnum > 0 AND NOT attisdropped "
            "ORDER BY attnum",
            rows_max=COLUMNS_MAX * 2,
            bytes_max=RESULT_BYTES_MAX,
        )
        columns = [TableColumn(_word(name), _word(kind), flag == b"t") for name, kind, flag in found.rows]
        fit = evolve.fit(self._plan, columns)
        for column in fit.plan.columns:
            if any(one.generated and one.name == column.name for one in columns):
                raise InvalidArgument(f"The column {column.name} of {self._table} is generated; no file can fill it.")
        return fit

    def _places_of_keys(self, plan: Plan) -> list[int]:
        names = [column.name for column in plan.columns]
        for key in self._order.keys:
            if key not in names:
                raise InvalidArgument(
                    f"The file has no column {key}, which is part of the key.", hint=f"It has: {', '.join(names[:50])}."
                )
        return [names.index(key) for key in self._order.keys]

    async def _change(self, changes: Sequence[Change]) -> None:
        for change in changes:
            name = quoted(change.column)
            if change.before:
                cast = f"TYPE {change.after} USING {name}::{change.after}"
                await self._sql.query(f"ALTER TABLE {self._table.sql} ALTER COLUMN {name} {cast}")
            else:
                await self._sql.query(f"ALTER TABLE {self._table.sql} ADD COLUMN {name} {change.after}")

    async def _stage(self, fit: Fit) -> None:
        columns = [
            Column(one.source, one.name, types.TEXT if one.name in fit.through_text else one.type)
            for one in fit.plan.columns
        ]
        line = f"{quoted(LINE)} bigint, " if fit.through_text else ""
        await self._sql.query(f"CREATE TEMPORARY TABLE {STAGING} ({line}{_definitions(columns)}) ON COMMIT DROP")

    # --- rows ---------------------------------------------------------------------------------------------------------
    async def _copy(self, fit: Fit, target: str, needed: Sequence[int], *, numbered: bool) -> tuple[Outcome, int]:
        names = [quoted(column.name) for column in fit.plan.columns]
        if numbered:
            names.insert(0, quoted(LINE))
        async with self._parsers.read(
            self._directory, fit.plan, self._progress, needed=needed, numbered=numbered
        ) as reading:
            reach(f"ingest.copy/{self._order.table}")
            tag = await self._sql.copy_in(
                f"COPY {target} ({', '.join(names)}) FROM STDIN (FORMAT text)", _framed(reading.rows)
            )
            return reading.outcome(), _count(tag)

    async def _keep_rejects(self) -> None:
        table = await self._rejects_table()
        columns = ", ".join(name for name, _ in _REJECTS)
        pieces = _prefixed(self._directory / "rejects", f"{self._order.load}\t".encode())
        await self._sql.copy_in(f"COPY {table.sql} ({columns}) FROM STDIN (FORMAT text)", _framed(pieces))

    async def _rejects_table(self) -> Table:
        table = self._table.rejects
        columns = ", ".join(f"{name} {kind}" for name, kind in _REJECTS)
        await self._sql.query(
            f"CREATE TABLE IF NOT EXISTS {table.sql} ({columns}, at timestamptz NOT NULL DEFAULT pg_catalog.now())"
        )
        return table

    async def _reject_misfits(self, through: dict[str, str], before: int) -> int:
        """Rows of the staging table that PostgreSQL does not read as what their columns are."""
        tests = {
            name: f"({quoted(name)} IS NOT NULL AND NOT pg_catalog.pg_input_is_valid({quoted(name)}, {literal(kind)}))"
            for name, kind in through.items()
        }
        bad = " OR ".join(tests.values())
        found = await self._sql.query(f"SELECT pg_catalog.count(*) FROM {STAGING} WHERE {bad}", rows_max=1)
        count = int(found.rows[0][0] or b"0")
        if before + count > REJECTS_MAX:
            raise TooLarge(f"{before + count} rows do not fit the table {self._table}; nothing was loaded.")
        if not count:
            return 0
        table = await self._rejects_table()
        reasons = " ".join(
            f"WHEN {test} THEN {literal(name + ': ')} || "
            f"(pg_catalog.pg_input_error_info({quoted(name)}, {literal(through[name])})).message"
            for name, test in tests.items()
        )
        raw = f"pg_catalog.left((pg_catalog.to_jsonb(gone) - {literal(LINE)})::text, {RAW_CHARS_MAX})"
        await self._sql.query(
            f"WITH gone AS (DELETE FROM {STAGING} WHERE {bad} RETURNING *) "
            f"INSERT INTO {table.sql} (load, line, reason, raw) "
            f"SELECT {literal(self._order.load)}, {quoted(LINE)}, CASE {reasons} END, {raw} FROM gone"
        )
        return count

    async def _move(self, fit: Fit, *, is_new: bool) -> int:
        names = [column.name for column in fit.plan.columns]
        into = ", ".join(map(quoted, names))
        values = ", ".join(
            f"{quoted(name)}::{fit.through_text[name]}" if name in fit.through_text else quoted(name) for name in names
        )
        if self._order.mode == "upsert":
            return await self._merge(names, values)
        if self._order.mode == "replace" and not is_new:
            await self._sql.query(f"TRUNCATE {self._table.sql}")
        reach(f"ingest.move/{self._table}")
        moved = await self._sql.query(f"INSERT INTO {self._table.sql} ({into}) SELECT {values} FROM {STAGING}")
        return _count(moved.status)

    async def _merge(self, names: Sequence[str], values: str) -> int:
        """Of rows with the same key, the last one in the file counts."""
        keys = ", ".join(map(quoted, self._order.keys))
        same = " AND ".join(f"t.{quoted(key)} = s.{quoted(key)}" for key in self._order.keys)
        others = [name for name in names if name not in self._order.keys]
        update = ", ".join(f"{quoted(name)} = s.{quoted(name)}" for name in others)
        reach(f"ingest.move/{self._table}")
        merged = await self._sql.query(
            f"MERGE INTO {self._table.sql} t USING (SELECT {values} FROM (SELECT DISTINCT ON ({keys}) * FROM {STAGING} "
            f"ORDER BY {keys}, ctid DESC) one) s ON {same} "
            f"WHEN MATCHED THEN {f'UPDATE SET {update}' if others else 'DO NOTHING'} "
            f"WHEN NOT MATCHED THEN INSERT ({', '.join(map(quoted, names))}) "
            f"VALUES ({', '.join('s.' + quoted(name) for name in names)})"
        )
        return _count(merged.status)

    async def _settle(self, fit: Fit, rows: int, rejected: int) -> Loaded:
        if self._order.mode == "replace":  # what was loaded before is there no more
            await self._sql.query(
                f"DELETE FROM tenure.effects WHERE pg_catalog.starts_with(key, {literal(self._order.prefix)}) "
                f"AND key <> {literal(self._order.key)}"
            )
        columns = tuple((column.name, fit.through_text.get(column.name, column.type)) for column in fit.plan.columns)
        loaded = Loaded(self._order.load, rows, rejected, columns, tuple(map(str, fit.changes)))
        reach(f"ingest.commit/{self._table}")
        await effects.settle(self._sql, self._order.key, _kept(loaded))
        reach(f"ingest.committed/{self._table}")
        return loaded


def _kept(loaded: Loaded) -> dict[str, Any]:
    return {
        "by": loaded.by,
        "rows": loaded.rows,
        "rejected": loaded.rejected,
        "columns": [list(column) for column in loaded.columns],
        "changes": list(loaded.changes),
    }


def _renamed(again: Plan, before: Plan) -> Plan:
    """With the file's own names for columns again: where they go is found out anew."""
    names = {column.source: column.name for column in before.columns}
    columns = tuple(
        Column(one.source, before.columns[place].name, one.type, one.seen)
        if place < len(before.columns)
        else Column(one.source, names.get(one.source, one.name), one.type, one.seen)
        for place, one in enumerate(again.columns)
    )
    return replace(again, columns=columns)


def _definitions(columns: Sequence[Column]) -> str:
    return ", ".join(f"{quoted(column.name)} {column.type}" for column in columns)


async def _framed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Each piece as the data of a COPY, whatever is in it."""
    async for piece in pieces:
        yield wire.message(b"d", piece)


async def _prefixed(file: Path, prefix: bytes) -> AsyncIterator[bytes]:
    """The lines of a file, each after `prefix`."""
    begun = True
    with file.open("rb") as opened:
        while piece := opened.read(FILE_BYTES):
            ends = piece.endswith(b"\n")
            body = (piece[:-1] if ends else piece).replace(b"\n", b"\n" + prefix)
            yield (prefix if begun else b"") + body + (b"\n" if ends else b"")
            begun = ends


def literal(text: str) -> str:
    """`text` as an SQL expression in which nothing can be quoted wrongly."""
    return f"pg_catalog.convert_from(pg_catalog.decode('{text.encode().hex()}', 'hex'), 'UTF8')"


def _word(value: bytes | None) -> str:
    return (value or b"").decode()


def _count(tag: str) -> int:
    last = tag.rpartition(" ")[2]
    return int(last) if last.isdecimal() else 0
