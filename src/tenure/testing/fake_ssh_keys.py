"""Public keys of principals without a database, for tests of what stands on them."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime

from tenure.errors import AlreadyExists, NotFound
from tenure.server.gateway.keys import SshKey, read_public_key


class FakeSshKeys:
    """See `tenure.server.services.SshKeys`."""

    def __init__(self) -> None:
        self._keys: dict[str, SshKey] = {}

    async def add(self, principal: str, text: str, comment: str | None = None) -> SshKey:
        key = read_public_key(text)
        if await self.find(key.fingerprint) is not None:
            raise AlreadyExists("This key is there already.")
        made = SshKey(
            f"key_{secrets.token_hex(6)}",
            principal,
            key.fingerprint,
            key.text,
            key.comment if comment is None else comment,
            datetime.now(UTC),
        )
        self._keys[made.id] = made
        return made

    async def list(self, principal: str) -> list[SshKey]:
        return [key for key in self._keys.values() if key.principal == principal]

    async def remove(self, principal: str, wanted: str) -> SshKey:
        for key in await self.list(principal):
            if wanted in (key.id, key.fingerprint):
                return self._keys.pop(key.id)
        raise NotFound(f"There is no SSH key {wanted[:80]!r}.")

    async def find(self, fingerprint: str) -> SshKey | None:
        return next((key for key in self._keys.values() if key.fingerprint == fingerprint), None)

    async def used(self, key_id: str) -> bool:
        if key_id not in self._keys:
            return False
        self._keys[key_id] = replace(self._keys[key_id], last_used_at=datetime.now(UTC))
        return True
