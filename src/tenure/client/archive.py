"""Files and directories as tar streams, packed and unpacked piece by piece, so that size costs no memory.

What comes out of an office is not trusted: an agent may write any tar stream. `unpack` therefore creates nothing
outside of its target, follows no link, and makes no device, no set-user-id file and no link that leads out.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from tenure.client.calls import CHUNK_BYTES
from tenure.errors import InvalidArgument, NotFound, TenureError

OFFICE_UID = 1000
MEMBERS_MAX = 5_000_000

Warn = Callable[[str], None]


def office_path(path: str) -> PurePosixPath:
    """A path as the server takes it: relative ones begin at the office user's home, and so does `~`."""
    return PurePosixPath(path[2:] if path == "~" or path.startswith("~/") else path)


def total_bytes(source: Path) -> int:
    """Bytes of all regular files that `pack` would send."""
    return sum(path.lstat().st_size for path in _walk(source) if stat.S_ISREG(path.lstat().st_mode))


def pack(source: Path, name: str, warn: Warn) -> Iterator[bytes]:
    """A tar stream of `source` (a file or a directory with all in it), whose root is called `name`.
    Raises `NotFound` without source. Sockets and devices are left out, and `warn` told."""
    for path in _walk(source):
        info = _describe(path, name if path == source else f"{name}/{path.relative_to(source)}")
        if info is None:
            warn(f"{path} is neither file, directory nor link: left out")
            continue
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if info.isreg():
            yield from _content(path, info.size)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _walk(source: Path) -> Iterator[Path]:
    if not os.path.lexists(source):
        raise NotFound(f"There is no file {source}.")
    yield source
    if source.is_dir():
        for folder, folders, files in os.walk(source):
            for entry in sorted([*folders, *files]):
                yield Path(folder, entry)


def _describe(path: Path, name: str) -> tarfile.TarInfo | None:
    found = path.stat() if path.is_dir() and not path.is_symlink() else path.lstat()
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = stat.S_IMODE(found.st_mode), found.st_mtime
    info.uid = info.gid = OFFICE_UID
    if stat.S_ISDIR(found.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(found.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
    elif stat.S_ISREG(found.st_mode):
        info.size = found.st_size
    else:
        return None
    return info


def _content(path: Path, size_bytes: int) -> Iterator[bytes]:
    """Exactly as many bytes as the header says, whatever happens to the file meanwhile."""
    left = size_bytes
    with path.open("rb") as file:
        while left and (chunk := file.read(min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk
    if left:
        raise TenureError(
            f"{path} became shorter while it was copied.", hint="Copy it again when nothing writes to it."
        )
    yield bytes(-size_bytes % tarfile.BLOCKSIZE)


class _Reader:
    """What tarfile's stream mode wants: `read(size)` over an iterator of bytes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (chunk := next(self._chunks, b"")):
            self._rest += chunk
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


def unpack(chunks: Iterable[bytes], target: Path, warn: Warn) -> None:
    """Unpacks a tar stream of one file or one directory: its root becomes `target` itself, whatever it is called in the
    stream. Files of the same name are replaced, directories merged. Raises `InvalidArgument` for a stream that would
    write elsewhere or is no tar stream."""
    links: list[tuple[Path, str]] = []
    try:
        with tarfile.open(fileobj=cast("BinaryIO", _Reader(chunks)), mode="r|") as archive:
            for count, member in enumerate(archive):
                if count >= MEMBERS_MAX:
                    raise InvalidArgument(f"The archive has more than {MEMBERS_MAX} entries.")
                _unpack_member(archive, member, target, links, warn)
    except tarfile.TarError as error:
        raise InvalidArgument(f"What the office sent is not a whole tar stream: {error}.") from error
    for place, goal in links:  # Last, so that no later entry can be written through one.
        _make_link(place, goal, target, warn)


def _unpack_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, links: list[tuple[Path, str]], warn: Warn
) -> None:
    place = _place(member.name, target)
    if member.isdir():
        if place.is_symlink() or not place.is_dir():
            _clear(place)
            place.mkdir()
        place.chmod((member.mode & 0o777) | 0o700)
    elif member.issym():
        links.append((place, member.linkname))
    elif member.islnk():
        original = _place(member.linkname, target)
        if original.is_file() and not original.is_symlink():
            _clear(place)
            shutil.copy2(original, place)
    elif member.isreg():
        content = archive.extractfile(member)
        assert content is not None
        _clear(place)
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            shutil.copyfileobj(content, file, CHUNK_BYTES)
            os.fchmod(fd, (member.mode & 0o777) | 0o600)
        os.utime(place, (member.mtime, member.mtime))
    else:
        warn(f"{member.name} is neither file, directory nor link: left out")


def _place(name: str, target: Path) -> Path:
    """Where the entry `name` goes; its first part stands for `target`."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise InvalidArgument(f"The office sent an entry that would be written elsewhere: {name[:200]!r}.")
    inner = [part for part in parts[1:] if part not in ("", ".")]
    place = target
    for part in inner:
        if place.is_symlink():
            raise InvalidArgument(f"The office sent an entry that would be written through the link {place}.")
        place = place / part
    if inner and not place.parent.is_dir():
        raise InvalidArgument(f"The office sent {name[:200]!r} before its directory.")
    return place


def _clear(place: Path) -> None:
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.exists():
        raise InvalidArgument(f"{place} is in the way: it is not a file.")


def _make_link(place: Path, goal: str, target: Path, warn: Warn) -> None:
    inside = Path(os.path.normpath(place.parent / goal))
    if os.path.isabs(goal) or (inside != target and target not in inside.parents):
        warn(f"{place} would lead out of {target} (to {goal}): left out")
        return
    _clear(place)
    place.symlink_to(goal)
