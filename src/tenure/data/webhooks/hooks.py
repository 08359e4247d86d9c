"""The `Webhooks` service: addresses at which an agent receives what others send, and their secrets."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tenure.data.webhooks import delivery as sql
from tenure.data.webhooks.receiver import Outcome, Receiver
from tenure.data.webhooks.signatures import check_scheme, check_secret, new_secret, sign
from tenure.data.webhooks.store import Hook, Hooks
from tenure.errors import Conflict, DatabaseError, InvalidArgument, NotFound, TenureError
from tenure.names import check_name
from tenure.postgres.client import INVALID_SCHEMA_NAME, UNDEFINED_TABLE
from tenure.secrets.kept import KeptSecrets

HOOKS_MAX = 100
"""Of one agent."""
KEEP_MIN, KEEP_MAX = timedelta(hours=1), timedelta(days=3650)
OLD_SECRET_S = 24 * 3600
"""After a rotation the old secret is good for so long."""
KNOWN_S = 2.0
"""How long this server believes what it knows of hooks; then it looks again."""
ADDRESS_BYTES = 20
MADE_WAIT_S = 5.0
_ID_BYTES = 6
TEST_BODY = {"type": "tenure.test", "text": "This is a test of the webhook."}


@dataclass(frozen=True)
class _Secrets:
    """Of one hook: the one that is good, and the one before, with the time (seconds since 1970) until which it is."""

    current: str
    previous: str = ""
    until: float = 0.0

    def good(self, now: float) -> list[str]:
        return [self.current, self.previous] if self.previous and now < self.until else [self.current]


def utc_now() -> datetime:
    return datetime.now(UTC)


class Webhooks:
    def __init__(
        self, store: Hooks, receiver: Receiver, kept: KeptSecrets, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._store, self._kept, self._now = store, kept, now
        self.receiver = receiver
        self._known: dict[str, Hook] = {}
        self._secrets: dict[str, _Secrets] = {}
        self._known_at = float("-inf")
        self._looking = asyncio.Lock()

    # --- what there is -----------------------------------------------------------------------------------------------
    async def create(
        self, name: str, agent: str, *, signature: str = "standard", keep: timedelta, secret: str | None = None
    ) -> tuple[Hook, str | None]:
        """The hook, and its secret, which is shown here only. The agent exists. Raises `InvalidArgument`, `InvalidName`,
        `AlreadyExists`, `Conflict`."""
        check_name(name, "webhook")
        scheme = check_scheme(signature)
        if not KEEP_MIN <= keep <= KEEP_MAX:
            raise InvalidArgument("Deliveries are kept between an hour and ten years.")
        if scheme == "none":
            if secret is not None:
                raise InvalidArgument("Without signatures there is no secret.")
        else:
            secret = new_secret(scheme) if secret is None else check_secret(scheme, secret)
        if len(await self._store.list(agent)) >= HOOKS_MAX:
            raise Conflict(f"{agent} has {HOOKS_MAX} webhooks already.", hint="Delete some of them.")
        hook = Hook(
            id=f"whk_{secrets.token_hex(_ID_BYTES)}",
            address=secrets.token_hex(ADDRESS_BYTES),
            name=name,
            agent=agent,
            signature=scheme,
            keep=keep,
            created_at=self._now(),
        )
        if secret is not None:
            await self._keep(hook, _Secrets(secret))
        try:
            await self._store.add(hook)
        except BaseException:
            await asyncio.to_thread(self._kept.delete, hook.id)
            raise
        self._known_at = float("-inf")
        await self._make_table(agent)
        return hook, secret

    async def _make_table(self, agent: str) -> None:
        """So that the agent finds it before anything came. Without it the first delivery makes it."""
        try:
            async with asyncio.timeout(MADE_WAIT_S):
                await (await self.receiver.databases(agent)).execute(sql.CREATE)
        except (TenureError, TimeoutError, OSError):
            pass

    async def get(self, wanted: str, agent: str | None = None) -> Hook:
        """By id, or by name where only one agent has one of that name. Raises `NotFound`, `Conflict`."""
        found = await self._store.find(wanted, agent)
        if not found:
            raise NotFound(f"There is no webhook {wanted[:60]!r}.", hint="`tenure webhook list` shows those there are.")
        if len(found) > 1:
            ids = ", ".join(f"{one.id} of {one.agent}" for one in found[:5])
            raise Conflict(f"Several agents have a webhook {wanted[:60]!r}.", hint=f"Name it by its id: {ids}.")
        return found[0]

    async def list(self, agent: str | None = None) -> Sequence[Hook]:
        return await self._store.list(agent)

    async def rotate(
        self, hook: Hook, *, secret: str | None = None, address: bool = False
    ) -> tuple[Hook, str | None]:  # fmt: skip
        """A new secret; the old one is good for a day more. `address`: a new address, too; the old one is nobody's at once."""
        shown = None
        if hook.signature != "none":
            old = await self._read(hook)
            shown = new_secret(hook.signature) if secret is None else check_secret(hook.signature, secret)
            await self._keep(hook, _Secrets(shown, old.current, self._now().timestamp() + OLD_SECRET_S))
        elif not address:
            raise InvalidArgument("This webhook has no secret.", hint="Give it a new address: --address.")
        new = secrets.token_hex(ADDRESS_BYTES) if address else hook.address
        await self._store.rotated(hook.id, new, self._now())
        self._known_at = float("-inf")
        return await self.get(hook.id), shown

    async def delete(self, hook: Hook) -> None:
        """Its address is nobody's at once. What came stays in the agent's database."""
        await self._store.delete(hook.id)
        self._known.pop(hook.address, None)
        self._known_at = float("-inf")
        await asyncio.to_thread(self._kept.delete, hook.id)
        self._secrets.pop(hook.id, None)

    async def forget(self, agent: str) -> None:
        """Of an agent that is deleted: its hooks, their secrets, and what waits for it. May be called again."""
        for hook in await self._store.list(agent):
            await self.delete(hook)
        await asyncio.to_thread(self.receiver.spool.drop, agent)

    # --- secrets -----------------------------------------------------------------------------------------------------
    async def _keep(self, hook: Hook, what: _Secrets) -> None:
        text = json.dumps({"current": what.current, "previous": what.previous, "until": what.until})
        await asyncio.to_thread(self._kept.put, hook.id, text.encode())
        self._secrets[hook.id] = what

    async def _read(self, hook: Hook) -> _Secrets:
        """Raises `NotFound` when the file is gone."""
        known = self._secrets.get(hook.id)
        if known is None:
            read = json.loads(await asyncio.to_thread(self._kept.get, hook.id))
            known = self._secrets[hook.id] = _Secrets(read["current"], read["previous"], read["until"])
        return known

    # --- receiving ---------------------------------------------------------------------------------------------------
    async def at(self, address: str) -> Hook | None:
        """Whose address it is. Strangers ask: not more than one look at the database each `KNOWN_S`, whatever they ask."""
        found = self._known.get(address)
        if time.monotonic() - self._known_at >= KNOWN_S:
            await self.look()
            found = self._known.get(address)
        return found

    async def look(self) -> None:
        """What hooks there are."""
        async with self._looking:
            if time.monotonic() - self._known_at < KNOWN_S:
                return
            known = {one.address: one for one in await self._store.list()}
            changed = {one.id for address, one in known.items() if self._rotation(address) != one.rotated_at}
            for hook in changed:  # perhaps by another server
                self._secrets.pop(hook, None)
            self._known = known
            self._known_at = time.monotonic()

    def _rotation(self, address: str) -> datetime | None:
        known = self._known.get(address)
        return known.rotated_at if known else None

    async def receive(self, hook: Hook, headers: Mapping[str, str], body: bytes) -> Outcome:
        """See `Receiver.receive`."""
        keys: list[str] = []
        if hook.signature != "none":
            keys = (await self._read(hook)).good(self._now().timestamp())
        return await self.receiver.receive(hook, keys, headers, body)

    async def test(self, hook: Hook) -> Outcome:
        """Sends it a delivery, signed as its sender would."""
        delivery_id = f"test_{secrets.token_hex(8)}"
        body = json.dumps({"id": delivery_id, "event_id": delivery_id, **TEST_BODY}).encode()
        now = self._now().timestamp()
        current = (await self._read(hook)).current if hook.signature != "none" else ""
        signed = sign(hook.signature, current, delivery_id, body, now)
        return await self.receive(hook, {"content-type": "application/json", **signed}, body)

    async def count(self) -> None:
        """Writes what came into the hooks' rows, and looks which hooks there are. To be called every few seconds."""
        await self.look()
        for hook, counts in self.receiver.take_counts().items():
            await self._store.count(hook, counts)

    # --- what came ---------------------------------------------------------------------------------------------------
    async def deliveries(self, hook: Hook, limit: int = 50) -> list[dict[str, Any]]:
        """The latest first, without bodies. Starts the agent's database."""
        return await self._select(hook, sql.select(hook.name, limit))

    async def delivery(self, hook: Hook, delivery_id: str) -> dict[str, Any]:
        """With headers, and the body in base64. Raises `NotFound`."""
        found = await self._select(hook, sql.select_one(hook.name, delivery_id))
        if not found:
            raise NotFound(f"There is no delivery {delivery_id[:60]!r}.")
        return found[0]

    async def _select(self, hook: Hook, statement: str) -> list[dict[str, Any]]:
        database = await self.receiver.databases(hook.agent)
        try:
            found = await database.execute(statement, read_only=True)
        except DatabaseError as error:
            if error.details.get("sqlstate") in (UNDEFINED_TABLE, INVALID_SCHEMA_NAME):
                return []
            raise
        return sql.rows_of(found.columns, found.rows)
