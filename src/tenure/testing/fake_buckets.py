"""Shared buckets in memory, with nothing in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from tenure.data.s3.shared import GIB, KIND, QUOTA_GB_DEFAULT, BucketGrantView, BucketView
from tenure.errors import AlreadyExists, InvalidArgument, NotFound
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.identity.grants import LEVELS, Grant
from tenure.names import check_bucket
from tenure.server.services import Offices


class FakeBuckets:
    def __init__(self, offices: Offices) -> None:
        self._offices = offices
        self._buckets: dict[str, BucketView] = {}
        self._grants: dict[tuple[str, str], Grant] = {}

    async def create(self, name: str, quota_gb: float | None = None, backend: str = "") -> BucketView:
        if check_bucket(name) in self._buckets:
            raise AlreadyExists(f"There is a shared bucket named {name} already.")
        if backend and not backend.startswith(("s3://", "gs://", "az://", "file://")):
            raise InvalidArgument(f"{backend[:200]!r} is not the address of a bucket.")
        quota = None if backend else int((quota_gb or QUOTA_GB_DEFAULT) * GIB)
        sizes = (None, None) if backend else (0, 0)
        self._buckets[name] = BucketView(name, datetime.now(UTC), backend or "volume", quota, *sizes)
        return self._buckets[name]

    async def get(self, name: str) -> BucketView:
        if name not in self._buckets:
            raise NotFound(f"There is no shared bucket named {name[:60]!r}.")
        return self._buckets[name]

    async def list(self, principal: Principal | None = None) -> Sequence[BucketView]:
        found = [self._buckets[name] for name in sorted(self._buckets)]
        if principal is None or principal.kind is not PrincipalKind.OFFICE:
            return found
        return [one for one in found if (one.name, principal.name) in self._grants]

    async def limit(self, name: str, quota_gb: float) -> BucketView:
        self._buckets[name] = replace(await self.get(name), quota_bytes=int(quota_gb * GIB))
        return self._buckets[name]

    async def delete(self, name: str, *, force: bool = False) -> None:
        await self.get(name)
        del self._buckets[name]
        self._grants = {key: grant for key, grant in self._grants.items() if key[0] != name}

    async def grant(
        self,
        name: str,
        agent: str,
        level: str,
        *,
        by: Principal,
        prefix: str = "",
        expires_at: datetime | None = None,
    ) -> BucketGrantView:
        await self.get(name)
        await self._offices.need(agent)
        if level not in LEVELS[KIND] or (expires_at is not None and expires_at <= datetime.now(UTC)):
            raise InvalidArgument("The grant is none.")
        principal = Principal(PrincipalKind.OFFICE, agent)
        scope = {"prefix": prefix} if prefix else {}
        self._grants[name, agent] = Grant(principal, KIND, name, level, by, datetime.now(UTC), scope, expires_at)
        return (await self.grants(name))[-1]

    async def revoke(self, name: str, agent: str) -> None:
        await self.get(name)
        if self._grants.pop((name, agent), None) is None:
            raise NotFound(f"{agent} has no grant to the bucket {name}.")

    async def grants(self, name: str) -> Sequence[BucketGrantView]:
        await self.get(name)
        return [
            BucketGrantView(
                name,
                one.principal.name,
                one.level,
                str(one.scope.get("prefix", "")),
                str(one.created_by),
                one.created_at,
                one.expires_at,
            )
            for key, one in self._grants.items()
            if key[0] == name
        ]

    async def find_grant(self, principal: Principal, name: str) -> Grant | None:
        return self._grants.get((name, principal.name))
