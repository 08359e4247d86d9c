"""The buckets of an installation, by name, for whoever asks.

An office sees its own by their names, and shared ones that were granted to it by theirs. Whoever is no office sees the shared
ones, and `AGENT.BUCKET` is an agent's own: no bucket has a dot in its name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from tenure.data.objects import ObjectStore
from tenure.data.s3.buckets import Bucket, Listed
from tenure.data.s3.errors import S3Error, no_such_bucket
from tenure.data.s3.shared import KIND, SharedBuckets
from tenure.data.s3.store.base import Wanted
from tenure.errors import AlreadyExists, InvalidName, NotFound
from tenure.identity.authorize import Principal, PrincipalKind, Resource
from tenure.identity.grants import granted
from tenure.names import check_bucket, check_name

_ANYTHING = Wanted(limit=1, versions=True)


class Buckets:
    """A `BucketSource`. `objects_of` gives an agent's objects, bringing its volume here; it raises `NotFound`."""

    def __init__(
        self,
        objects_of: Callable[[str], Awaitable[ObjectStore]],
        shared: SharedBuckets,
    ) -> None:
        self._objects_of, self._shared = objects_of, shared

    async def list(self, principal: Principal) -> Sequence[Listed]:
        found = [Listed(one.name, one.created_at) for one in await self._shared.list(principal)]
        if principal.kind is PrincipalKind.OFFICE:
            store = await self._objects_of(principal.name)
            own = [Listed(name, created_at) for name, created_at in await store.volume.buckets()]
            names = {one.name for one in own}
            found = own + [one for one in found if one.name not in names]
        return sorted(found, key=lambda one: one.name)

    async def find(self, principal: Principal | None, name: str) -> Bucket:
        agent, _, own = name.rpartition(".")
        if agent and (principal is None or principal.kind is not PrincipalKind.OFFICE):
            return await self._of_agent(agent, own, name)
        _check(name)
        is_office = principal is not None and principal.kind is PrincipalKind.OFFICE
        if is_office and principal is not None:
            store = await self._objects_of(principal.name)
            if await store.volume.exists(name):
                return Bucket(name, store.volume.bucket(name), principal.name)
        backend = await self._shared.find(name)
        if backend is None:
            raise no_such_bucket(name)
        if not is_office or principal is None:
            return Bucket(name, backend)
        grant = await self._shared.find_grant(principal, name)
        prefix = str(grant.scope.get("prefix", "")) if grant else ""
        return Bucket(name, backend, "", granted(Resource(KIND, name=name), grant).granted, prefix)

    async def create(self, principal: Principal, name: str, settings: Mapping[str, object]) -> None:
        try:
            check_bucket(name)
        except InvalidName as error:
            raise S3Error("InvalidBucketName", error.hint) from None
        if principal.kind is PrincipalKind.OFFICE:
            if await self._shared.find(name) is not None:
                raise S3Error("BucketAlreadyExists")
            store = await self._objects_of(principal.name)
            if not await store.volume.create(name):
                raise S3Error("BucketAlreadyOwnedByYou")
            backend = store.volume.bucket(name)
        else:
            try:
                await self._shared.create(name)
            except AlreadyExists:
                raise S3Error("BucketAlreadyOwnedByYou") from None
            backend = await self._shared.open(name)
        for setting, value in settings.items():
            await backend.change(setting, value)

    async def delete(self, principal: Principal, bucket: Bucket) -> None:
        if bucket.owner:
            name = bucket.name.rpartition(".")[2]
            await (await self._objects_of(bucket.owner)).volume.delete(name)
            return
        if (await bucket.backend.page(_ANYTHING)).versions:
            raise S3Error("BucketNotEmpty")
        await self._shared.delete(bucket.name)

    async def _of_agent(self, agent: str, own: str, name: str) -> Bucket:
        try:
            store = await self._objects_of(check_name(agent))
        except (InvalidName, NotFound):
            raise no_such_bucket(name) from None
        _check(own)
        if not await store.volume.exists(own):
            raise no_such_bucket(name)
        return Bucket(name, store.volume.bucket(own), agent)


def _check(name: str) -> None:
    try:
        check_bucket(name)
    except InvalidName:
        raise no_such_bucket(name[:100]) from None
