"""Short-lived access keys, which are kept nowhere: id and secret follow from their token, and it from a key of TENURE_HOME.

An office is lent one for an hour at a time; it works through that office's own door only, so what leaks of it, or lies in a
snapshot or a fork, opens nothing. A presigned address is signed with one of its own, which is good for addresses and nothing
else. All of an agent's end when its generation does, or the agent. Pure: clock, generation and randomness are arguments.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from tenure.data.s3.errors import S3Error
from tenure.data.s3.signature import EXPIRES_S_MAX, Keys
from tenure.identity.authorize import Principal, PrincipalKind

LENT_FOR = timedelta(hours=1)
ADDRESS_FOR_MAX = timedelta(seconds=EXPIRES_S_MAX)
PREFIX = "TNS"
ID_CHARS = 20
_TOKEN = re.compile(
    r"t1\.(office|address)\.(\d{1,10})\.([a-z0-9-]{1,100})\.(\d{1,10})\.(\d{1,12})\.([0-9a-f]{16})\.([\w-]{43})\Z",
    re.ASCII,
)


class Use(StrEnum):
    OFFICE = "office"
    ADDRESS = "address"


@dataclass(frozen=True)
class Session:
    """What a token says. `agent` is the agent's number, `generation` counts how often its keys were ended."""

    use: Use
    agent: int
    name: str
    generation: int
    expires_at: datetime
    nonce: str

    @property
    def principal(self) -> Principal:
        return Principal(PrincipalKind.OFFICE, self.name)

    def __str__(self) -> str:
        at = int(self.expires_at.timestamp())
        return f"t1.{self.use}.{self.agent}.{self.name}.{self.generation}.{at}.{self.nonce}"


class Sessions:
    """Makes and reads tokens with keys that follow from `master`."""

    def __init__(self, master: bytes) -> None:
        self._key = hmac.new(master, b"tenure short-lived access keys", hashlib.sha256).digest()

    def keys_of(self, session: Session) -> Keys:
        """The same ones for the same session."""
        text = str(session)
        key_id = PREFIX + base64.b32encode(self._derive("id", text)).decode()[: ID_CHARS - len(PREFIX)]
        return Keys(key_id, _text(self._derive("secret", text)), f"{text}.{_text(self._derive('token', text))}")

    def read(self, token: str, key_id: str, now: datetime) -> tuple[Session, Keys]:
        """Whose the token is, and with what it signs. Raises `S3Error` for one that we did not make, that belongs to another key
        id or has expired. Its generation is for the caller to compare."""
        match = _TOKEN.match(token)
        if match is None:
            raise S3Error("InvalidToken")
        use, agent, name, generation, at, nonce, _ = match.groups()
        session = Session(Use(use), int(agent), name, int(generation), datetime.fromtimestamp(int(at), UTC), nonce)
        keys = self.keys_of(session)
        if not hmac.compare_digest(keys.token, token):
            raise S3Error("InvalidToken")
        if not hmac.compare_digest(keys.key_id, key_id):
            raise S3Error("InvalidToken", "The token belongs to another access key.")
        if now >= session.expires_at:
            raise S3Error("ExpiredToken")
        return session, keys

    def _derive(self, what: str, text: str) -> bytes:
        return hmac.new(self._key, f"{what}\n{text}".encode(), hashlib.sha256).digest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
