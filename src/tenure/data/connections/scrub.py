"""Takes a secret out of what comes back: an API that repeats what it was sent shall not tell the office. Pure.

Every way in which the credential went out is looked for, and overwritten by as many asterisks: lengths stay true.
"""

from __future__ import annotations

from collections.abc import Sequence

SECRET_BYTES_MIN = 4
"""A shorter one is no secret, and would be found everywhere."""


class Scrubber:
    """Of one stream: `feed` returns what can be passed on already, `rest` what was held back at the end. Held back is only what
    may be the beginning of a secret, so that a stream of events is not held up."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = sorted({one for one in secrets if len(one) >= SECRET_BYTES_MIN}, key=len, reverse=True)
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        text = self.scrub(self._held + data)
        held = max((_begins(text, secret) for secret in self._secrets), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> bytes:
        held, self._held = self._held, b""
        return held

    def scrub(self, text: bytes) -> bytes:
        """`text` as a whole."""
        for secret in self._secrets:
            text = text.replace(secret, b"*" * len(secret))
        return text


def _begins(text: bytes, secret: bytes) -> int:
    """How many bytes at the end of `text` are the beginning of `secret`, which is not in it."""
    longest = min(len(text), len(secret) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(secret[:n])), 0)
