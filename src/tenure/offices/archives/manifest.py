"""What an archive says of the office in it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from tenure.errors import ArchiveError, TenureError
from tenure.names import check_name
from tenure.offices.models import Limits

MANIFEST = "tenure/manifest.json"
JOURNAL = "tenure/journal.jsonl"
END = "tenure/end.json"
MANIFEST_BYTES_MAX = 1024 * 1024
JOURNAL_BYTES_MAX = 256 * 1024 * 1024
END_BYTES_MAX = 4096
EGRESS_MAX = 1000
TEXT_CHARS_MAX = 300
LEAST, MOST = Limits(0.01, 128, 0.1, 32), Limits(256, 1024 * 1024, 64 * 1024, 1_000_000)
"""What an office's limits can be at all."""


@dataclass(frozen=True)
class Manifest:
    id: str
    base: str | None
    agent: str
    created_at: str
    """When the office was as in the archive; ISO 8601."""
    version: str
    """Of Tenure."""
    driver: str
    """Of the volume that it came from; any other takes it."""
    image: str
    limits: Limits
    egress: list[str] = field(default_factory=list[str])
    postgres: str = ""
    """Major version of the database's files; empty for an office without."""
    volume_bytes: int = 0
    """What the office takes on a disk, about."""
    runs: dict[str, int] = field(default_factory=dict[str, int])
    """How far the journal of each run that was not over had come."""


def to_bytes(manifest: Manifest) -> bytes:
    return json.dumps(asdict(manifest), indent=1).encode()


def from_bytes(data: bytes) -> Manifest:
    """Raises `ArchiveError` for anything that no export writes."""
    try:
        facts: Any = json.loads(data)
        facts = cast("dict[str, Any]", facts)
        limits = Limits(**facts.pop("limits"))
        manifest = Manifest(limits=limits, **facts)
        _check(manifest)
    except (ValueError, TypeError, AttributeError, KeyError, AssertionError, RecursionError, TenureError) as error:
        raise ArchiveError(
            "The manifest of the archive is damaged, or of a newer version of Tenure.", hint="Try a newer version."
        ) from error
    return manifest


def _check(manifest: Manifest) -> None:
    check_name(manifest.agent)
    for text in (
        manifest.id,
        manifest.created_at,
        manifest.version,
        manifest.driver,
        manifest.image,
        manifest.postgres,
    ):
        assert isinstance(text, str)
        assert len(text) <= TEXT_CHARS_MAX
        assert text.isprintable()
    assert "/" not in manifest.image
    assert manifest.image not in ("", ".", "..")
    assert manifest.base is None or isinstance(manifest.base, str)
    assert isinstance(manifest.volume_bytes, int)
    assert 0 <= manifest.volume_bytes < 2**62
    assert isinstance(manifest.egress, list)
    assert len(manifest.egress) <= EGRESS_MAX
    assert all(isinstance(entry, str) and len(entry) <= TEXT_CHARS_MAX for entry in manifest.egress)
    assert isinstance(manifest.runs, dict)
    for name, value in vars(manifest.limits).items():
        assert isinstance(value, int | float)
        assert not isinstance(value, bool)
        assert math.isfinite(value)
        assert getattr(LEAST, name) <= value <= getattr(MOST, name)
