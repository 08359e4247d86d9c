"""A client of PostgreSQL's simple query protocol that never holds more of a result than it was told to.

Drivers buffer whole rows, and one row may be a gigabyte of an agent's choosing; this server must not grow with what an
office's database sends. So rows past the limits are read over and dropped. Text format, trusted local sockets only.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tenure.errors import ConnectionLost, DatabaseError, DiskFull, TooLarge
from tenure.postgres import wire
from tenure.postgres.files import says_disk_full

CONNECT_TIMEOUT_S = 30.0
CHUNK_BYTES = 256 * 1024
STATEMENT_BYTES_MAX = 16 * 1024 * 1024
CONTROL_MESSAGE_BYTES_MAX = 64 * 1024
"""Longest error, notice or column description that is read; of longer ones the head."""
DISK_FULL = "53100"
UNDEFINED_TABLE = "42P01"
INVALID_SCHEMA_NAME = "3F000"
QUERY_CANCELED = "57014"


@dataclass
class Result:
    """Of one statement: `rows` as the server sent the values, at most as many and as large as asked for."""

    columns: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """(name, type oid)"""
    rows: list[list[bytes | None]] = field(default_factory=list[list[bytes | None]])
    status: str = ""
    truncated: bool = False
    row_bytes: int = 0


class Connection:
    """One connection, one statement at a time. Not reusable after an exception other than `DatabaseError`: close it."""

    def __init__(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._path = path
        self._reader = reader
        self._writer = writer
        self._pid = 0
        self._secret = b""
        self.transaction = "I"
        """As of the last statement: I idle, T in a transaction, E in a failed one."""

    @classmethod
    async def open(cls, path: Path, *, user: str, database: str, parameters: dict[str, str]) -> Connection:
        """Connects to the socket `path`. Raises `OSError` when nothing listens, `DatabaseError` when refused,
        `ConnectionLost`."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=CHUNK_BYTES)
            connection = cls(path, reader, writer)
            try:
                writer.write(wire.startup({"user": user, "database": database, "client_encoding": "UTF8"} | parameters))
                await connection._finish_startup()
            except BaseException:
                connection.close()
                raise
        return connection

    def close(self) -> None:
        """At once; the server rolls back what is open."""
        self._writer.transport.abort()

    async def cancel(self) -> None:
        """Asks the server to stop the running statement. Does not wait for it, does not raise."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_unix_connection(str(self._path))
                writer.write(wire.cancel_request(self._pid, self._secret))
                await writer.drain()
                writer.close()
        except (OSError, TimeoutError):
            return

    async def query(self, text: str, *, rows_max: int = 0, bytes_max: int = CHUNK_BYTES) -> Result:
        """Runs one or more statements; the result of the last one. Rows beyond `rows_max`, and from the first one on that
        would bring their size over `bytes_max`, are dropped and `truncated` says so. Raises `DatabaseError`, `DiskFull`,
        `ConnectionLost`; after the former two the connection can be used again."""
        self._send(text)
        result, last, failure = Result(), Result(), None
        while True:
            kind, length = await self._head()
            if kind == b"D":
                if len(result.rows) >= rows_max or result.row_bytes + length > bytes_max:
                    result.truncated, rows_max = True, min(rows_max, len(result.rows))
                    await self._skip(length)
                else:
                    result.row_bytes += length
                    result.rows.append(wire.parse_row(await self._exactly(length)))
                continue
            body = await self._bounded(length)
            if kind == b"T":
                result = Result(columns=_columns(body, length))
            elif kind in (b"C", b"I"):
                result.status = body[:-1].decode("utf-8", "replace") if kind == b"C" else ""
                last, result = result, Result()
            elif kind == b"E":
                failure = database_error(wire.parse_error(body))
            elif kind == b"G":  # COPY FROM STDIN: there is no input
                self._writer.write(wire.message(b"f", b"COPY FROM STDIN needs a client, such as psql\0"))
            elif kind == b"Z":
                self.transaction = body.decode("latin-1")
                if failure is not None:
                    raise failure
                return last
            # else: notices, parameters, notifications, COPY TO STDOUT data: not part of a result

    async def copy_out(self, text: str) -> AsyncIterator[bytes]:
        """The data of one COPY … TO STDOUT as it comes, in chunks of up to 256 KiB; slower readers slow the server.
        Raises as `query`, possibly after data."""
        self._send(text)
        failure = None
        while True:
            kind, length = await self._head()
            if kind == b"d":
                while length:
                    chunk = await self._some(length)
                    length -= len(chunk)
                    yield chunk
                continue
            body = await self._bounded(length)
            if kind == b"E":
                failure = database_error(wire.parse_error(body))
            elif kind == b"Z":
                self.transaction = body.decode("latin-1")
                if failure is not None:
                    raise failure
                return

    async def copy_frames(self, text: str) -> AsyncGenerator[bytes]:
        """The data of one COPY … TO STDOUT in PostgreSQL's own messages, cut anywhere into pieces of up to 256 KiB: what
        `copy_in` of another connection takes. No row is looked at, so many cost little. Raises as `query`, possibly after
        data."""
        self._send(text)
        buffer, left, failure = b"", 0, None
        while True:
            end, left = wire.copy_data_end(buffer, left)
            if end:
                yield buffer[:end]
                buffer = buffer[end:]
            found = None if left else wire.take_message(buffer)
            if found is None:
                if len(buffer) > CONTROL_MESSAGE_BYTES_MAX:
                    raise ConnectionLost("The office's database sent what it should not.")
                buffer += await self._some(CHUNK_BYTES)
                continue
            kind, body, buffer = found
            if kind == b"E":
                failure = database_error(wire.parse_error(body))
            elif kind == b"Z":
                self.transaction = body.decode("latin-1")
                if failure is not None:
                    raise failure
                return

    async def copy_in(self, text: str, frames: AsyncIterable[bytes]) -> str:
        """Runs one COPY … FROM STDIN with the data of another connection's `copy_frames`, and returns its command tag. Raises as
        `query`, and what `frames` raises."""
        status = ""
        self._send(text)
        kind, length = await self._head()
        if kind == b"G":
            await self._bounded(length)
            async for piece in frames:
                self._writer.write(piece)
                await self._writer.drain()
            self._writer.write(wire.message(b"c", b""))
            kind, length = await self._head()
        failure = None
        while True:
            body = await self._bounded(length)
            if kind == b"E":
                failure = database_error(wire.parse_error(body))
            elif kind == b"C":
                status = body[:-1].decode("utf-8", "replace")
            elif kind == b"Z":
                self.transaction = body.decode("latin-1")
                if failure is not None:
                    raise failure
                return status
            kind, length = await self._head()

    # --- messages -----------------------------------------------------------------------------------------------
    async def _finish_startup(self) -> None:
        while True:
            kind, length = await self._head()
            body = await self._bounded(length)
            if kind == b"E":
                raise database_error(wire.parse_error(body))
            if kind == b"R" and body != b"\0\0\0\0":
                raise DatabaseError("The office's database asks for a password, which it should not.")
            if kind == b"K":
                self._pid, self._secret = int.from_bytes(body[:4], "big"), body[4:]
            if kind == b"Z":
                return

    def _send(self, text: str) -> None:
        if "\0" in text:
            raise DatabaseError("A statement cannot hold a zero byte.")
        try:
            data = wire.query(text)
        except UnicodeEncodeError:
            raise DatabaseError("A statement must be valid Unicode.") from None
        if len(data) > STATEMENT_BYTES_MAX:
            raise TooLarge(
                f"The statement has {len(data)} bytes; the limit is {STATEMENT_BYTES_MAX}.",
                hint="Load large data with psql's \\copy inside the office.",
            )
        self._writer.write(data)

    async def _head(self) -> tuple[bytes, int]:
        head = await self._exactly(5)
        return head[:1], int.from_bytes(head[1:], "big") - 4

    async def _bounded(self, length: int) -> bytes:
        kept = await self._exactly(min(length, CONTROL_MESSAGE_BYTES_MAX))
        await self._skip(length - len(kept))
        return kept

    async def _exactly(self, length: int) -> bytes:
        try:
            return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            raise ConnectionLost("The connection to the office's database was lost.") from None

    async def _some(self, length: int) -> bytes:
        try:
            chunk = await self._reader.read(min(length, CHUNK_BYTES))
        except OSError:
            chunk = b""
        if not chunk:
            raise ConnectionLost("The connection to the office's database was lost.")
        return chunk

    async def _skip(self, length: int) -> None:
        while length > 0:
            length -= len(await self._some(length))


def _columns(body: bytes, length: int) -> list[tuple[str, int]]:
    if length > len(body):
        raise TooLarge("The result has too many columns.")
    return wire.parse_columns(body)


def database_error(fields: dict[str, str]) -> DatabaseError | DiskFull:
    """PostgreSQL's error as ours: its message, hint, and the rest in `details`."""
    message = fields.get("message", "PostgreSQL refused without saying why")
    details = {name: value for name, value in fields.items() if name in ("sqlstate", "detail", "position")}
    if fields.get("sqlstate") == DISK_FULL or says_disk_full(message):  # a spent quota has no sqlstate of its own
        return DiskFull(f"The database's disk is full: {message}", details=details)
    if re.match(r"57P0[123]|08", fields.get("sqlstate", "")):
        return ConnectionLost(message, hint=fields.get("hint"), details=details)
    return DatabaseError(message, hint=fields.get("hint", ""), details=details)
