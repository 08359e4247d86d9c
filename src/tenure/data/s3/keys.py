"""Long-lived access keys: the control database's table `s3_keys`.

A signature is checked with the secret itself, so secrets are kept: sealed by AES-GCM under a key that lies in TENURE_HOME and not
in the database, and bound to the row that they stand in. A row that is copied under another id or principal does not open.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg.types.json import Jsonb

from tenure.database.connect import ControlDatabase
from tenure.errors import Conflict, InvalidArgument, NotFound, SetupError
from tenure.identity.authorize import Principal, principal_from
from tenure.identity.grants import LEVELS
from tenure.names import check_bucket

KEYS_MAX = 100
"""Per principal."""
COMMENT_CHARS_MAX = 200
BUCKETS_MAX = 50
PREFIX = "TNK"
ID_CHARS = 20
SECRET_BYTES = 30
"""40 characters in base64, as AWS's have."""
MASTER_BYTES = 32
NONCE_BYTES = 12
USED_EVERY = timedelta(minutes=1)
"""How exactly the last use is kept."""
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_COLUMNS = "id, principal, agent, buckets, comment, created_by, created_at, expires_at, last_used_at"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AccessKey:
    """A row, without its secret. `agent` is the number of the agent that the principal was when the key was made."""

    id: str
    principal: Principal
    agent: int | None
    created_by: Principal
    created_at: datetime
    buckets: Mapping[str, str] = field(default_factory=dict[str, str])
    """Level ("read", "write") by bucket; empty: whatever the principal may."""
    comment: str = ""
    expires_at: datetime | None = None
    last_used_at: datetime | None = None

    def allows(self, action: str, bucket: str) -> bool:
        """Whether the key may be used for it, should its principal be allowed to. No bucket: the list of buckets."""
        if not self.buckets:
            return True
        if not bucket:
            return action == "object:list"
        level = self.buckets.get(bucket)
        return level is not None and action in LEVELS["bucket"][level]


def ensure_master_key(path: Path) -> bytes:
    """The key in `path`, made (mode 0600) when there is none. Raises `SetupError` when it is unusable."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_master_key(path)
    master = path.read_bytes()
    if len(master) != MASTER_BYTES:
        raise SetupError(
            f"The key in {path} is damaged: access keys of S3 cannot be opened.",
            hint="Bring it back from a backup; or delete it, and make new access keys: `tenure key create`.",
        )
    path.chmod(0o600)  # a backup that was copied back may have come with other rights
    return master


def _make_master_key(path: Path) -> None:
    """Whole, or not at all; one that another server made meanwhile stays."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(MASTER_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(made)
    finally:
        made.unlink()


class KeyStore:
    """Rows in, rows out; no other module names the tables. All raise `ServerUnreachable` while PostgreSQL is away."""

    def __init__(self, database: ControlDatabase, master: bytes) -> None:
        self._database = database
        self._cipher = AESGCM(master)
        self._revoked: set[str] = set()
        self._generations: dict[int, int] = {}

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
        """A new key and its secret, which nobody is told again. `agent` is the agent's number for an office's key: the key ends
        with the agent. Raises `InvalidArgument`, `Conflict` when there are too many."""
        buckets = check_buckets(buckets or {})
        if len(await self.list(principal)) >= KEYS_MAX:
            raise Conflict(f"There are {KEYS_MAX} keys of {principal} already.", hint="Revoke one: `tenure key list`.")
        key_id = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(ID_CHARS - len(PREFIX)))
        secret = secrets.token_urlsafe(SECRET_BYTES)
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, secret.encode(), _bound_to(key_id, str(principal), agent))
        row = await self._database.fetch_one(
            "INSERT INTO s3_keys (id, principal, agent, sealed, buckets, comment, created_by, expires_at) "
            f"VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING {_COLUMNS}",
            (key_id, str(principal), agent, sealed, Jsonb(dict(buckets)), comment, str(by), expires_at),
        )
        assert row is not None
        return _key(row), secret

    async def list(self, principal: Principal | None = None) -> Sequence[AccessKey]:
        """The oldest first; of everybody when no principal is named."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM s3_keys WHERE %s::text IS NULL OR principal = %s ORDER BY created_at, id",
            (str(principal) if principal else None, str(principal)),
        )
        return [_key(row) for row in rows]

    async def revoke(self, key_id: str) -> AccessKey:
        """The one that was. What is being sent with it is not stored. Raises `NotFound`."""
        row = await self._database.fetch_one(f"DELETE FROM s3_keys WHERE id = %s RETURNING {_COLUMNS}", (key_id,))
        if row is None:
            raise NotFound(f"There is no access key {key_id[:80]!r}.", hint="`tenure key list` shows those there are.")
        self._revoked.add(key_id)
        return _key(row)

    def is_revoked(self, key_id: str) -> bool:
        """Whether it was revoked since this server started. For requests that had begun before."""
        return key_id in self._revoked

    async def find(self, key_id: str) -> tuple[AccessKey, str] | None:
        """The key and its secret; None when there is none, when it has expired, and when its secret does not open."""
        row = await self._database.fetch_one(
            f"SELECT {_COLUMNS}, sealed FROM s3_keys WHERE id = %s AND (expires_at IS NULL OR expires_at > now())",
            (key_id,),
        )
        if row is None:
            return None
        key, sealed = _key(row), bytes(row["sealed"])
        try:
            opened = self._cipher.decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound_to(key.id, row["principal"], key.agent)
            )
        except InvalidTag:
            log.error("the access key %s does not open: TENURE_HOME and the database do not belong together", key.id)
            return None
        return key, opened.decode()

    async def used(self, key: AccessKey) -> None:
        """It signed something just now."""
        if key.last_used_at is None or datetime.now(UTC) - key.last_used_at > USED_EVERY:
            await self._database.execute("UPDATE s3_keys SET last_used_at = clock_timestamp() WHERE id = %s", (key.id,))

    # --- generations of short-lived keys ---------------------------------------------------------------------------
    async def generation(self, agent: int) -> int | None:
        """Of the keys that an office is lent now; None for an agent that is no more, or was never lent one."""
        row = await self._database.fetch_one("SELECT generation FROM s3_generations WHERE agent = %s", (agent,))
        return None if row is None else row["generation"]

    async def begin_generation(self, agent: int) -> int:
        """The generation, the first one when there is none."""
        await self._database.execute(
            "INSERT INTO s3_generations (agent) VALUES (%s) ON CONFLICT (agent) DO NOTHING", (agent,)
        )
        found = await self.generation(agent)
        if found is None:
            raise NotFound("The agent was deleted meanwhile.")
        return found

    async def end_generation(self, agent: int) -> None:
        """Short-lived keys and presigned addresses made so far are worth nothing from now on."""
        row = await self._database.fetch_one(
            "INSERT INTO s3_generations (agent, generation) VALUES (%s, 2) "
            "ON CONFLICT (agent) DO UPDATE SET generation = s3_generations.generation + 1 RETURNING generation",
            (agent,),
        )
        assert row is not None
        self._generations[agent] = row["generation"]

    def has_ended(self, agent: int, generation: int) -> bool:
        """Whether the generation was ended since this server started. For requests that had begun before."""
        return generation < self._generations.get(agent, 0)


def check_buckets(buckets: Mapping[str, str]) -> Mapping[str, str]:
    """Levels by bucket. Raises `InvalidName`, `InvalidArgument`."""
    if len(buckets) > BUCKETS_MAX:
        raise InvalidArgument(f"A key is for at most {BUCKETS_MAX} buckets.")
    for name, level in buckets.items():
        check_bucket(name)
        if level not in LEVELS["bucket"]:
            raise InvalidArgument(f"{level[:40]!r} is not a level.", hint=f"One of: {', '.join(LEVELS['bucket'])}.")
    return buckets


def _bound_to(key_id: str, principal: str, agent: int | None) -> bytes:
    return f"tenure access key\n{key_id}\n{principal}\n{agent}".encode()


def _key(row: Mapping[str, Any]) -> AccessKey:
    return AccessKey(
        row["id"],
        principal_from(row["principal"]),
        row["agent"],
        principal_from(row["created_by"]),
        row["created_at"],
        row["buckets"],
        row["comment"],
        row["expires_at"],
        row["last_used_at"],
    )
