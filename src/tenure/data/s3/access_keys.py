"""Access keys as the API has them: made for the owner or an agent, lent to an office, and used here to sign addresses."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tenure.data.s3.authentication import Authenticator
from tenure.data.s3.keys import AccessKey, KeyStore
from tenure.data.s3.sessions import ADDRESS_FOR_MAX, LENT_FOR, Session, Sessions, Use
from tenure.data.s3.signature import presign
from tenure.errors import InvalidArgument
from tenure.identity.authorize import Principal, PrincipalKind

REGION = "local"
"""What our own signatures say, and what clients are told; theirs may say any. boto3 signs addresses by an old signature, which is
refused here, in regions of AWS's that once knew it, and by Version 4 in one that it does not know."""
METHODS = ("GET", "PUT")


@dataclass(frozen=True)
class Lent:
    """A short-lived key, as containers of AWS are given theirs."""

    access_key_id: str
    secret_access_key: str
    token: str
    expiration: datetime


@dataclass(frozen=True)
class Address:
    """An address that does one thing without a key, until its time."""

    url: str
    method: str
    expires_at: datetime


class AccessKeys:
    """`number_of` tells an agent's number and raises `NotFound`; `outside_url` is where the S3 API listens for clients outside,
    empty when it does not. Methods raise `ServerUnreachable` while PostgreSQL is away."""

    def __init__(
        self,
        store: KeyStore,
        master: bytes,
        number_of: Callable[[str], Awaitable[int]],
        outside_url: str = "",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store, self._sessions = store, Sessions(master)
        self._number_of, self._clock = number_of, clock
        self.outside_url = outside_url

    def authenticator(self, door: Principal | None = None) -> Authenticator:
        """Of the door of an office, or of the address outside."""
        return Authenticator(self._store, self._sessions, door, self._clock)

    async def create(
        self,
        agent: str | None,
        *,
        by: Principal,
        expires_s: float | None = None,
        buckets: Mapping[str, str] | None = None,
        comment: str = "",
    ) -> tuple[AccessKey, str]:
        """A key that acts as the agent, or as the owner, and its secret. Raises `NotFound`, `InvalidArgument`, `Conflict`."""
        principal = Principal(PrincipalKind.OFFICE, agent) if agent else Principal(PrincipalKind.OWNER)
        number = await self._number_of(agent) if agent else None
        expires_at = None if expires_s is None else self._clock() + timedelta(seconds=expires_s)
        return await self._store.create(
            principal, number, by=by, expires_at=expires_at, buckets=buckets, comment=comment
        )

    async def list(self, agent: str | None = None) -> Sequence[AccessKey]:
        """The oldest first; of all principals when no agent is named."""
        return await self._store.list(Principal(PrincipalKind.OFFICE, agent) if agent else None)

    async def revoke(self, key_id: str) -> AccessKey:
        """At once, also for what is being sent with it. Raises `NotFound`."""
        return await self._store.revoke(key_id)

    async def revoke_lent(self, agent: str) -> None:
        """Ends what the office was lent and the addresses that were made for the agent; its programs fetch a new key by
        themselves. Raises `NotFound`."""
        await self._store.end_generation(await self._number_of(agent))

    async def lend(self, agent: str) -> Lent:
        """For an hour, to the agent's own office. Raises `NotFound`."""
        until = self._clock().replace(microsecond=0) + LENT_FOR
        keys = self._sessions.keys_of(await self._session(Use.OFFICE, agent, until))
        return Lent(keys.key_id, keys.secret, keys.token, until)

    async def presign(self, agent: str, bucket: str, name: str, *, method: str, expires_s: int) -> Address:
        """An address at which anyone may get or put one object of an agent's, outside. Raises `NotFound`, `InvalidArgument`."""
        if not self.outside_url:
            raise InvalidArgument(
                "The S3 API does not listen outside.",
                hint="Start the server with a TENURE_S3_PORT: `tenure status` shows it.",
            )
        if method not in METHODS:
            raise InvalidArgument(
                f"{method[:20]!r} is not a method of addresses.", hint=f"One of: {', '.join(METHODS)}."
            )
        if not 1 <= expires_s <= ADDRESS_FOR_MAX.total_seconds():
            raise InvalidArgument("An address holds for a second to a week.", hint="For longer: `tenure key create`.")
        now = self._clock().replace(microsecond=0)
        until = now + timedelta(seconds=expires_s)
        keys = self._sessions.keys_of(await self._session(Use.ADDRESS, agent, until))
        url = presign(method, self.outside_url, [bucket, name], keys, now=now, expires_s=expires_s, region=REGION)
        return Address(url, method, until)

    async def _session(self, use: Use, agent: str, until: datetime) -> Session:
        number = await self._number_of(agent)
        generation = await self._store.begin_generation(number)
        return Session(use, number, agent, generation, until, secrets.token_hex(8))
