"""What became of an office's files and objects from one snapshot to another, told by names and metadata.

Both trees are copies: nobody moves anything in them while they are walked, and no link is followed. Contents are not
read: a file counts as changed when its kind, size, owner, mode or time of change differ.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

from tenure.data.tables import DatabaseDiff

ENTRIES_MAX = 10_000
"""Shown; all are counted."""
OBJECT_NAME = "user.tenure.name"
OBJECT_VERSIONS = ".versions"
ROOTS = (("file", "rootfs"), ("object", "objects"))


@dataclass(frozen=True)
class DiffEntry:
    kind: str
    """ "file" (also a directory or a link) or "object"."""
    path: str
    """As seen in the office; of an object bucket/name."""
    change: str
    """ "added", "removed" or "changed"."""
    size_bytes: int
    """Afterwards; of what was removed, before."""


@dataclass
class Diff:
    entries: list[DiffEntry] = field(default_factory=list[DiffEntry])
    """In order of paths below each directory, at most `ENTRIES_MAX`."""
    added: int = 0
    removed: int = 0
    changed: int = 0
    truncated: bool = False
    database: DatabaseDiff | None = None
    """None when tables were not asked for."""


def compare(before: Path, after: Path, entries_max: int = ENTRIES_MAX) -> Diff:
    """The differences between two volumes. Blocks: about a second for each 100,000 files."""
    found, counts = Diff(), Counter[str]()
    for kind, root in ROOTS:
        for path, old, new in _differences(before / root, after / root):
            now = old if new is None else new
            assert now is not None
            tree = (before if new is None else after) / root
            shown = "/" + path if kind == "file" else _object_name(tree, path)
            if shown is None:
                continue
            change = "added" if old is None else "removed" if new is None else "changed"
            counts[change] += 1
            if len(found.entries) < entries_max:
                found.entries.append(DiffEntry(kind, _printable(shown), change, now.st_size))
            else:
                found.truncated = True
    found.added, found.removed, found.changed = counts["added"], counts["removed"], counts["changed"]
    return found


def _differences(before: Path, after: Path) -> Generator[tuple[str, os.stat_result | None, os.stat_result | None]]:
    """(path below the root, then, now) of all that differs; of what is below a new or removed directory, too."""
    # With the sides on which each is a real directory: only there what is below is looked at, so no link is followed.
    open_directories = [("", True, True)]
    while open_directories:
        directory, was, is_now = open_directories.pop()
        then = _listing(before / directory) if was else {}
        now = _listing(after / directory) if is_now else {}
        below: list[tuple[str, bool, bool]] = []
        for name in sorted(then.keys() | now.keys()):
            path, old, new = os.path.join(directory, name), then.get(name), now.get(name)
            if old is None or new is None or _facts(old) != _facts(new):
                yield path, old, new
            directories = (_is_directory(old), _is_directory(new))
            if any(directories):
                below.append((path, *directories))
        open_directories += reversed(below)


def _is_directory(status: os.stat_result | None) -> bool:
    return status is not None and stat.S_ISDIR(status.st_mode)


def _listing(directory: Path) -> dict[str, os.stat_result]:
    """What is in a directory; nothing when it is missing, or its path is longer than the kernel takes."""
    try:
        with os.scandir(directory) as entries:
            return {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    except OSError:
        return {}


def _facts(status: os.stat_result) -> tuple[int, ...]:
    if stat.S_ISDIR(status.st_mode):  # its time and size change with what is in it
        return (status.st_mode, status.st_uid, status.st_gid)
    return (status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)


def _object_name(root: Path, path: str) -> str | None:
    """bucket/name of an object's file, of an older version with its id; None for what is no object."""
    bucket, _, file = path.partition("/")
    if bucket == OBJECT_VERSIONS and path.count("/") == 3:
        bucket, file = path.split("/")[1::2]
        name = _read_name(root / path)
        return None if name is None else f"{bucket}/{name}?versionId={file}"
    if not file or bucket.startswith("."):
        return None
    name = _read_name(root / path)
    return None if name is None else f"{bucket}/{name}"


def _read_name(path: Path) -> str | None:
    try:
        return os.fsdecode(os.getxattr(path, OBJECT_NAME, follow_symlinks=False))
    except OSError:
        return None


def _printable(path: str) -> str:
    """Linux names are bytes; JSON has only text."""
    return os.fsencode(path).decode("utf-8", "replace")
