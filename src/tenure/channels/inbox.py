"""The owner's inbox: messages that agents, runs and the ladder leave. One message per (agent, key), however often it is sent."""

from __future__ import annotations

from typing import Any

from tenure import wire
from tenure.database.connect import Connection, ControlDatabase
from tenure.errors import NotFound

SUBJECT_CHARS_MAX = 500
BODY_CHARS_MAX = 256 * 1024
MESSAGES_MAX = 1000
"""Per listing."""
_COLUMNS = "id::text as id, nullif(agent, '') as agent, run_id, subject, body, created_at, read_at"


async def leave(
    connection: Connection, *, agent: str, key: str, subject: str, body: str, run_id: str | None = None
) -> dict[str, Any]:
    """Leaves a message in the caller's transaction, unless `key` is known; returns the one that is there, as
    `wire.Message`'s fields. Longer texts than the limits are cut."""
    await connection.execute(
        """
        insert into inbox (agent, key, run_id, subject, body) values (%s, %s, %s, %s, %s)
        on conflict (agent, key) do nothing
        """,
        (agent, key, run_id, _text(subject, SUBJECT_CHARS_MAX), _text(body, BODY_CHARS_MAX)),
    )
    found = await connection.execute(f"select {_COLUMNS} from inbox where agent = %s and key = %s", (agent, key))
    row = await found.fetchone()
    assert row is not None
    return row


class Inbox:
    """The `Inbox` service of the server, on the control database. Messages of no agent belong to the installation."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def list(self, *, unread: bool = False, agent: str | None = None, limit: int = 200) -> list[wire.Message]:
        """Newest first."""
        found = await self._database.fetch(
            f"""
            select {_COLUMNS} from inbox
            where (not %(unread)s or read_at is null) and (%(agent)s::text is null or agent = %(agent)s)
            order by inbox.id desc limit %(limit)s
            """,
            {"unread": unread, "agent": agent, "limit": min(limit, MESSAGES_MAX)},
        )
        return [wire.Message.model_validate(row) for row in found]

    async def create(
        self, *, agent: str | None, subject: str, body: str, key: str | None = None, run_id: str | None = None
    ) -> wire.Message:
        """Once per (agent, key): the second call returns the first one's message. Without a key, every call leaves one."""
        async with self._database.transaction() as connection:
            if key is None:
                row = await (await connection.execute("select gen_random_uuid()::text as key")).fetchone()
                key = str(row["key"]) if row else ""
            left = await leave(connection, agent=agent or "", key=key, subject=subject, body=body, run_id=run_id)
            return wire.Message.model_validate(left)

    async def count_unread(self, agent: str) -> int:
        """How many messages of `agent` nobody has read."""
        found = await self._database.fetch_one(
            "select count(*) as unread from inbox where agent = %s and read_at is null", (agent,)
        )
        return int(found["unread"]) if found else 0

    async def get(self, message_id: str) -> wire.Message:
        """Raises `NotFound`."""
        found = await self._database.fetch_one(f"select {_COLUMNS} from inbox where id::text = %s", (message_id,))
        return _message(found, message_id)

    async def mark_read(self, message_id: str) -> wire.Message:
        """Keeps the first reading's time. Raises `NotFound`."""
        found = await self._database.fetch_one(
            f"update inbox set read_at = coalesce(read_at, clock_timestamp()) where id::text = %s returning {_COLUMNS}",
            (message_id,),
        )
        return _message(found, message_id)


def _message(row: dict[str, Any] | None, message_id: str) -> wire.Message:
    if row is None:
        raise NotFound(f"There is no message {message_id[:40]!r}.", hint="`tenure inbox` lists them.")
    return wire.Message.model_validate(row)


def _text(text: str, chars_max: int) -> str:
    """What PostgreSQL's text takes: no NUL, no lone surrogates."""
    clean = text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    return clean if len(clean) <= chars_max else clean[: chars_max - 1] + "…"
