"""Exactly-once effects in an office's database: the key and the result commit with the effect, or not at all."""

from __future__ import annotations

import json
from typing import Any

from tenure.errors import Conflict, DatabaseError, InvalidArgument
from tenure.postgres.client import INVALID_SCHEMA_NAME, UNDEFINED_TABLE, Connection, Result

KEY_CHARS_MAX = 500
CREATE = """\
BEGIN;
SELECT pg_catalog.pg_advisory_xact_lock(7310577);
CREATE SCHEMA IF NOT EXISTS tenure;
CREATE TABLE IF NOT EXISTS tenure.effects (
    key text PRIMARY KEY,
    result jsonb,
    at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE tenure.effects IS 'Effects of runs that happened, so that none happens twice. Kept by Tenure.';
COMMIT"""


def check_key(key: str) -> str:
    """Raises `InvalidArgument`."""
    if not key or len(key) > KEY_CHARS_MAX or "\0" in key or not _encodable(key):
        raise InvalidArgument(f"A key is 1 to {KEY_CHARS_MAX} characters of text without zero bytes.")
    return key


async def claim(connection: Connection, key: str) -> bool:
    """Opens a transaction that holds `key`: True when this is its first time, False (no transaction open) when the key
    has committed before. Waits for another transaction that holds it. The row goes in *before* the effect, so that even
    an effect which commits behind our back (`COMMIT` in a statement) is never repeated."""
    insert = f"INSERT INTO tenure.effects (key) VALUES ({_literal(key)}) ON CONFLICT DO NOTHING RETURNING 1"
    await connection.query("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
    try:
        inserted = await connection.query(insert, rows_max=1)
    except DatabaseError as error:
        await connection.query("ROLLBACK")
        if error.details.get("sqlstate") not in (UNDEFINED_TABLE, INVALID_SCHEMA_NAME):
            raise
        await connection.query(CREATE)
        await connection.query("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
        inserted = await connection.query(insert, rows_max=1)
    if inserted.rows:
        return True
    await connection.query("ROLLBACK")
    return False


async def stored(connection: Connection, key: str, bytes_max: int) -> dict[str, Any]:
    """The result that `key` left. Raises `Conflict` when its statement ended the transaction itself, so that it happened,
    but its result was never stored."""
    text = f"SELECT result::text FROM tenure.effects WHERE key = {_literal(key)}"
    found = await connection.query(text, rows_max=1, bytes_max=bytes_max)
    value = found.rows[0][0] if found.rows else None
    if value is None:
        raise Conflict(
            f"The effect {key!r} began and left no result: its statement ended its own transaction.",
            hint="Look at the data; it is not repeated. Take BEGIN, COMMIT and ROLLBACK out of the statement.",
        )
    return json.loads(value)


async def settle(connection: Connection, key: str, result: dict[str, Any]) -> None:
    """Stores the result and commits. Raises `DatabaseError` when the effect's transaction cannot commit (a deferred
    constraint): then nothing of it happened."""
    if connection.transaction != "T":
        raise Conflict(
            "The statement ended the transaction that it ran in.",
            hint="Take BEGIN, COMMIT and ROLLBACK out of the statement: each step is one transaction already.",
        )
    text = json.dumps(result).replace("\\u0000", "\\ufffd")  # jsonb holds no zero character
    await connection.query(
        f"UPDATE tenure.effects SET result = {_literal(text)}::pg_catalog.jsonb WHERE key = {_literal(key)}"
    )
    committed: Result = await connection.query("COMMIT")
    if committed.status != "COMMIT":
        raise DatabaseError("The transaction was rolled back.")


def _literal(text: str) -> str:
    """`text` as an SQL expression in which nothing can be quoted wrongly."""
    return f"pg_catalog.convert_from(pg_catalog.decode('{text.encode().hex()}', 'hex'), 'UTF8')"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
