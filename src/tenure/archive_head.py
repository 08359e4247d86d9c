"""The head of an archive: what may be known without a key, at the front of the file.

    head        one skippable frame of zstd: JSON, so that `zstd -d | tar -t` reads an archive that is not encrypted
    content     one zstd frame of a tar stream (`tenure.offices.archives.members`), encrypted when the head says so

The head is not secret, and with a key not to be changed: the key of the content depends on each of its bytes.
"""

from __future__ import annotations

import json
import re
import secrets
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, cast

from tenure.errors import ArchiveError
from tenure.names import check_name

FORMAT = "tenure-office-1"
SUFFIX = ".tenure"
HEAD_BYTES_MAX = 4096
_FRAME = struct.Struct("<II")
_SKIPPABLE = 0x184D2A5E
_ID_BYTES = 8
_ID = re.compile(r"exp_[0-9a-f]{16}\Z")
_HEX = re.compile(r"[0-9a-f]{1,128}\Z")
NOT_ONE = "It is not an archive of `tenure agent export`."


@dataclass(frozen=True)
class Head:
    """`base` is the id of the archive that this one continues; None for one that is whole by itself."""

    id: str
    agent: str
    created_at: datetime
    base: str | None = None
    key_id: str | None = None
    """Which key opens it; None for an archive that is not encrypted."""
    salt: str | None = None
    """Hexadecimal; makes the key of this archive differ from those of others."""
    proof: str | None = None
    """Hexadecimal; tells the right key and an unchanged head before anything is read."""


def new_id() -> str:
    return f"exp_{secrets.token_hex(_ID_BYTES)}"


def is_id(text: str) -> bool:
    return _ID.match(text) is not None


def encode_head(head: Head) -> bytes:
    """The frame at the front of the file."""
    facts = {key: value for key, value in asdict(head).items() if value is not None}
    facts |= {"format": FORMAT, "created_at": head.created_at.isoformat()}
    body = json.dumps(facts, sort_keys=True).encode()
    return _FRAME.pack(_SKIPPABLE, len(body)) + body


def read_head(read: Callable[[int], bytes]) -> Head:
    """From `read(n)`, which returns less than `n` bytes at the end only. Raises `ArchiveError`."""
    front = read(_FRAME.size)
    if len(front) < _FRAME.size:
        raise ArchiveError(f"The file ends after {len(front)} bytes.", hint=NOT_ONE)
    magic, length = _FRAME.unpack(front)
    if magic != _SKIPPABLE or length > HEAD_BYTES_MAX:
        raise ArchiveError("The file does not begin as an archive of an office does.", hint=NOT_ONE)
    body = read(length)
    if len(body) < length:
        raise ArchiveError("The file ends within its head.", hint="Was it copied whole?")
    return _decode(body)


def _decode(body: bytes) -> Head:
    try:
        facts: Any = json.loads(body)
        assert isinstance(facts, dict)
        facts = cast("dict[str, Any]", facts)
        if facts.pop("format", None) != FORMAT:
            raise ArchiveError(
                "The archive is of a format that this version of Tenure does not know.", hint="Use a newer version."
            )
        created = datetime.fromisoformat(facts.pop("created_at"))
        head = Head(created_at=created.astimezone(UTC), **facts)
        check_name(head.agent)
        assert is_id(head.id)
        assert head.base is None or is_id(head.base)
        for text in (head.key_id, head.salt, head.proof):
            assert text is None or _HEX.match(text)
    except ArchiveError:
        raise
    except Exception as error:
        raise ArchiveError("The head of the archive is damaged.", hint="Was it copied whole?") from error
    return head


# --- several archives that belong together --------------------------------------------------------------------------
def put_in_order(ids: Sequence[tuple[str, str | None]]) -> list[int]:
    """Which of the archives (id, base) comes when: the whole one first, each after what it continues. Raises `ArchiveError`
    unless they are one chain."""
    by_base = {base: place for place, (_, base) in enumerate(ids)}
    if len(by_base) != len(ids):
        raise ArchiveError("Two of the archives continue the same one.", hint="Give only those of one line.")
    order: list[int] = []
    following = by_base.get(None)
    while following is not None and len(order) < len(ids):
        order.append(following)
        following = by_base.get(ids[following][0])
    if len(order) < len(ids):
        left = next(one for place, one in enumerate(ids) if place not in order)
        raise wrong_base(left[0], left[1], ids[order[-1]][0] if order else None)
    return order


def wrong_base(archive: str, base: str | None, before: str | None) -> ArchiveError:
    if base is None:
        return ArchiveError(
            f"{archive} is whole by itself and continues nothing.", hint="Import it alone, or leave it out of the list."
        )
    if before is None:
        return ArchiveError(
            f"{archive} holds only what changed since {base}, which is missing.",
            hint="Give all archives from the whole one on with --base, or keep them in one directory.",
        )
    return ArchiveError(f"{archive} continues {base}, not {before}.", hint="Give the archives that belong together.")
