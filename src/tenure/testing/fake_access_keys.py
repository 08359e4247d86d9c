"""Access keys in memory."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from tenure.data.s3.access_keys import AccessKeys
from tenure.data.s3.keys import KEYS_MAX, PREFIX, AccessKey, KeyStore, check_buckets
from tenure.database.connect import ControlDatabase
from tenure.errors import Conflict, NotFound
from tenure.identity.authorize import Principal
from tenure.server.services import Offices


class FakeKeyStore(KeyStore):
    """As `KeyStore`, without a database. An agent that was deleted keeps its keys here: that is the database's doing."""

    def __init__(self) -> None:
        super().__init__(ControlDatabase(""), bytes(32))
        self._keys: dict[str, tuple[AccessKey, str]] = {}
        self._current: dict[int, int] = {}

    async def create(
        self,
        principal: Principal,
        agent: int | None,
        *,
        by: Principal,
        expires_at: datetime | None = None,
        buckets: Mapping[str, str] | None = None,
        comment: str = "",
    ) -> tuple[AccessKey, str]:
        if len(await self.list(principal)) >= KEYS_MAX:
            raise Conflict(f"There are {KEYS_MAX} keys of {principal} already.")
        key_id = f"{PREFIX}{secrets.token_hex(8).upper()}A"
        levels = dict(check_buckets(buckets or {}))
        key = AccessKey(key_id, principal, agent, by, datetime.now(UTC), levels, comment, expires_at)
        self._keys[key_id] = (key, secrets.token_urlsafe(30))
        return self._keys[key_id]

    async def list(self, principal: Principal | None = None) -> Sequence[AccessKey]:
        return [key for key, _ in self._keys.values() if principal in (None, key.principal)]

    async def revoke(self, key_id: str) -> AccessKey:
        if key_id not in self._keys:
            raise NotFound(f"There is no access key {key_id[:80]!r}.")
        self._revoked.add(key_id)
        return self._keys.pop(key_id)[0]

    async def find(self, key_id: str) -> tuple[AccessKey, str] | None:
        found = self._keys.get(key_id)
        if found and found[0].expires_at and found[0].expires_at <= datetime.now(UTC):
            return None
        return found

    async def used(self, key: AccessKey) -> None:
        if key.id in self._keys:
            self._keys[key.id] = (replace(key, last_used_at=datetime.now(UTC)), self._keys[key.id][1])

    async def generation(self, agent: int) -> int | None:
        return self._current.get(agent)

    async def begin_generation(self, agent: int) -> int:
        return self._current.setdefault(agent, 1)

    async def end_generation(self, agent: int) -> None:
        self._current[agent] = self._generations[agent] = self._current.get(agent, 1) + 1


def access_keys_of(offices: Offices, outside_url: str = "http://127.0.0.1:9000") -> AccessKeys:
    """For the agents of `offices`."""
    numbers: dict[str, int] = {}

    async def number_of(agent: str) -> int:
        await offices.need(agent)
        return numbers.setdefault(agent, len(numbers) + 1)

    return AccessKeys(FakeKeyStore(), bytes(32), number_of, outside_url)
