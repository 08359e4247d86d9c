"""What programs of an office tell of themselves while they work: checkpoints, heartbeats, progress, a question.

One row per (agent, key), made by the worker that is about to start the program. An office can only write into rows that are
there, so it cannot fill the control database.
"""

from __future__ import annotations

import json
from typing import Any, LiteralString

from psycopg.types.json import Jsonb
from pydantic import JsonValue

from tenure.database.connect import ControlDatabase
from tenure.errors import NotFound, TooLarge
from tenure.wire import CHECKPOINT_BYTES_MAX, ProgramQuestion, UsageRequest
from tenure.work.hands import Signals

KEYS_MAX = 1000
"""Kept per agent; the oldest go."""


class SignalStore:
    """The `Signals` service of the server, on the control database."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def open(self, agent: str, key: str, checkpoint: JsonValue = None) -> None:
        """Makes the row, beginning with a checkpoint, unless it is there."""
        check_checkpoint(checkpoint)
        await self._database.execute(
            """
            insert into signals (agent, key, checkpoint) values (%s, %s, %s) on conflict (agent, key) do nothing
            """,
            (agent, key, None if checkpoint is None else Jsonb(checkpoint)),
        )
        await self._database.execute(
            """
            delete from signals where agent = %(agent)s and id <= (
                select id from signals where agent = %(agent)s order by id desc offset %(kept)s limit 1
            )
            """,
            {"agent": agent, "kept": KEYS_MAX},
        )

    async def read(self, agent: str, key: str) -> Signals:
        """Raises `NotFound`."""
        found = await self._database.fetch_one(
            """
            select checkpoint, checkpoints, progress, progresses, beats, heartbeats, heartbeat_s, usage, question
            from signals where agent = %s and key = %s
            """,
            (agent, key),
        )
        if found is None:
            raise _unknown(key)
        return Signals(**found)

    async def beat(self, agent: str, key: str, every_s: float | None = None) -> None:
        """A heartbeat. `every_s` None: as often as before. Raises `NotFound`."""
        await self._tell(
            agent, key, "heartbeats = heartbeats + 1, heartbeat_s = coalesce(%(told)s, heartbeat_s)", every_s
        )

    async def keep(self, agent: str, key: str, checkpoint: JsonValue) -> None:
        """Instead of the checkpoint before. Raises `NotFound`, `TooLarge`."""
        check_checkpoint(checkpoint)
        await self._tell(agent, key, "checkpoint = %(told)s, checkpoints = checkpoints + 1", Jsonb(checkpoint))

    async def progress(self, agent: str, key: str, text: str) -> None:
        """Raises `NotFound`."""
        await self._tell(agent, key, "progress = %(told)s, progresses = progresses + 1", text)

    async def spend(self, agent: str, key: str, usage: UsageRequest) -> None:
        """Instead of what it said before. Raises `NotFound`."""
        await self._tell(agent, key, "usage = %(told)s", Jsonb(usage.model_dump(mode="json")))

    async def ask(self, agent: str, key: str, question: ProgramQuestion) -> None:
        """Instead of the question before. Raises `NotFound`."""
        await self._tell(agent, key, "question = %(told)s", Jsonb(question.model_dump(mode="json")))

    async def _tell(self, agent: str, key: str, change: LiteralString, told: Any) -> None:
        found = await self._database.fetch_one(
            f"update signals set beats = beats + 1, {change} where agent = %(agent)s and key = %(key)s returning id",
            {"agent": agent, "key": key, "told": told},
        )
        if found is None:
            raise _unknown(key)


def check_checkpoint(checkpoint: JsonValue) -> None:
    """Raises `TooLarge`."""
    size_bytes = len(json.dumps(checkpoint, ensure_ascii=False).encode("utf-8", "replace"))
    if size_bytes > CHECKPOINT_BYTES_MAX:
        raise TooLarge(
            f"The checkpoint is {size_bytes} bytes; {CHECKPOINT_BYTES_MAX} are allowed.",
            hint="Put large data into a file or the database of the office, and its name into the checkpoint.",
        )


def _unknown(key: str) -> NotFound:
    return NotFound(
        f"No program of this agent works under the key {key[:60]!r}.",
        hint="A program finds the address of its own key in TENURE_WORK_URL.",
    )
