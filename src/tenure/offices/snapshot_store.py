"""Snapshots' rows in the control database (table `snapshots`)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb

from tenure.database.connect import ControlDatabase
from tenure.errors import AlreadyExists, NotFound
from tenure.offices.models import SnapshotKind, SnapshotRecord, StepMark

_COLUMNS = "id, agent, name, kind, stage, image, parent, runs, created_at, run_id, node_id, verified"


class SnapshotStore:
    """Rows in, rows out; no other module names the table. Raises `ServerUnreachable` while PostgreSQL is away."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def add(
        self,
        snapshot_id: str,
        agent: str,
        image: str,
        name: str | None,
        kind: SnapshotKind,
        step: StepMark | None,
        key: str | None,
    ) -> None:
        """A new row in stage "taking". Raises `AlreadyExists` for a name that the agent has used."""
        try:
            await self._database.execute(
                "INSERT INTO snapshots (id, agent, image, name, kind, run_id, node_id, verified, key) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (snapshot_id, agent, image, name, kind.value, *_columns_of(step), key),
            )
        except UniqueViolation:
            raise AlreadyExists(
                f"{agent} has a snapshot named {name} already.",
                hint=f"Choose another name, or delete it first: `tenure snapshot delete {agent} {name}`.",
            ) from None

    async def complete(self, snapshot_id: str, parent: str | None, runs: dict[str, int]) -> SnapshotRecord:
        """The snapshot is whole, as of now."""
        row = await self._database.fetch_one(
            "UPDATE snapshots SET stage = 'whole', parent = %s, runs = %s, created_at = clock_timestamp() "
            f"WHERE id = %s RETURNING {_COLUMNS}",
            (parent, Jsonb(runs), snapshot_id),
        )
        assert row is not None
        return _record(row)

    async def get(self, agent: str, wanted: str) -> SnapshotRecord:
        """The agent's whole snapshot of this id or name. Raises `NotFound`."""
        row = await self._database.fetch_one(
            f"SELECT {_COLUMNS} FROM snapshots WHERE agent = %s AND (id = %s OR name = %s) AND stage = 'whole'",
            (agent, wanted, wanted),
        )
        if row is None:
            raise NotFound(
                f"{agent} has no snapshot {wanted[:60]!r}.", hint=f"`tenure snapshot list {agent}` shows those it has."
            )
        return _record(row)

    async def of_key(self, agent: str, key: str) -> SnapshotRecord | None:
        """The agent's whole snapshot that was taken under this key."""
        row = await self._database.fetch_one(
            f"SELECT {_COLUMNS} FROM snapshots WHERE agent = %s AND key = %s AND stage = 'whole'", (agent, key)
        )
        return None if row is None else _record(row)

    async def of_agent(self, agent: str, *, unfinished: bool = False) -> list[SnapshotRecord]:
        """The oldest first; with `unfinished` also those that are being taken or deleted."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM snapshots WHERE agent = %s AND (%s OR stage = 'whole') ORDER BY created_at, id",
            (agent, unfinished),
        )
        return [_record(row) for row in rows]

    async def owner_of(self, snapshot_id: str) -> str | None:
        """Whose snapshot it is; None when there is no such snapshot."""
        row = await self._database.fetch_one(
            "SELECT agent FROM snapshots WHERE id = %s AND stage = 'whole'", (snapshot_id,)
        )
        return None if row is None else str(row["agent"])

    async def withdraw(self, run: str, after: datetime) -> None:
        """The run went back to a moment: its snapshots taken later are of work that is done anew, so none is verified."""
        await self._database.execute(
            "UPDATE snapshots SET verified = false WHERE run_id = %s AND created_at > %s", (run, after)
        )

    async def set_deleting(self, snapshot_id: str) -> None:
        await self._database.execute("UPDATE snapshots SET stage = 'deleting' WHERE id = %s", (snapshot_id,))

    async def remove(self, snapshot_id: str) -> None:
        await self._database.execute("DELETE FROM snapshots WHERE id = %s", (snapshot_id,))


def _columns_of(step: StepMark | None) -> tuple[str | None, str | None, bool]:
    return (None, None, False) if step is None else (step.run, step.node, step.verified)


def _record(row: dict[str, Any]) -> SnapshotRecord:
    fields: dict[str, Any] = {**row, "kind": SnapshotKind(row["kind"])}
    run, node, verified = fields.pop("run_id"), fields.pop("node_id"), fields.pop("verified")
    return SnapshotRecord(**fields, step=None if run is None else StepMark(run, node, verified))
