"""Shared buckets: nobody's own, granted to agents. Each is a volume with a quota, or lies in somebody else's object storage.

A row is there before its volume is and after it is gone, so what a dying server leaves in the middle is found: `adopt_all`
ends it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tenure.data.s3.shared_store import DELETING, THERE, BucketRecord, SharedBucketStore
from tenure.data.s3.store.base import KEY_BYTES_MAX, ObjectBackend, Wanted
from tenure.data.s3.store.volume import VolumeStore
from tenure.errors import Conflict, InvalidArgument
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.identity.grants import Grant, GrantStore
from tenure.names import check_bucket
from tenure.offices.volumes.base import VolumeDriver
from tenure.settings import Settings

KIND = "bucket"
GIB = 1024**3
QUOTA_GB_DEFAULT = 10.0
QUOTA_GB_MIN = 0.01
QUOTA_GB_MAX = 100_000.0


@dataclass(frozen=True)
class BucketView:
    """A shared bucket as it is shown. Sizes are None where the backend does not tell."""

    name: str
    created_at: datetime
    backend: str
    """ "volume", or the address that it lies at."""
    quota_bytes: int | None = None
    used_bytes: int | None = None
    objects: int | None = None
    level: str | None = None
    """For an office: what was granted to it."""
    prefix: str | None = None


@dataclass(frozen=True)
class BucketGrantView:
    bucket: str
    agent: str
    level: str
    prefix: str
    created_by: str
    created_at: datetime
    expires_at: datetime | None


class SharedBuckets:
    """Of one installation. Whatever names a bucket raises `NotFound` when there is none."""

    def __init__(
        self,
        store: SharedBucketStore,
        grants: GrantStore,
        settings: Settings,
        driver: VolumeDriver,
        need_agent: Callable[[str], Awaitable[None]],
        has_own: Callable[[str, str], Awaitable[bool]],
    ) -> None:
        """`need_agent` raises `NotFound` for an agent that there is not; `has_own` says whether an agent has a bucket of its
        own of a name: an office reaches both by the name alone, so it may have only one of each."""
        self._store, self._grants, self._settings, self._driver = store, grants, settings, driver
        self._need_agent, self._has_own = need_agent, has_own
        self._held: dict[str, tuple[ObjectBackend, VolumeStore | None]] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def volume_of(self, name: str) -> Path:
        return self._settings.pool_dir / "shared-buckets" / name

    def _spool_of(self, name: str) -> Path:
        """Where what goes elsewhere lies before it is whole. No bucket's name begins with a dot."""
        return self.volume_of(f".spool-{name}")

    # --- buckets --------------------------------------------------------------------------------------------------------
    async def create(self, name: str, quota_gb: float | None = None, backend: str = "") -> BucketView:
        """Empty, or with what lies at `backend` already. Raises `InvalidName`, `InvalidArgument`, `AlreadyExists`,
        `StorageError` when the backend does not answer."""
        check_bucket(name)
        quota_bytes = _quota_bytes(QUOTA_GB_DEFAULT if quota_gb is None else quota_gb)
        if backend:
            from tenure.data.s3.store.external import open_external

            await open_external(backend, datetime.now(UTC)).page(Wanted(limit=1))
        async with self._turns[name]:
            record = await self._store.add(name, quota_bytes, backend)
            try:
                if not backend:
                    await self._make_volume(record)
            except BaseException:
                await asyncio.shield(self._forget(record))
                raise
            await self._store.set_stage(name, THERE)
        return await self.get(name)

    async def get(self, name: str) -> BucketView:
        """With how much it takes."""
        record = await self._store.get(name)
        if record.backend:
            return BucketView(record.name, record.created_at, record.backend)
        usage = await self._driver.usage(self.volume_of(name))
        _, volume = await self._open(record)
        assert volume is not None
        count = await volume.bucket(name).count()
        return BucketView(record.name, record.created_at, "volume", record.quota_bytes, usage.used_bytes, count)

    async def list(self, principal: Principal | None = None) -> Sequence[BucketView]:
        """By name: all, or those that were granted to an office. Without sizes."""
        records = await self._store.all()
        if principal is None or principal.kind is not PrincipalKind.OFFICE:
            return [_view(record) for record in records]
        granted = {grant.name: grant for grant in await self._grants.of_principal(principal, KIND)}
        return [_view(record, granted[record.name]) for record in records if record.name in granted]

    async def limit(self, name: str, quota_gb: float) -> BucketView:
        """Raises `InvalidArgument`, also for a bucket that is no volume of ours."""
        quota_bytes = _quota_bytes(quota_gb)
        async with self._turns[name]:
            record = await self._store.get(name)
            if record.backend:
                raise InvalidArgument(f"{name} lies at {record.backend}, which has its own limits.")
            await self._driver.set_limit(self.volume_of(name), quota_bytes)
            await self._store.set_quota(name, quota_bytes)
        return await self.get(name)

    async def delete(self, name: str, *, force: bool = False) -> None:
        """With its grants. What lies in somebody else's storage stays there. Raises `Conflict` when it holds anything, unless
        forced."""
        async with self._turns[name]:
            record = await self._store.get(name)
            if not record.backend and not force:
                backend, _ = await self._open(record)
                if (await backend.page(Wanted(limit=1, versions=True))).versions:
                    raise Conflict(
                        f"The bucket {name} is not empty.", hint="Delete it with all that is in it: --force."
                    )
            await self._store.set_stage(name, DELETING)
            await asyncio.shield(self._forget(record))

    async def adopt_all(self) -> None:
        """Ends what a dead server left in the middle; when a server starts."""
        for record in await self._store.all(unfinished=True):
            if record.stage != THERE:
                await self._forget(record)

    async def _make_volume(self, record: BucketRecord) -> None:
        place = self.volume_of(record.name)
        await self._driver.delete(place)  # what a killed attempt left
        await self._driver.create_empty(place)
        await self._driver.set_limit(place, record.quota_bytes)
        await VolumeStore(place / "objects").create(record.name)

    async def _forget(self, record: BucketRecord) -> None:
        self._held.pop(record.name, None)
        await self._grants.forget_resource(KIND, record.name)
        if record.backend:
            await asyncio.to_thread(shutil.rmtree, self._spool_of(record.name), ignore_errors=True)
        else:
            await self._driver.delete(self.volume_of(record.name))
        await self._store.remove(record.name)

    # --- what is in them ------------------------------------------------------------------------------------------------
    async def find(self, name: str) -> ObjectBackend | None:
        """What holds its objects; None when there is no such bucket."""
        record = await self._store.find(name)
        return None if record is None else (await self._open(record))[0]

    async def open(self, name: str) -> ObjectBackend:
        return (await self._open(await self._store.get(name)))[0]

    async def _open(self, record: BucketRecord) -> tuple[ObjectBackend, VolumeStore | None]:
        held = self._held.get(record.name)
        if held is None:
            if record.backend:
                from tenure.data.s3.store.external import open_external

                spool = self._spool_of(record.name)
                spool.parent.mkdir(exist_ok=True)
                held = open_external(record.backend, record.created_at, spool), None
            else:
                volume = VolumeStore(self.volume_of(record.name) / "objects")
                held = volume.bucket(record.name), volume
            self._held[record.name] = held
        return held

    # --- grants ---------------------------------------------------------------------------------------------------------
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
        """Takes the place of an earlier one. With a `prefix` only for keys that begin so. Raises `InvalidArgument`, `Conflict`
        when the agent has a bucket of its own of that name."""
        if expires_at is not None and expires_at <= datetime.now(UTC):
            raise InvalidArgument("The grant would be over before it begins.", hint="Say a time to come.")
        if len(prefix.encode("utf-8", "replace")) > KEY_BYTES_MAX:
            raise InvalidArgument(f"A prefix is at most {KEY_BYTES_MAX} bytes.")
        await self._store.get(name)
        await self._need_agent(agent)
        if await self._has_own(agent, name):
            raise Conflict(
                f"{agent} has a bucket {name} of its own, which is what it reaches by that name.",
                hint="Share a bucket of another name, or have the agent delete its own.",
            )
        scope = {"prefix": prefix} if prefix else {}
        principal = Principal(PrincipalKind.OFFICE, agent)
        return _grant_view(
            await self._grants.grant(principal, KIND, name, level, by=by, scope=scope, expires_at=expires_at)
        )

    async def revoke(self, name: str, agent: str) -> None:
        """From the next request on. Raises `NotFound` when there is no such grant."""
        await self._store.get(name)
        await self._grants.revoke(Principal(PrincipalKind.OFFICE, agent), KIND, name)

    async def grants(self, name: str) -> Sequence[BucketGrantView]:
        """By agent."""
        await self._store.get(name)
        return [_grant_view(one) for one in await self._grants.of_resource(KIND, name)]

    async def find_grant(self, principal: Principal, name: str) -> Grant | None:
        return await self._grants.find(principal, KIND, name)


def _quota_bytes(quota_gb: float) -> int:
    if not QUOTA_GB_MIN <= quota_gb <= QUOTA_GB_MAX:
        raise InvalidArgument(f"A quota is {QUOTA_GB_MIN} to {QUOTA_GB_MAX:.0f} GB.")
    return int(quota_gb * GIB)


def _view(record: BucketRecord, grant: Grant | None = None) -> BucketView:
    return BucketView(
        record.name,
        record.created_at,
        record.backend or "volume",
        None if record.backend else record.quota_bytes,
        level=grant.level if grant else None,
        prefix=str(grant.scope.get("prefix", "")) if grant else None,
    )


def _grant_view(grant: Grant) -> BucketGrantView:
    return BucketGrantView(
        grant.name,
        grant.principal.name,
        grant.level,
        str(grant.scope.get("prefix", "")),
        str(grant.created_by),
        grant.created_at,
        grant.expires_at,
    )
