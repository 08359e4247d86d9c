"""Offices' rows in the control database (table `agents`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb

from tenure.database.connect import ControlDatabase
from tenure.errors import AlreadyExists, NotFound
from tenure.offices.models import Archived, Limits, OfficeRecord
from tenure.offices.rest import Lease

_COLUMNS = "name, number, image, limits, egress, stage, created_at, origin, rest, lease_until, lease_reason, archived"


class OfficeStore:
    """Rows in, rows out; no other module names the table. Raises `ServerUnreachable` while PostgreSQL is away."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def add(
        self,
        name: str,
        image: str,
        limits: Limits,
        egress: Sequence[str],
        origin: str | None = None,
        thinks_as: str | None = None,
    ) -> OfficeRecord:
        """A new row in stage "creating"; a fork has the id of a snapshot as `origin`, and the brain of the agent `thinks_as`.
        Raises `AlreadyExists`."""
        try:
            row = await self._database.fetch_one(
                "INSERT INTO agents (name, image, limits, egress, origin, brain, stage) "
                "VALUES (%s, %s, %s, %s, %s, (SELECT brain FROM agents WHERE name = %s), 'creating') "
                f"RETURNING {_COLUMNS}",
                (name, image, Jsonb(asdict(limits)), Jsonb(list(egress)), origin, thinks_as),
            )
        except UniqueViolation:
            raise AlreadyExists(
                f"There is an agent named {name} already.",
                hint=f"Choose another name, or delete it first: `tenure agent delete {name}`.",
            ) from None
        assert row is not None
        return _record(row)

    async def get(self, name: str) -> OfficeRecord:
        """Raises `NotFound`, also for an office that is being deleted."""
        row = await self._database.fetch_one(f"SELECT {_COLUMNS} FROM agents WHERE name = %s", (name,))
        if row is None or row["stage"] == "deleting":
            raise NotFound(
                f"There is no agent named {name[:60]!r}.",
                hint="`tenure agent list` shows the agents there are; `tenure agent create` makes one.",
            )
        return _record(row)

    async def all(self, *, with_deleting: bool = False) -> list[OfficeRecord]:
        """All offices by name."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM agents WHERE %s OR stage <> 'deleting' ORDER BY name", (with_deleting,)
        )
        return [_record(row) for row in rows]

    async def set_stage(self, name: str, stage: str) -> None:
        await self._database.execute("UPDATE agents SET stage = %s WHERE name = %s", (stage, name))

    async def set_rest(self, name: str, rest: Mapping[str, float]) -> None:
        await self._database.execute("UPDATE agents SET rest = %s WHERE name = %s", (Jsonb(dict(rest)), name))

    async def brain(self, name: str) -> dict[str, Any] | None:
        """What `set_brain` kept; None when there is nothing, or no such agent."""
        row = await self._database.fetch_one("SELECT brain FROM agents WHERE name = %s", (name,))
        return None if row is None else row["brain"]

    async def set_brain(self, name: str, settings: Mapping[str, Any]) -> None:
        await self._database.execute("UPDATE agents SET brain = %s WHERE name = %s", (Jsonb(dict(settings)), name))

    async def set_lease(self, name: str, lease: Lease | None) -> None:
        until, reason = (lease.until, lease.reason) if lease else (None, None)
        statement = "UPDATE agents SET lease_until = %s, lease_reason = %s WHERE name = %s"
        await self._database.execute(statement, (until, reason, name))

    async def set_archived(self, name: str, archived: Archived | None) -> None:
        """None: it is here."""
        value = None if archived is None else Jsonb(asdict(archived) | {"at": archived.at.isoformat()})
        await self._database.execute("UPDATE agents SET archived = %s WHERE name = %s", (value, name))

    async def remove(self, name: str) -> None:
        await self._database.execute("DELETE FROM agents WHERE name = %s", (name,))


def _record(row: dict[str, Any]) -> OfficeRecord:
    return OfficeRecord(
        name=row["name"],
        number=row["number"],
        image=row["image"],
        limits=Limits(**row["limits"]),
        egress=tuple(row["egress"]),
        stage=row["stage"],
        created_at=row["created_at"],
        origin=row["origin"],
        rest=row["rest"],
        lease=None if row["lease_until"] is None else Lease(row["lease_until"], row["lease_reason"]),
        archived=None if row["archived"] is None else _archived(row["archived"]),
    )


def _archived(value: dict[str, Any]) -> Archived:
    at = datetime.fromisoformat(value.pop("at"))
    return Archived(**value, at=at)
