"""Limits that a session could lift by itself are kept from outside: how long a statement, a transaction, a wait in one may take.

PostgreSQL's own settings for these say it first, and politely; a session may set them as it likes, so they guard nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, LiteralString

import psycopg

from tenure.data.shared.roles import IDLE_IN_TRANSACTION_S, ROLE_PREFIX, TRANSACTION_STATEMENTS
from tenure.data.shared.server import SharedServer
from tenure.postgres.cluster import SUPERUSER

log = logging.getLogger(__name__)

STATEMENT_GRACE_S = 2.0
"""PostgreSQL's own timeout gets the first word; a statement that was cancelled has as long to end."""


@dataclass(frozen=True)
class Activity:
    """One agent's connection, in seconds: since its statement began, since it waits in a transaction, since that began. None
    where there is no such thing."""

    pid: int
    statement_s: float | None
    waits_s: float | None
    transaction_s: float | None


class Act(StrEnum):
    CANCEL = "cancel"
    END = "end"


def acts(found: Sequence[Activity], statement_timeout_s: float) -> dict[int, Act]:
    """What is to be done, by process. Pure."""
    wanted: dict[int, Act] = {}
    for one in found:
        over_s = 0.0 if one.statement_s is None else one.statement_s - statement_timeout_s
        waited = (one.waits_s or 0.0) > IDLE_IN_TRANSACTION_S
        took = (one.transaction_s or 0.0) > TRANSACTION_STATEMENTS * statement_timeout_s + STATEMENT_GRACE_S
        if waited or took or over_s > 2 * STATEMENT_GRACE_S:
            wanted[one.pid] = Act.END
        elif over_s > STATEMENT_GRACE_S:
            wanted[one.pid] = Act.CANCEL
    return wanted


class Watch:
    """Looks at one running server. Keeps its connection, so that looking costs little."""

    def __init__(self, server: SharedServer) -> None:
        self._server = server
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None

    async def look(self) -> None:
        """To be called every second or so while the server runs. Does not raise when it stops meanwhile."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = await self._server.session(SUPERUSER, search_path="")
            for pid, act in acts(await _activities(self._connection), self._server.limits.statement_timeout_s).items():
                log.info("%s %s of %s", act, pid, self._server.cluster.data_dir.parent.name)
                await self._connection.execute(_ACT[act], (pid,))
        except psycopg.Error:
            await self.close()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                await connection.close()


_ACT: dict[Act, LiteralString] = {
    Act.CANCEL: "SELECT pg_cancel_backend(%s)",
    Act.END: "SELECT pg_terminate_backend(%s)",
}


async def _activities(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> list[Activity]:
    rows = await (
        await connection.execute(
            "SELECT pid, CASE WHEN state IN ('active', 'fastpath function call') "
            "THEN extract(epoch FROM clock_timestamp() - query_start)::float8 END, "
            "CASE WHEN state LIKE 'idle in transaction%%' "
            "THEN extract(epoch FROM clock_timestamp() - state_change)::float8 END, "
            "extract(epoch FROM clock_timestamp() - xact_start)::float8 "
            "FROM pg_stat_activity WHERE backend_type = 'client backend' AND starts_with(usename::text, %s)",
            (ROLE_PREFIX,),
        )
    ).fetchall()
    return [Activity(*row) for row in rows]
