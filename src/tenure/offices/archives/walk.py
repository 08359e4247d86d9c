"""Walks the tree of a volume's copy, which nobody changes meanwhile. No link is followed: each name is opened from the open
directory that it is in.

The order is that of names as bytes, each directory before what is in it; `order` sorts paths in the same way.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tenure.offices.archives.members import PATH_BYTES_MAX, PAX_BYTES_MAX, Kind

ROOTS = ("objects", "postgres", "postgres.secret", "rootfs")
"""What of a volume travels; the rest (`office.json`, what a driver notes) is the machine's."""
XATTRS_KEPT = ("user.", "trusted.", "security.capability", "system.posix_acl_")
XATTR_BYTES_MAX = PAX_BYTES_MAX // 4
DEVICES_KEPT = frozenset({(0, 0), (1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)})
"""Character devices that give away nothing: null, zero, full, random, urandom, tty, console, ptmx; 0:0 is an overlay's
mark for a removed file."""
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFIFO: Kind.FIFO,
}


@dataclass(frozen=True)
class Entry:
    """One name. `directory` is the open directory that it is in, valid until the next entry is asked for."""

    path: str
    name: str
    kind: Kind
    status: os.stat_result
    directory: int

    def open(self) -> int:
        """A regular file, for reading."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME
        return os.open(self.name, flags, dir_fd=self.directory)

    def target(self) -> str:
        return os.readlink(self.name, dir_fd=self.directory)

    def xattrs(self) -> dict[str, bytes]:
        """Those that travel, of at most `XATTR_BYTES_MAX` together."""
        place = f"/proc/self/fd/{self.directory}/{self.name}"
        found: dict[str, bytes] = {}
        size = 0
        for name in sorted(os.listxattr(place, follow_symlinks=False)):
            if name.startswith(XATTRS_KEPT):
                value = os.getxattr(place, name, follow_symlinks=False)
                size += len(name) + len(value)
                if size > XATTR_BYTES_MAX:
                    break
                found[name] = value
        return found


def order(path: str) -> bytes:
    return os.fsencode(path).replace(b"/", b"\0")


class Walk:
    """Iterate once. `left_out` counts what cannot travel: sockets, devices that are not harmless, names that are too long."""

    def __init__(self, volume: Path) -> None:
        self._volume = volume
        self.left_out = 0

    def __iter__(self) -> Iterator[Entry]:
        with ExitStack() as stack:
            top = os.open(self._volume, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, top)
            device = os.fstat(top).st_dev
            # Open directories on the way down: (descriptor, path of it with its slash, names still to come, the last first).
            way: list[tuple[int, str, list[str]]] = [(top, "", list(reversed(ROOTS)))]
            stack.callback(lambda: [os.close(descriptor) for descriptor, _, _ in way[1:]])
            while way:
                directory, prefix, names = way[-1]
                if not names:
                    way.pop()
                    if way:
                        os.close(directory)
                    continue
                entry = self._entry(directory, prefix, names.pop(), device)
                if entry is None:
                    continue
                yield entry
                if entry.kind is Kind.DIRECTORY:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    below = os.open(entry.name, flags, dir_fd=directory)
                    way.append((below, entry.path + "/", sorted(os.listdir(below), key=os.fsencode, reverse=True)))

    def _entry(self, directory: int, prefix: str, name: str, device: int) -> Entry | None:
        try:
            status = os.lstat(name, dir_fd=directory)
        except FileNotFoundError:
            return None  # a volume need not have each of the roots
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        path = prefix + name
        if (
            kind is None
            or (kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE) and not is_harmless(kind, device_of(status)))
            or status.st_dev != device
            or len(os.fsencode(path)) > PATH_BYTES_MAX
        ):
            self.left_out += 1
            return None
        return Entry(path, name, kind, status, directory)


def device_of(status: os.stat_result) -> tuple[int, int]:
    return os.major(status.st_rdev), os.minor(status.st_rdev)


def is_harmless(kind: Kind, device: tuple[int, int]) -> bool:
    """Whether a device may travel: one of the others could be a disk of the machine that it comes to."""
    return kind is Kind.CHARACTER_DEVICE and device in DEVICES_KEPT
