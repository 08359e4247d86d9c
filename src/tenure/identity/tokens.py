"""Bearer tokens: how the owner and the worker show who they are. An office shows none: its door says who it is."""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from tenure.errors import SetupError, Unauthenticated
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.settings import Settings

TOKEN_BYTES = 32
TOKEN_CHARS_MIN = 20
"""A shorter one in the file was not made by us, and could be guessed."""

OWNER = Principal(PrincipalKind.OWNER)
WORKER = Principal(PrincipalKind.WORKER)


def worker_token_file(settings: Settings) -> Path:
    """The worker's own token, so that the log tells its calls from the owner's."""
    return settings.home / "worker-token"


def ensure_token(path: Path) -> str:
    """The token in `path`, made (mode 0600) when there is none. Raises `SetupError` when it is unusable."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text().strip()
        if len(token) < TOKEN_CHARS_MIN:
            raise SetupError(
                f"The token in {path} is too short to be safe.", hint="Delete the file; `tenure up` makes a new one."
            ) from None
        path.chmod(0o600)  # a backup that was copied back may have come with other rights
        return token
    with os.fdopen(descriptor, "w") as file:
        token = secrets.token_urlsafe(TOKEN_BYTES)
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token


@dataclass(frozen=True)
class Tokens:
    """The tokens that this server accepts."""

    owner: str
    worker: str

    @classmethod
    def ensure(cls, settings: Settings) -> Tokens:
        """Reads both, making what is missing."""
        return cls(owner=ensure_token(settings.token_file), worker=ensure_token(worker_token_file(settings)))

    def principal(self, authorization: str) -> Principal:
        """Whom the value of an `Authorization` header stands for. Takes constant time. Raises `Unauthenticated`."""
        scheme, _, token = authorization.partition(" ")
        shown = token.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() != "bearer" or not shown:
            raise Unauthenticated("The Authorization header must be `Bearer TOKEN`.")
        is_owner = hmac.compare_digest(shown, self.owner.encode())
        is_worker = hmac.compare_digest(shown, self.worker.encode())
        if is_owner:
            return OWNER
        if is_worker:
            return WORKER
        raise Unauthenticated("The token is not the one of this server.")
