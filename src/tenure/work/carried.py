"""Runs in the archives of offices: what was done travels with the office, as history.

Carried: the runs of the agent with their whole journals. Taken in by an import: those that were over, under the new agent,
unless a run of the id is known here. Not continued: runs that were going on or parked; the machine that the archive came from
still has them, and two would do their work.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from tenure.database.connect import ControlDatabase
from tenure.work import events as e
from tenure.work.runs import Runs
from tenure.work.state import fold
from tenure.work.views import event_view, run_view

JOURNAL_BYTES_MAX = 64 * 1024 * 1024
"""The newest runs up to so much are carried."""
RUNS_MAX = 10_000
OVER = ("succeeded", "failed", "cancelled")
_ROW = ("id", "goal", "brain", "state", "created_at", "started_at", "finished_at")
_ID_CHARS_MAX = 64
_TIMES = ("created_at", "started_at", "finished_at")

logger = logging.getLogger(__name__)


class CarriedRuns:
    """On the control database."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database, self._runs = database, Runs(database)

    async def open_of(self, agent: str) -> Sequence[tuple[str, str, int]]:
        return await self._runs.open_of(agent)

    async def lines_of(self, agent: str) -> list[bytes]:
        """One line of JSON for each run, the newest first."""
        rows = await self._database.fetch(
            "select id, goal, brain, state, created_at, started_at, finished_at from runs where agent = %s "
            "order by created_at desc, id limit %s",
            (agent, RUNS_MAX),
        )
        lines: list[bytes] = []
        left = JOURNAL_BYTES_MAX
        for row in rows:
            entries = await self._database.fetch(
                "select seq, at, kind, body from journal where run_id = %s order by seq", (row["id"],)
            )
            line = json.dumps({**row, "journal": entries}, default=_text).encode() + b"\n"
            left -= len(line)
            if left < 0:
                break
            lines.append(line)
        return lines

    async def take_in(self, agent: str, journal: bytes) -> int:
        """How many runs became the agent's: those that were over and can be read. Whoever wrote the archive may have lied in it;
        a journal that does not make sense is left out."""
        taken = 0
        for line in journal.splitlines()[:RUNS_MAX]:
            try:
                facts, records = _checked(line, agent)
            except Exception as error:  # noqa: BLE001 - pydantic's, json's, our own, of hostile input
                logger.warning("a run of an archive is left out: %s", type(error).__name__)
                continue
            if facts["state"] in OVER:
                taken += await self._add(agent, facts, records)
        return taken

    async def _add(self, agent: str, facts: dict[str, Any], records: list[e.Record]) -> int:
        async with self._database.transaction() as connection:
            added = await connection.execute(
                "insert into runs (id, agent, goal, brain, state, last_seq, created_at, started_at, finished_at) "
                "values (%s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing",
                (
                    *(facts["id"], agent, facts["goal"], facts["brain"], facts["state"], len(records)),
                    *(facts[name] for name in _TIMES),
                ),
            )
            if not added.rowcount:
                return 0
            async with connection.cursor() as cursor:
                await cursor.executemany(
                    "insert into journal (run_id, seq, at, kind, body) values (%s, %s, %s, %s, %s)",
                    [
                        (
                            facts["id"],
                            record.seq,
                            record.at,
                            record.event.kind,
                            Jsonb(json.loads(e.encode(record.event))),
                        )
                        for record in records
                    ],
                )
        return 1


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _checked(line: bytes, agent: str) -> tuple[DictRow, list[e.Record]]:
    """The row and the journal of a run, which can be shown as any other."""
    facts: Any = json.loads(line)
    entries: list[Any] = facts["journal"]
    row: DictRow = {name: facts[name] for name in _ROW}
    for name in _TIMES:
        row[name] = None if row[name] is None else datetime.fromisoformat(row[name])
    if not all(isinstance(row[name], str) and "\0" not in row[name] for name in ("id", "goal", "brain", "state")):
        raise ValueError("a run's row")
    if len(row["id"]) > _ID_CHARS_MAX or not row["id"].replace("_", "").isalnum():
        raise ValueError("a run's id")
    records = [
        e.Record(seq, datetime.fromisoformat(entry["at"]), e.decode(entry["kind"], entry["body"]))
        for seq, entry in enumerate(entries, start=1)
        if entry["seq"] == seq
    ]
    if len(records) != len(entries) or not records:
        raise ValueError("a run's journal")
    run_view({**row, "agent": agent, "question": None}, fold(row["id"], records)).model_dump_json()
    for record in records:
        event_view(record).model_dump_json()
    return row, records
