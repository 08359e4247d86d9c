"""What was decided about an office, when and why (table `office_events`): boots that failed, repairs, giving up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from psycopg.errors import ForeignKeyViolation
from psycopg.types.json import Jsonb

from tenure.database.connect import ControlDatabase
from tenure.errors import TenureError
from tenure.offices.log import OfficeLog

EVENTS_KEPT = 500
"""Per agent; the oldest beyond go."""
EVENTS_MAX = 500
"""Per listing."""
TEXT_CHARS_MAX = 2000
_COLUMNS = "id, agent, at, what, reason, evidence"

logger = logging.getLogger(__name__)


class What(StrEnum):
    """What was done, or found."""

    FAILED = "boot-failed"
    STILL_FAILS = "still-fails"
    RETRIED = "tried-again"
    HOST_TESTED = "host-tested"
    MENDED = "mended"
    SNAPSHOT_TESTED = "snapshot-tested"
    RESTORED = "restored"
    REBUILDING = "rebuilding"
    REBUILT = "rebuilt"
    NOT_REBUILT = "not-rebuilt"
    """A server died before it was in place: the office is as it was."""
    SET_UP = "set-up"
    RECOVERED = "recovered"
    GAVE_UP = "gave-up"
    ASKED = "asked"
    """A person should look; nothing was ended."""
    CLEARED = "cleared"
    """Somebody acted, or the cause changed: automatic repair may begin anew."""
    COLD = "booted-afresh"
    DIED = "died"
    RECONNECTED = "reconnected"
    KILLED = "killed-process"
    RESTARTED = "restarted"


@dataclass(frozen=True)
class OfficeEvent:
    id: int
    agent: str
    at: datetime
    what: str
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict[str, Any])


class History:
    """Of all offices. `log_of` finds an office's log, which gets every event, too."""

    def __init__(self, database: ControlDatabase, log_of: Callable[[str], OfficeLog]) -> None:
        self._database, self._log_of = database, log_of

    async def record(
        self, agent: str, what: What, reason: str, evidence: dict[str, Any] | None = None
    ) -> OfficeEvent | None:
        """Does not raise: an office is mended also while nothing can be written about it. None then, or when there is no such
        agent any more."""
        reason = _plain(reason)
        self._log_of(agent).write("office", f"{what}: {reason}")
        try:
            row = await self._database.fetch_one(
                f"INSERT INTO office_events (agent, what, reason, evidence) VALUES (%s, %s, %s, %s) RETURNING {_COLUMNS}",
                (agent, what.value, reason, Jsonb(_clean(evidence or {}))),
            )
            assert row is not None
            await self._database.execute(
                "DELETE FROM office_events WHERE agent = %s AND id <= (SELECT id FROM office_events WHERE agent = %s "
                "ORDER BY id DESC OFFSET %s LIMIT 1)",
                (agent, agent, EVENTS_KEPT),
            )
        except (TenureError, ForeignKeyViolation) as error:
            logger.warning("history of %s: %s (%s): %s", agent, what, reason, error)
            return None
        return OfficeEvent(**row)

    async def of(self, agent: str, limit: int = 100) -> list[OfficeEvent]:
        """The newest first."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM office_events WHERE agent = %s ORDER BY id DESC LIMIT %s",
            (agent, min(limit, EVENTS_MAX)),
        )
        return [OfficeEvent(**row) for row in rows]

    async def last(self, kinds: Sequence[What]) -> dict[str, OfficeEvent]:
        """Of each agent that has any, its last event of these kinds."""
        rows = await self._database.fetch(
            f"SELECT DISTINCT ON (agent) {_COLUMNS} FROM office_events WHERE what = ANY(%s) ORDER BY agent, id DESC",
            ([kind.value for kind in kinds],),
        )
        return {row["agent"]: OfficeEvent(**row) for row in rows}


def _plain(text: str) -> str:
    """What PostgreSQL's text takes, cut."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()[:TEXT_CHARS_MAX]


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(str(key)): _clean(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value if value is None or isinstance(value, bool | int | float) else _plain(str(value))
