"""Encryption of archives at rest: AES-256-GCM in chunks, so that each is checked before any of it is used.

The construction is STREAM, as in age: the nonce of a chunk is its number and whether it is the last, so chunks that are
left out, repeated, put in another order or cut off at the end are refused. Each archive has a key of its own, derived from
the caller's key, a random salt and the head of the archive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tenure.archive_head import Head, encode_head
from tenure.errors import ArchiveError
from tenure.export_keys import KEY_BYTES, KEY_ENVIRONMENT, Key

CHUNK_BYTES = 256 * 1024
TAG_BYTES = 16
_SALT_BYTES = 32
_CHUNKS_MAX = 2**40
DAMAGED = "Fetch the archive again, or take another one: this one was changed, or is damaged."


def sealed_head(head: Head, key: Key) -> Head:
    """`head` for an archive that is encrypted with `key`."""
    bare = dataclasses.replace(head, key_id=key.id, salt=secrets.token_hex(_SALT_BYTES), proof=None)
    return dataclasses.replace(bare, proof=_proof(bare, key))


def check_key(head: Head, key: Key | None) -> None:
    """Raises `ArchiveError` unless `key` opens the archive, or it needs none."""
    if head.key_id is None:
        return
    if key is None:
        raise ArchiveError(
            f"The archive {head.id} is encrypted with the key {head.key_id}, and no key was given.",
            hint=f"Name its file with --key-file, or put the key into {KEY_ENVIRONMENT}.",
        )
    if key.id != head.key_id:
        raise ArchiveError(
            f"The key is the wrong one: the archive {head.id} needs {head.key_id}, and this is {key.id}.",
            hint="`tenure agent export-key --show FILE` tells a key's id.",
        )
    bare = dataclasses.replace(head, proof=None)
    if head.salt is None or head.proof is None or not hmac.compare_digest(_proof(bare, key), head.proof):
        raise ArchiveError("The head of the archive was changed.", hint=DAMAGED)


def _derive(head: Head, key: Key, use: bytes) -> bytes:
    # Encoded anew: an encoding has one head, so nobody changes a byte of it without changing this.
    info = use + hashlib.sha256(encode_head(dataclasses.replace(head, proof=None))).digest()
    salt = bytes.fromhex(head.salt or "")
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(key.secret)


def _proof(head: Head, key: Key) -> str:
    return _derive(head, key, b"tenure export proof").hex()


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def seal(pieces: Iterable[bytes], head: Head, key: Key) -> Iterator[bytes]:
    """`pieces` encrypted, in chunks of `CHUNK_BYTES` and a last one that is shorter or as long."""
    cipher = AESGCM(_derive(head, key, b"tenure export content"))
    held, number = bytearray(), 0
    for piece in pieces:
        held += piece
        while len(held) > CHUNK_BYTES:  # one is held back: whether it is the last is known at the end only
            yield cipher.encrypt(_nonce(number, False), bytes(held[:CHUNK_BYTES]), None)
            del held[:CHUNK_BYTES]
            number += 1
    yield cipher.encrypt(_nonce(number, True), bytes(held), None)


def unseal(read: Callable[[int], bytes], head: Head, key: Key) -> Iterator[bytes]:
    """The content of an archive behind its head; each piece was checked. Raises `ArchiveError` for anything changed."""
    cipher = AESGCM(_derive(head, key, b"tenure export content"))
    size = CHUNK_BYTES + TAG_BYTES
    chunk = read(size)
    for number in range(_CHUNKS_MAX):
        following = read(size) if len(chunk) == size else b""
        last = not following
        try:
            yield cipher.decrypt(_nonce(number, last), chunk, None)
        except (InvalidTag, ValueError):
            raise ArchiveError(
                f"The archive {head.id} was changed or cut off: chunk {number} does not fit its key.", hint=DAMAGED
            ) from None
        if last:
            return
        chunk = following
