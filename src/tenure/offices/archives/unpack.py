"""Makes a volume of archives. They may be hostile: whoever wrote one may know how it will be read.

Everything happens in a volume that nobody else sees or uses, and which goes when anything is wrong. Each name is opened from
the open directory that it is in and no link is followed, so nothing outside is reached by whatever a name says. The database
and the objects, which programs of the host read, hold plain files and directories only, and no file has names in two parts.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenure.archive_head import wrong_base
from tenure.errors import ArchiveError, DiskFull, VolumeError
from tenure.export_keys import Key
from tenure.offices.archives import manifest as m
from tenure.offices.archives.frames import Frames, RawRead
from tenure.offices.archives.manifest import Manifest
from tenure.offices.archives.members import Kind, Member, Members
from tenure.offices.archives.pack import LEFT_AT_HOME
from tenure.offices.archives.walk import ROOTS, XATTRS_KEPT, is_harmless

MEMBERS_MAX = 50_000_000
"""Per archive."""
ENTRY_BYTES = 512
"""What a name takes at least: so much is counted for each against what the archive may take."""
FREE_BYTES_MIN = 256 * 1024**2
"""What is left free of the disk in any case."""
FREE_CHECK_BYTES = 64 * 1024**2
_ID_MAX = 2**32 - 2
_PLAIN = ("objects", "postgres", "postgres.secret")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FOLLOW_NOTHING = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class _Level:
    """A directory on the way to where we write; it gets its time back when we leave."""

    name: str
    descriptor: int
    times: tuple[int, int]


class Unpacker:
    """One office: `apply` its archives, the whole one first. Then `close`."""

    def __init__(self, volume: Path, accept: Callable[[Manifest], int]) -> None:
        """`accept` gets the manifest of each archive before anything of it is written, and returns how many bytes may be; it
        raises when it is not to be."""
        self._accept = accept
        self._left_bytes = self._unchecked_bytes = 0
        top = os.open(volume, os.O_RDONLY | os.O_DIRECTORY | _FOLLOW_NOTHING)
        self._way = [_Level("", top, (0, 0))]
        self.manifest: Manifest | None = None
        self.journal = b""
        self.written_bytes = 0

    def close(self) -> None:
        while len(self._way) > 1:
            self._leave()
        if self._way:
            os.close(self._way.pop().descriptor)

    def apply(self, read: RawRead, key: Key | None) -> Manifest:
        """Reads one archive to its end. Raises `ArchiveError` for one that is not to be had here, `DiskFull`."""
        try:
            return self._apply(Frames(read, key))
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFull(
                    "There is no room here for the office.", hint="Free some, or import elsewhere."
                ) from error
            raise VolumeError(f"The office could not be written: {error.strerror}.") from error

    def _apply(self, frames: Frames) -> Manifest:
        reader = Members(frames.read_exactly)
        manifest = m.from_bytes(_document(reader, m.MANIFEST, m.MANIFEST_BYTES_MAX))
        head = frames.head
        if (manifest.id, manifest.base, manifest.agent) != (head.id, head.base, head.agent):
            raise ArchiveError("The head of the archive does not belong to its content.")
        before = self.manifest.id if self.manifest else None
        if manifest.base != before or (self.manifest and manifest.agent != self.manifest.agent):
            raise wrong_base(manifest.id, manifest.base, before)
        self._left_bytes = self._accept(manifest)
        self.journal = _document(reader, m.JOURNAL, m.JOURNAL_BYTES_MAX)
        count = 0
        while (member := reader.next()) is not None:
            if member.path == m.END:
                self._end(reader, member, count)
                break
            count += 1
            if count > MEMBERS_MAX:
                raise ArchiveError(f"The archive has more than {MEMBERS_MAX:,} entries.")
            self._spend(ENTRY_BYTES + sum(map(len, member.xattrs.values())))
            self._member(reader, member)
        else:
            raise ArchiveError("The archive has no end.")
        frames.finish()
        self.manifest = manifest
        return manifest

    def _end(self, reader: Members, member: Member, count: int) -> None:
        try:
            facts: Any = json.loads(_content(reader, member, m.END_BYTES_MAX))
        except (ValueError, RecursionError):
            facts = None
        if facts != {"members": count} or reader.next() is not None:
            raise ArchiveError("The archive does not have all that it says it has.")

    def _spend(self, count: int) -> None:
        """Before as many bytes are written."""
        self._left_bytes -= count
        self._unchecked_bytes += count
        if self._left_bytes < 0:
            raise ArchiveError(
                "The archive holds more than the disk limit of its office allows.", hint="It is no export of an office."
            )
        if self._unchecked_bytes > FREE_CHECK_BYTES:
            self._unchecked_bytes = 0
            room = os.fstatvfs(self._way[0].descriptor)
            if room.f_bavail * room.f_frsize < FREE_BYTES_MIN:
                raise DiskFull("There is no room here for the office.", hint="Free some, or import elsewhere.")
        self.written_bytes += count

    # --- the way to a name ------------------------------------------------------------------------------------------
    def _leave(self) -> None:
        level = self._way.pop()
        with contextlib.suppress(OSError):
            os.utime(level.descriptor, ns=level.times)
        os.close(level.descriptor)

    def _parent(self, parts: list[str], path: str) -> int:
        """The open directory in which the last of `parts` is."""
        names = parts[:-1]
        shared = 0
        while shared < min(len(names), len(self._way) - 1) and self._way[shared + 1].name == names[shared]:
            shared += 1
        while len(self._way) > shared + 1:
            self._leave()
        for name in names[shared:]:
            below = _open_directory(name, self._way[-1].descriptor, path)
            status = os.fstat(below)
            self._way.append(_Level(name, below, (status.st_atime_ns, status.st_mtime_ns)))
        return self._way[-1].descriptor

    # --- members ------------------------------------------------------------------------------------------------------
    def _member(self, reader: Members, member: Member) -> None:
        parts = check_path(member)
        if member.path in LEFT_AT_HOME:
            return
        if member.kind is Kind.GONE:
            with contextlib.suppress(_Missing):
                _remove_tree(parts[-1], self._parent(parts, member.path))
            return
        parent, name = self._parent(parts, member.path), parts[-1]
        if member.kind is Kind.DIRECTORY:
            self._directory(member, name, parent)
        elif member.kind is Kind.FILE:
            self._file(reader, member, name, parent)
        elif member.kind is Kind.HARD_LINK:
            self._hard_link(member, name, parent)
        else:
            _remove_tree(name, parent)
            if member.kind is Kind.SYMLINK:
                os.symlink(member.target, name, dir_fd=parent)
            elif member.kind is Kind.FIFO:
                os.mkfifo(name, 0o600, dir_fd=parent)
            else:
                os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(*member.device), dir_fd=parent)
            self._finish_by_name(member, name, parent)

    def _directory(self, member: Member, name: str, parent: int) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                _remove_tree(name, parent)
                os.mkdir(name, 0o700, dir_fd=parent)
        made = _open_directory(name, parent, member.path)
        try:
            _finish(made, member)
        finally:
            os.close(made)

    def _file(self, reader: Members, member: Member, name: str, parent: int) -> None:
        file = self._to_patch(name, parent) if member.patch else self._fresh(name, parent)
        try:
            os.ftruncate(file, member.size)
            for offset, length in [(0, member.size)] if member.segments is None else member.segments:
                at, end = offset, offset + length
                while at < end:
                    data = reader.take(min(1024 * 1024, end - at))
                    self._spend(len(data))
                    _write_all(file, data, at)
                    at += len(data)
            _finish(file, member)
        finally:
            os.close(file)

    def _fresh(self, name: str, parent: int) -> int:
        _remove_tree(name, parent)
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FOLLOW_NOTHING, 0o600, dir_fd=parent)

    def _to_patch(self, name: str, parent: int) -> int:
        try:
            file = os.open(name, os.O_RDWR | os.O_NONBLOCK | _FOLLOW_NOTHING, dir_fd=parent)
        except OSError as error:
            raise ArchiveError("The archive changes a file that its base does not have.") from error
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            os.close(file)
            raise ArchiveError("The archive changes parts of what is no file in its base.")
        if status.st_nlink == 1:
            return file
        # Its other names keep what they have: those that are to have the same are linked anew.
        try:
            os.unlink(name, dir_fd=parent)
            copy = self._fresh(name, parent)
            at = 0
            while at < status.st_size:
                count = os.copy_file_range(file, copy, min(status.st_size - at, 2**30), at, at)
                self._spend(count)
                if not count:
                    break
                at += count
            return copy
        finally:
            os.close(file)

    def _hard_link(self, member: Member, name: str, parent: int) -> None:
        *way, last = check_path(Member(member.target, Kind.FILE))
        if member.target == member.path or way[:1] != ["rootfs"]:
            raise ArchiveError("The archive links a file out of the office's root.")
        with contextlib.ExitStack() as stack:
            place = self._way[0].descriptor
            for step in way:
                place = _open_directory(step, place, member.target)
                stack.callback(os.close, place)
            try:
                status = os.lstat(last, dir_fd=place)
            except FileNotFoundError as error:
                raise ArchiveError("The archive links to a file that it does not have.") from error
            if not stat.S_ISREG(status.st_mode):
                raise ArchiveError("The archive links to what is no file.")
            _remove_tree(name, parent)
            try:
                os.link(last, name, src_dir_fd=place, dst_dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError as error:  # it was below what had the name
                raise ArchiveError("The archive links to a file that it replaces.") from error

    def _finish_by_name(self, member: Member, name: str, parent: int) -> None:
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        for xattr, value in member.xattrs.items():
            os.setxattr(f"/proc/self/fd/{parent}/{name}", xattr, value, follow_symlinks=False)
        if member.kind is not Kind.SYMLINK:
            os.chmod(name, member.mode, dir_fd=parent)  # just made by us: no link
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)


def check_path(member: Member) -> list[str]:
    """The parts of its path. Raises `ArchiveError` unless it may be in an office, as what it is."""
    parts = member.path.split("/")
    if any(part in ("", ".", "..") for part in parts) or parts[0] not in ROOTS:
        raise ArchiveError(f"The archive has an entry that would be written elsewhere: {member.path[:200]!r}.")
    if any(len(os.fsencode(part)) > 255 for part in parts):
        raise ArchiveError("The archive has a name that is longer than Linux allows.")
    root, is_top, kind = parts[0], len(parts) == 1, member.kind
    if is_top and kind is not (Kind.FILE if root == "postgres.secret" else Kind.DIRECTORY):
        raise ArchiveError(f"The archive has a {root} of the wrong kind.")
    if root in _PLAIN and kind not in (Kind.FILE, Kind.DIRECTORY, Kind.GONE):
        raise ArchiveError(f"The archive has a {kind} in {root}, where only files and directories are.")
    if kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE) and not is_harmless(kind, member.device):
        raise ArchiveError(f"The archive has the device {member.path[:200]!r}, which no office has.")
    if kind is Kind.SYMLINK and not member.target:
        raise ArchiveError("The archive has a link that leads nowhere.")
    if max(member.uid, member.gid) > _ID_MAX:
        raise ArchiveError("The archive has an owner that Linux does not have.")
    if not all(name.startswith(XATTRS_KEPT) for name in member.xattrs):
        raise ArchiveError("The archive has extended attributes that no export keeps.")
    return parts


class _Missing(ArchiveError):
    """A directory on the way is not there."""


def _open_directory(name: str, parent: int, path: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | _FOLLOW_NOTHING, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError) as error:  # a link is no directory either
        raise _Missing(f"The archive has {path[:200]!r} below what is no directory.") from error


def _finish(file: int, member: Member) -> None:
    """Owner, attributes, mode and time; in this order, since each may take away the one before."""
    os.fchown(file, member.uid, member.gid)
    for name in os.listxattr(file):
        if name.startswith(XATTRS_KEPT) and name not in member.xattrs:
            os.removexattr(file, name)
    for name, value in member.xattrs.items():
        os.setxattr(file, name, value)
    os.fchmod(file, member.mode)
    os.utime(file, ns=(member.mtime_ns, member.mtime_ns))


def _write_all(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, at)
        view, at = view[count:], at + count


def _remove_tree(name: str, parent: int) -> None:
    """Whatever has the name, with all below. Without recursion: a hostile tree may be deep."""
    try:
        os.unlink(name, dir_fd=parent)
        return
    except FileNotFoundError:
        return
    except IsADirectoryError:
        pass
    with contextlib.ExitStack() as stack:
        way: list[tuple[str, int, Iterator[str]]] = []

        def enter(child: str, place: int) -> None:
            below = os.open(child, os.O_RDONLY | os.O_DIRECTORY | _FOLLOW_NOTHING, dir_fd=place)
            way.append((child, below, iter(os.listdir(below))))

        stack.callback(lambda: [os.close(descriptor) for _, descriptor, _ in way])
        enter(name, parent)
        while way:
            own, directory, names = way[-1]
            for child in names:
                try:
                    os.unlink(child, dir_fd=directory)
                except IsADirectoryError:
                    enter(child, directory)
                    break
            else:
                os.close(way.pop()[1])
                os.rmdir(own, dir_fd=way[-1][1] if way else parent)


def _document(reader: Members, path: str, bytes_max: int) -> bytes:
    member = reader.next()
    if member is None or member.path != path or member.kind is not Kind.FILE or member.segments is not None:
        raise ArchiveError(f"The archive has no {path} where it belongs.")
    return _content(reader, member, bytes_max)


def _content(reader: Members, member: Member, bytes_max: int) -> bytes:
    if member.size > bytes_max:
        raise ArchiveError(f"The archive's {member.path} is larger than any export makes it.")
    return b"".join(reader.content())
