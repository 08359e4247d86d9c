"""From a request to an answer: a delivery is stored before anybody is told that it came.

It goes into the agent's database, which is started for it. When that does not take it within a few seconds, or older deliveries
wait already, it goes to the host's disk; a chore brings those in, in order, as soon as the database takes them. Each has an id of
ours, so one that is stored twice after a crash is there once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from tenure.data.webhooks import delivery as sql
from tenure.data.webhooks.delivery import Delivery, kept_headers
from tenure.data.webhooks.signatures import Headers, Refused, dedupe_of, parsed, verify
from tenure.data.webhooks.spool import Spool
from tenure.data.webhooks.store import Counts, Hook
from tenure.errors import DatabaseError, TenureError
from tenure.faultpoints import reach
from tenure.postgres.client import INVALID_SCHEMA_NAME, UNDEFINED_TABLE

log = logging.getLogger("tenure.webhooks")

DATABASE_WAIT_S = 5.0
"""How long a sender is kept waiting for the agent's database, its start included."""
DRAIN_WAIT_S = 60.0
"""The same for what waits on disk, where nobody is kept waiting."""
DRAINED_MAX = 200
"""Of one agent per call of `drain`."""
RETRY_S, RETRY_S_MAX = 2.0, 60.0
STUCK = timedelta(hours=1)
"""After so long the owner is told that an agent's deliveries wait."""
FORGET_EVERY = timedelta(minutes=10)
"""How often old deliveries of a hook are deleted, when new ones come."""
REASON_CHARS_MAX = 200
_ID_BYTES = 10


class Database(Protocol):
    async def execute(
        self, statement: str, *, key: str | None = None, rows_max: int = 1000, read_only: bool = False
    ) -> Any: ...


FindDatabase = Callable[[str], Awaitable[Database]]
"""The database of an agent, which its first statement starts."""
Tell = Callable[[str, str, str, str], Awaitable[None]]
"""Leaves a message: agent, key, subject, body."""


class Outcome(StrEnum):
    STORED = "stored"
    REPEATED = "repeated"
    """It was there already."""
    SPOOLED = "spooled"
    """It is on disk, and will be in the database."""
    REFUSED = "refused"
    FULL = "full"
    """Nobody can keep it now."""


@dataclass
class _Trouble:
    """Of an agent whose database does not take what waits."""

    since: datetime
    failures: int = 0
    next_at: datetime | None = None


@dataclass
class Receiver:
    databases: FindDatabase
    spool: Spool
    tell: Tell
    now: Callable[[], datetime]
    database_wait_s: float = DATABASE_WAIT_S
    _counts: dict[str, Counts] = field(default_factory=dict[str, Counts])
    _forgotten: dict[str, datetime] = field(default_factory=dict[str, datetime])
    _troubles: dict[str, _Trouble] = field(default_factory=dict[str, _Trouble])
    _draining: set[str] = field(default_factory=set[str])

    async def receive(self, hook: Hook, keys: Sequence[str], headers: Headers, body: bytes) -> Outcome:
        """Returns when it is durable, or when it will not be. `headers` by name in lower case."""
        now = self.now()
        try:
            verify(hook.signature, keys, headers, body, now.timestamp())
        except Refused as refusal:
            self._count(hook, refused=1, last_refused_at=now, last_refusal=refusal.reason[:REASON_CHARS_MAX])
            return Outcome.REFUSED
        found = parsed(body)
        made = Delivery(
            id=f"dlv_{secrets.token_hex(_ID_BYTES)}",
            hook=hook.name,
            agent=hook.agent,
            received_at=now,
            headers=kept_headers(headers),
            body=body,
            is_json=found is not None,
            signature="none" if hook.signature == "none" else "valid",
            dedupe=dedupe_of(hook.signature, headers, found),
        )
        reach("webhook.received")
        outcome = await self._keep(hook, made)
        reach("webhook.kept")
        if outcome is not Outcome.FULL:
            self._count(hook, received=1, repeated=int(outcome is Outcome.REPEATED), last_received_at=now)
        return outcome

    async def _keep(self, hook: Hook, made: Delivery) -> Outcome:
        if not self.spool.waiting(hook.agent):  # else it would overtake what waits
            try:
                async with asyncio.timeout(self.database_wait_s):
                    is_new = await self._store(made, hook)
                return Outcome.STORED if is_new else Outcome.REPEATED
            except (TenureError, TimeoutError, OSError) as error:
                log.info("the database of %s did not take a delivery: %s", hook.agent, error or "not in time")
        try:
            # Nobody cancels it half-way: a thread cannot be stopped, and the file would be forgotten.
            await asyncio.shield(asyncio.to_thread(self.spool.put, made))
        except (TenureError, OSError) as error:
            log.warning("a delivery for %s cannot be kept: %s", hook.agent, error)
            return Outcome.FULL
        return Outcome.SPOOLED

    async def _store(self, made: Delivery, hook: Hook | None = None) -> bool:
        """Whether it was new. Raises what the database raises."""
        database = await self.databases(made.agent)
        try:
            done = await database.execute(sql.insert(made))
        except DatabaseError as error:
            if error.details.get("sqlstate") not in (UNDEFINED_TABLE, INVALID_SCHEMA_NAME):
                raise
            await database.execute(sql.CREATE)
            done = await database.execute(sql.insert(made))
        if hook is not None and self._is_time_to_forget(hook):
            await database.execute(sql.forget(hook.name, hook.keep))
        return bool(done.rows)

    def _is_time_to_forget(self, hook: Hook) -> bool:
        now, last = self.now(), self._forgotten.get(hook.id)
        if last is not None and now - last < FORGET_EVERY:
            return False
        self._forgotten[hook.id] = now
        return True

    # --- what waits --------------------------------------------------------------------------------------------------
    async def drain(self) -> None:
        """Brings what waits on disk into the databases, each agent's in order. To be called every few seconds."""
        now = self.now()
        due = [
            agent
            for agent in self.spool.agents()
            if agent not in self._draining
            and ((trouble := self._troubles.get(agent)) is None or trouble.next_at is None or trouble.next_at <= now)
        ]
        await asyncio.gather(*(self._drain(agent) for agent in due))

    async def _drain(self, agent: str) -> None:
        self._draining.add(agent)
        try:
            for _ in range(DRAINED_MAX):
                first = await asyncio.to_thread(self.spool.first, agent)
                if first is None:
                    break
                name, waiting = first
                async with asyncio.timeout(DRAIN_WAIT_S):
                    await self._store(waiting)
                reach("webhook.drained")
                await asyncio.to_thread(self.spool.done, agent, name)
            self._troubles.pop(agent, None)
        except (TenureError, TimeoutError, OSError) as error:
            await self._trouble(agent, error)
        finally:
            self._draining.discard(agent)

    async def _trouble(self, agent: str, error: Exception) -> None:
        now = self.now()
        trouble = self._troubles.setdefault(agent, _Trouble(now))
        wait_s = min(RETRY_S * 2**trouble.failures, RETRY_S_MAX)
        trouble.failures = min(trouble.failures + 1, 16)
        trouble.next_at = now + timedelta(seconds=wait_s)
        log.info("%d deliveries for %s wait: %s", self.spool.waiting(agent), agent, error or "not in time")
        if now - trouble.since >= STUCK:
            await self.tell(
                agent,
                f"webhooks-wait-{trouble.since.isoformat()}",
                f"Deliveries of webhooks wait for the database of {agent}",
                f"{self.spool.waiting(agent)} deliveries have waited on this machine's disk since "
                f"{trouble.since:%Y-%m-%d %H:%M} UTC. The last attempt: {error or 'not in time'}\nThey go on being tried; when "
                "too many wait, senders are told to come again later.",
            )

    # --- counting -------------------------------------------------------------------------------------------------------
    def _count(self, hook: Hook, **what: Any) -> None:
        so_far = self._counts.get(hook.id, Counts())
        numbers = {
            name: getattr(so_far, name) + what.pop(name) for name in ("received", "repeated", "refused") if name in what
        }
        self._counts[hook.id] = replace(so_far, **numbers, **what)

    def take_counts(self) -> dict[str, Counts]:
        """By hook, what came since the last call."""
        taken, self._counts = self._counts, {}
        return taken
