"""SCRAM-SHA-256 (RFC 5802, RFC 7677), the client's half, as PostgreSQL speaks it. Pure: the nonce is an argument.

The server has to prove that it knows the password, too: one that only pretends to be the database is found out here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import stringprep
import unicodedata
from dataclasses import dataclass

MECHANISM = "SCRAM-SHA-256"
ITERATIONS_MIN = 4096
"""RFC 7677's. With fewer, what a false server hears would be worth guessing at."""
ITERATIONS_MAX = 1_000_000
"""Some tenths of a second of a processor: a false server shall not have more."""
MESSAGE_BYTES_MAX = 4096
_GS2 = "n,,"


class ScramError(ValueError):
    """The server does not speak SCRAM as it should, or is not who knows the password."""


@dataclass(frozen=True)
class Exchange:
    """One login. `first` is sent first; then `answer` to what the server says, and `verify` what it says at the end."""

    password: str
    nonce: str

    @property
    def first(self) -> bytes:
        return (_GS2 + self._bare).encode()

    @property
    def _bare(self) -> str:
        return f"n=,r={self.nonce}"  # the name in the startup packet counts

    def answer(self, challenge: bytes) -> tuple[bytes, bytes]:
        """What to send, and what to give to `verify`. Takes as long as the server wants: call it in a thread."""
        text = _text(challenge)
        fields = _fields(text)
        try:
            nonce, salt, iterations = fields["r"], base64.b64decode(fields["s"], validate=True), int(fields["i"])
        except (KeyError, ValueError, binascii.Error):
            raise ScramError("it sent a malformed challenge") from None
        if "m" in fields or not nonce.startswith(self.nonce) or len(nonce) == len(self.nonce) or not salt:
            raise ScramError("it sent a malformed challenge")
        if not ITERATIONS_MIN <= iterations <= ITERATIONS_MAX:
            raise ScramError(f"it asks for {iterations} iterations; {ITERATIONS_MIN} to {ITERATIONS_MAX} are taken")
        final = f"c={base64.b64encode(_GS2.encode()).decode()},r={nonce}"
        signed = f"{self._bare},{text},{final}".encode()
        salted = hashlib.pbkdf2_hmac("sha256", prepare(self.password).encode(), salt, iterations)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        proof = bytes(one ^ other for one, other in zip(client_key, signature, strict=True))
        expected = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        return f"{final},p={base64.b64encode(proof).decode()}".encode(), expected

    def verify(self, said: bytes, expected: bytes) -> None:
        """Raises `ScramError` unless the server proved that it knows the password."""
        try:
            proof = base64.b64decode(_fields(_text(said))["v"], validate=True)
        except (KeyError, ValueError, binascii.Error):
            proof = b""
        if not hmac.compare_digest(proof, expected):
            raise ScramError("it could not prove that it knows the password")


def prepare(password: str) -> str:
    """SASLprep (RFC 4013); a password that it refuses stays as it is, as in PostgreSQL."""
    if password.isascii():
        return password
    kept = "".join(" " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c))
    mapped = unicodedata.ucd_3_2_0.normalize("NFKC", kept)
    prohibited = (
        stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4,
        stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8,
        stringprep.in_table_c9, stringprep.in_table_a1,
    )  # fmt: skip
    if not mapped or any(refuses(c) for c in mapped for refuses in prohibited):
        return password
    if any(stringprep.in_table_d1(c) for c in mapped):  # right to left
        first, last = stringprep.in_table_d1(mapped[0]), stringprep.in_table_d1(mapped[-1])
        if any(stringprep.in_table_d2(c) for c in mapped) or not (first and last):
            return password
    return mapped


def md5_answer(user: str, password: str, salt: bytes) -> bytes:
    """PostgreSQL's older way."""
    inner = hashlib.md5(password.encode() + user.encode(), usedforsecurity=False).hexdigest()
    return b"md5" + hashlib.md5(inner.encode() + salt, usedforsecurity=False).hexdigest().encode() + b"\0"


def _text(message: bytes) -> str:
    try:
        if len(message) <= MESSAGE_BYTES_MAX:
            return message.decode("ascii")
    except UnicodeDecodeError:
        pass
    raise ScramError("it sent a malformed message")


def _fields(text: str) -> dict[str, str]:
    return {part[0]: part[2:] for part in text.split(",") if part[1:2] == "="}
