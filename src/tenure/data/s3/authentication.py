"""Who asks for objects: by the signature of the request, and by the door that it came through.

    outside      signed by an access key of the owner's, or of an agent's, or presigned; else nobody's
    at a door    the office's, unsigned or signed by a key of its own; a key of anybody else's is refused there

What is signed and wrong is refused, and never counts as unsigned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from tenure.data.s3.body import CheckedBody
from tenure.data.s3.errors import S3Error
from tenure.data.s3.keys import KeyStore
from tenure.data.s3.post_policy import Allowed, check_policy, form_claim, verify_form
from tenure.data.s3.request import Authenticated, S3Request, anything
from tenure.data.s3.sessions import Sessions, Use
from tenure.data.s3.signature import (
    SIGNED_CHUNKS,
    SIGNED_CHUNKS_TRAILER,
    UNSIGNED_CHUNKS_TRAILER,
    UNSIGNED_PAYLOAD,
    check_time,
    claim_of,
    verify,
)
from tenure.identity.authorize import Principal


@dataclass(frozen=True)
class Known:
    """A key that was found: whose it is, its secret, and until when it holds."""

    principal: Principal
    secret: str
    is_welcome: Callable[[], bool]
    allows: Callable[[str, str], bool]
    use: Use | None = None
    """Of a short-lived key."""


class Authenticator:
    """An `Authenticate`, and the same for forms. `door` is the office whose door this is; None: the address outside."""

    def __init__(
        self,
        keys: KeyStore,
        sessions: Sessions,
        door: Principal | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keys, self._sessions, self._door, self._clock = keys, sessions, door, clock

    async def __call__(self, request: S3Request) -> Authenticated:
        """Raises `S3Error`."""
        claim = claim_of(request)
        if claim is None:
            return Authenticated(self._door, CheckedBody(request, _unsigned(request)))
        check_time(claim, self._clock())
        known = await self._find(claim.key_id, claim.token, presigned=claim.expires_s is not None)
        signer = verify(request, claim, known.secret)
        self._check_door(known)
        body = CheckedBody(request, claim.payload, signer, known.is_welcome)
        return Authenticated(known.principal, body, known.allows)

    async def form(self, request: S3Request, fields: Mapping[str, str]) -> tuple[Authenticated, Allowed]:
        """Who sent a form, and what its file may be. `fields` are named in lower case; `key` is final. `body` of the answer is
        the request's, of which the form was read. Raises `S3Error`."""
        if request.headers.getlist("authorization") or claim_of(request) is not None:
            raise S3Error("InvalidArgument", "A form is signed by its fields and by nothing else.")
        claim = form_claim(fields)
        if claim is None:
            return Authenticated(self._door, request.body), Allowed()
        known = await self._find(claim.key_id, claim.token, presigned=True)
        verify_form(claim, known.secret)
        self._check_door(known)
        allowed = check_policy(claim.policy, fields, request.bucket, self._clock())
        return Authenticated(known.principal, request.body, known.allows), allowed

    def _check_door(self, known: Known) -> None:
        """After the signature: who has no secret does not learn whose a key is."""
        if self._door is not None and known.principal != self._door:
            raise S3Error("AccessDenied", "The access key is not of the office whose door this is.")
        if self._door is None and known.use is Use.OFFICE:
            raise S3Error("AccessDenied", "The keys that an office is lent work through its own door only.")

    async def _find(self, key_id: str, token: str, *, presigned: bool) -> Known:
        if token:
            return await self._session(key_id, token, presigned=presigned)
        found = await self._keys.find(key_id)
        if found is None:
            raise S3Error("InvalidAccessKeyId", fields={"AWSAccessKeyId": key_id})
        key, secret = found
        await self._keys.used(key)

        def is_welcome() -> bool:
            in_time = key.expires_at is None or self._clock() < key.expires_at
            return in_time and not self._keys.is_revoked(key.id)

        return Known(key.principal, secret, is_welcome, key.allows)

    async def _session(self, key_id: str, token: str, *, presigned: bool) -> Known:
        session, keys = self._sessions.read(token, key_id, self._clock())
        if await self._keys.generation(session.agent) != session.generation:
            raise S3Error("ExpiredToken", "The access key was revoked.")
        if session.use is Use.ADDRESS and not presigned:
            raise S3Error("InvalidToken", "This key signs addresses only.")

        def is_welcome() -> bool:
            return not self._keys.has_ended(session.agent, session.generation)

        return Known(session.principal, keys.secret, is_welcome, anything, session.use)


def _unsigned(request: S3Request) -> str:
    """How the body of an unsigned request is sent; some clients send it in chunks all the same."""
    payload = request.header("x-amz-content-sha256", UNSIGNED_PAYLOAD)
    if payload in (SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER):
        raise S3Error("InvalidRequest", "The chunks are signed and the request is not.")
    return payload if payload == UNSIGNED_CHUNKS_TRAILER else UNSIGNED_PAYLOAD
