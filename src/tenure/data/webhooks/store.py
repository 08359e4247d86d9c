"""The rows of hooks, in the control database; no other module names the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from psycopg.errors import ForeignKeyViolation, UniqueViolation

from tenure.database.connect import ControlDatabase
from tenure.errors import AlreadyExists, NotFound

_COLUMNS = (
    "id, address, name, agent, signature, keep_s, created_at, rotated_at, received, repeated, refused, last_received_at, "
    "last_refused_at, last_refusal"
)


@dataclass(frozen=True)
class Hook:
    id: str
    address: str
    """The part of its URL that nobody guesses."""
    name: str
    agent: str
    signature: str
    keep: timedelta
    created_at: datetime
    rotated_at: datetime | None = None
    received: int = 0
    repeated: int = 0
    refused: int = 0
    last_received_at: datetime | None = None
    last_refused_at: datetime | None = None
    last_refusal: str = ""


@dataclass(frozen=True)
class Counts:
    """What came since the last time."""

    received: int = 0
    repeated: int = 0
    refused: int = 0
    last_received_at: datetime | None = None
    last_refused_at: datetime | None = None
    last_refusal: str = ""


class Hooks(Protocol):
    async def add(self, hook: Hook) -> None:
        """Raises `AlreadyExists`, `NotFound` for the agent."""
        ...

    async def find(self, wanted: str, agent: str | None = None) -> Sequence[Hook]:
        """Those of this id or name."""
        ...

    async def list(self, agent: str | None = None) -> Sequence[Hook]:
        """By agent and name."""
        ...

    async def delete(self, hook: str) -> bool: ...
    async def rotated(self, hook: str, address: str, at: datetime) -> None: ...
    async def count(self, hook: str, counts: Counts) -> None: ...


class HookStore:
    """All raise `ServerUnreachable` while PostgreSQL is away."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def add(self, hook: Hook) -> None:
        try:
            await self._database.execute(
                "insert into webhooks (id, address, name, agent, signature, keep_s, created_at) "
                "values (%s, %s, %s, %s, %s, %s, %s)",
                (
                    hook.id,
                    hook.address,
                    hook.name,
                    hook.agent,
                    hook.signature,
                    int(hook.keep.total_seconds()),
                    hook.created_at,
                ),
            )
        except UniqueViolation:
            raise AlreadyExists(
                f"{hook.agent} has a webhook {hook.name!r} already.", hint="Choose another name, or delete that one."
            ) from None
        except ForeignKeyViolation:
            raise NotFound(f"There is no agent {hook.agent!r}.") from None

    async def find(self, wanted: str, agent: str | None = None) -> Sequence[Hook]:
        rows = await self._database.fetch(
            f"select {_COLUMNS} from webhooks where (id = %(wanted)s or name = %(wanted)s) "
            "and (%(agent)s::text is null or agent = %(agent)s) order by agent",
            {"wanted": wanted, "agent": agent},
        )
        return [_hook(row) for row in rows]

    async def list(self, agent: str | None = None) -> Sequence[Hook]:
        rows = await self._database.fetch(
            f"select {_COLUMNS} from webhooks where (%(agent)s::text is null or agent = %(agent)s) order by agent, name",
            {"agent": agent},
        )
        return [_hook(row) for row in rows]

    async def delete(self, hook: str) -> bool:
        return await self._database.execute("delete from webhooks where id = %s", (hook,)) > 0

    async def rotated(self, hook: str, address: str, at: datetime) -> None:
        await self._database.execute(
            "update webhooks set address = %s, rotated_at = %s where id = %s", (address, at, hook)
        )

    async def count(self, hook: str, counts: Counts) -> None:
        await self._database.execute(
            "update webhooks set received = received + %s, repeated = repeated + %s, refused = refused + %s, "
            "last_received_at = coalesce(%s, last_received_at), last_refused_at = coalesce(%s, last_refused_at), "
            "last_refusal = case when %s = '' then last_refusal else %s end where id = %s",
            (
                counts.received,
                counts.repeated,
                counts.refused,
                counts.last_received_at,
                counts.last_refused_at,
                counts.last_refusal,
                counts.last_refusal,
                hook,
            ),
        )


def _hook(row: Mapping[str, Any]) -> Hook:
    fields = {name: value for name, value in row.items() if name != "keep_s"}
    return Hook(keep=timedelta(seconds=row["keep_s"]), **fields)
