"""Public keys of principals: what is accepted as one, and the control database's table `ssh_keys`."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncssh
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from psycopg.errors import UniqueViolation

from tenure.database.connect import ControlDatabase
from tenure.errors import AlreadyExists, Conflict, InvalidArgument, NotFound

KEYS_MAX = 200
"""Per principal."""
TEXT_CHARS_MAX = 16 * 1024
COMMENT_CHARS_MAX = 200
RSA_BITS_MIN = 2048
ALGORITHMS = frozenset(
    {
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
        "ssh-rsa",
    }
)
HINT = "Give the public half, one line such as that of ~/.ssh/id_ed25519.pub (`ssh-keygen -t ed25519` makes a pair)."
_COLUMNS = "id, principal, fingerprint, public_key, comment, created_at, last_used_at"


@dataclass(frozen=True)
class PublicKey:
    """A key as it was checked: `text` is "algorithm base64", without the comment."""

    text: str
    fingerprint: str
    comment: str


@dataclass(frozen=True)
class SshKey:
    """A row: a key, and the principal (as `str(Principal)`) that it stands for."""

    id: str
    principal: str
    fingerprint: str
    public_key: str
    comment: str
    created_at: datetime
    last_used_at: datetime | None = None

    @property
    def algorithm(self) -> str:
        return self.public_key.partition(" ")[0]


def read_public_key(text: str) -> PublicKey:
    """The one key in `text`, a line as of a `.pub` file. Raises `InvalidArgument`; never repeats what it was given, which may be
    a private key."""
    if "PRIVATE KEY" in text:
        raise InvalidArgument(
            "This is a private key: it must not leave your machine. Nothing was kept of it.", hint=HINT
        )
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1 or len(text) > TEXT_CHARS_MAX:
        raise InvalidArgument("This is not one public key.", hint=HINT)
    algorithm, _, rest = lines[0].strip().partition(" ")
    if algorithm not in ALGORITHMS:
        raise InvalidArgument(
            "This does not begin with an algorithm that the gateway takes, such as ssh-ed25519. "
            "Options before the key (as in authorized_keys) and certificates are not possible.",
            hint=HINT,
        )
    data, _, comment = rest.strip().partition(" ")
    try:
        key = asyncssh.import_public_key(f"{algorithm} {data}")
    except (asyncssh.KeyImportError, ValueError):
        raise InvalidArgument("This is not a valid public key.", hint=HINT) from None
    public = key.pyca_key if algorithm == "ssh-rsa" else None
    if isinstance(public, RSAPublicKey) and public.key_size < RSA_BITS_MIN:
        raise InvalidArgument(
            f"An RSA key of {public.key_size} bits is too short; {RSA_BITS_MIN} are needed.", hint=HINT
        )
    shown = "".join(c for c in comment.strip() if c.isprintable())[:COMMENT_CHARS_MAX]
    return PublicKey(f"{algorithm} {data}", key.get_fingerprint(), shown)


class SshKeyStore:
    """Rows in, rows out; no other module names the table. Raises `ServerUnreachable` while PostgreSQL is away."""

    def __init__(self, database: ControlDatabase) -> None:
        self._database = database

    async def add(self, principal: str, text: str, comment: str | None = None) -> SshKey:
        """Has the key in `text` stand for `principal` from now on. Raises `InvalidArgument`, `AlreadyExists`, `Conflict`."""
        key = read_public_key(text)
        if len(await self.list(principal)) >= KEYS_MAX:
            raise Conflict(
                f"There are {KEYS_MAX} keys of {principal} already.", hint="Remove one: `tenure ssh-key list`."
            )
        try:
            row = await self._database.fetch_one(
                "INSERT INTO ssh_keys (id, principal, fingerprint, public_key, comment) VALUES (%s, %s, %s, %s, %s) "
                f"RETURNING {_COLUMNS}",
                (
                    f"key_{secrets.token_hex(6)}",
                    principal,
                    key.fingerprint,
                    key.text,
                    key.comment if comment is None else comment,
                ),
            )
        except UniqueViolation:
            raise AlreadyExists("This key is there already.", hint="`tenure ssh-key list` shows it.") from None
        assert row is not None
        return _key(row)

    async def list(self, principal: str) -> list[SshKey]:
        """The oldest first."""
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM ssh_keys WHERE principal = %s ORDER BY created_at, id", (principal,)
        )
        return [_key(row) for row in rows]

    async def remove(self, principal: str, wanted: str) -> SshKey:
        """The one that was removed: `wanted` is an id or a fingerprint. Raises `NotFound`."""
        row = await self._database.fetch_one(
            f"DELETE FROM ssh_keys WHERE principal = %s AND (id = %s OR fingerprint = %s) RETURNING {_COLUMNS}",
            (principal, wanted, wanted),
        )
        if row is None:
            raise NotFound(f"There is no SSH key {wanted[:80]!r}.", hint="`tenure ssh-key list` shows those there are.")
        return _key(row)

    async def find(self, fingerprint: str) -> SshKey | None:
        """Whose key it is; None when it is nobody's."""
        row = await self._database.fetch_one(f"SELECT {_COLUMNS} FROM ssh_keys WHERE fingerprint = %s", (fingerprint,))
        return None if row is None else _key(row)

    async def used(self, key_id: str) -> bool:
        """Somebody came in with it just now. False when it was removed meanwhile."""
        noted = await self._database.execute(
            "UPDATE ssh_keys SET last_used_at = clock_timestamp() WHERE id = %s", (key_id,)
        )
        return noted > 0


def _key(row: dict[str, Any]) -> SshKey:
    return SshKey(**row)
