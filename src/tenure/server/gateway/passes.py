"""Who may see a preview: a ticket, good once, is given for a cookie, good for hours and for one preview's host only.

The API's token never goes to a preview: what an office serves is JavaScript of an agent that may have been taken over. Pure
but for what it remembers; the clock is passed in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from time import time

TICKET_S = 120.0
TICKETS_MAX = 1000
"""Not yet used. The oldest goes for a new one."""
COOKIE_S = 8 * 3600.0
COOKIE_NAME = "tenure_preview"
COOKIE_CHARS_MAX = 512
COOKIES_TRIED_MAX = 16
_VERSION = "1"


@dataclass(frozen=True)
class Place:
    """What a preview shows: a port of an agent's office."""

    agent: str
    port: int


@dataclass(frozen=True)
class Ticket:
    secret: str
    expires_at: datetime


class Passes:
    """Tickets and cookies. A ticket is kept as its digest only, in memory; a cookie says itself what it is good for, under a
    signature, so that it outlives the server. The key is made from the owner's token: a new token ends all cookies."""

    def __init__(self, owner_token: str, clock: Callable[[], float] = time) -> None:
        self._key = hmac.digest(owner_token.encode(), b"tenure preview cookies", "sha256")
        self._clock = clock
        self._tickets: dict[bytes, tuple[Place, str, float]] = {}

    # --- tickets -----------------------------------------------------------------------------------------------------------
    def issue(self, place: Place, principal: str) -> Ticket:
        """Good once, for `TICKET_S`, for `place` only, as `principal`."""
        secret, expires_s = secrets.token_urlsafe(32), self._clock() + TICKET_S
        while len(self._tickets) >= TICKETS_MAX:
            del self._tickets[next(iter(self._tickets))]
        self._tickets[_digest(secret)] = (place, principal, expires_s)
        return Ticket(secret, datetime.fromtimestamp(expires_s, UTC))

    def redeem(self, secret: str, place: Place) -> str | None:
        """The cookie's value that the ticket stands for; None for one that is unknown, used, too old or of another place. One
        that is shown at the wrong place is used up, too."""
        found = self._tickets.pop(_digest(secret), None)
        if found is None or found[0] != place or found[2] < self._clock():
            return None
        return self._cookie(place, found[1], int(self._clock() + COOKIE_S))

    # --- cookies -----------------------------------------------------------------------------------------------------------
    def _cookie(self, place: Place, principal: str, expires_s: int) -> str:
        body = f"{_VERSION}.{expires_s}.{principal}"
        return f"{body}.{self._signature(body, place)}"

    def _signature(self, body: str, place: Place) -> str:
        signed = f"{place.agent}\n{place.port}\n{body}".encode("utf-8", "surrogateescape")
        return base64.urlsafe_b64encode(hmac.digest(self._key, signed, "sha256")).decode().rstrip("=")

    def principal(self, values: Iterable[str], place: Place) -> str | None:
        """Whom one of the cookie's values stands for at `place`, as `str(Principal)`; None when none is good. There may be
        several: a page may set cookies of this name, too, but not a good one."""
        for value in islice(values, COOKIES_TRIED_MAX):
            body, _, signature = value[:COOKIE_CHARS_MAX].rpartition(".")
            if not hmac.compare_digest(signature.encode("utf-8", "replace"), self._signature(body, place).encode()):
                continue
            _, expires_s, principal = body.split(".", 2)  # ours, since it is signed
            if int(expires_s) > self._clock():
                return principal
        return None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
