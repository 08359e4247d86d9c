"""Reading and writing files in an office's root from the host.

Its content belongs to the agent, who may be hostile and may be running: any name in it can be, or become while we
look, a link to the host's /etc/shadow, a device, or a pipe that never ends. So every path is resolved by the kernel
*inside* the root (openat2 with RESOLVE_IN_ROOT: links and `..` cannot lead out, absolute links start at the root), files
are replaced by rename, never written through, and only regular files are read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tenure.errors import VolumeError

_FICLONE = 0x40049409
_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_RESOLVE = _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_XDEV
RETRIES_MAX = 16
"""The kernel asks to try again when a rename elsewhere might have raced with `..`."""
READ_BYTES_MAX = 64 * 1024 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


def write_file(rootfs: Path, path: str, content: bytes | str, mode: int = 0o644, uid: int = 0, gid: int = 0) -> bool:
    """Makes the file `path` (as seen in the office; with or without the first slash) have exactly this content (text in
    UTF-8), mode and owner. Missing directories on the way are made (root's, 0755). Whatever has the name, a link
    included, is replaced; a directory is not. Nothing is written when all is so already, which keeps the volume's
    shared blocks shared. Whether it was written. Raises `VolumeError`."""
    directory, name = _split(path)
    data = content.encode() if isinstance(content, str) else content
    if mode & ~0o777:
        raise VolumeError(f"{path} would get the mode {mode:o}: set-id bits are not for files that the host writes.")
    try:
        with _root(rootfs) as root, _directory(root, directory) as parent:
            if _same(parent, name, data, mode, uid, gid):
                return False
            _replace(parent, name, data, mode, uid, gid)
            return True
    except OSError as error:
        raise VolumeError(f"{path} could not be written in the office: {error.strerror}.") from error


def read_file(rootfs: Path, path: str, *, bytes_max: int = READ_BYTES_MAX) -> bytes | None:
    """The first `bytes_max` bytes of the regular file that `path` leads to; None when there is none. Raises `VolumeError`
    when something else has the name."""
    try:
        with _root(rootfs) as root:
            found = _openat2(root, _inside(path), os.O_PATH)
            try:
                return _read(found, bytes_max)
            finally:
                os.close(found)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise VolumeError(f"{path} could not be read in the office: {error.strerror}.") from error


def exists_in(rootfs: Path, path: str) -> bool:
    """Whether `path` leads to something inside the root. Raises `VolumeError`."""
    try:
        with _root(rootfs) as root:
            os.close(_openat2(root, _inside(path), os.O_PATH))
            return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise VolumeError(f"{path} could not be looked up in the office: {error.strerror}.") from error


def names_in(rootfs: Path, path: str) -> list[str]:
    """Names in the directory that `path` leads to; none when there is no such directory. Raises `VolumeError`."""
    try:
        with _root(rootfs) as root:
            found = _openat2(root, _inside(path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                return sorted(os.listdir(found))
            finally:
                os.close(found)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise VolumeError(f"{path} could not be listed in the office: {error.strerror}.") from error


def make_directory(rootfs: Path, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
    """Makes the directory `path`, and missing ones on the way (root's, 0755); one that exists gets this mode and owner.
    Raises `VolumeError`."""
    directory, name = _split(path)
    try:
        with _root(rootfs) as root, _directory(root, directory) as parent:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.fchown(made, uid, gid)
                os.fchmod(made, mode)
            finally:
                os.close(made)
    except OSError as error:
        raise VolumeError(f"The directory {path} could not be made in the office: {error.strerror}.") from error


def remove_file(rootfs: Path, path: str) -> None:
    """Removes the file or link `path`; not an error when there is none. Raises `VolumeError`."""
    directory, name = _split(path)
    try:
        with _root(rootfs) as root:
            parent = _openat2(root, _inside(directory), os.O_PATH | os.O_DIRECTORY)
            try:
                os.unlink(name, dir_fd=parent)
            finally:
                os.close(parent)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise VolumeError(f"{path} could not be removed in the office: {error.strerror}.") from error


def lend_file(rootfs: Path, path: str, source: Path) -> None:
    """Makes `path` what `source`, a host's file or link that nobody else changes, is: content (shared on the disk where the
    filesystem can), mode, owner, time. Whatever has the name is replaced; a directory is not. Raises `VolumeError`."""
    directory, name = _split(path)
    temporary = f".tenure-{secrets.token_hex(8)}"
    try:
        with _root(rootfs) as root, _directory(root, directory) as parent:
            try:
                _copy(source, parent, temporary)
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=parent)
                raise
    except OSError as error:
        raise VolumeError(f"{path} could not be written in the office: {error.strerror}.") from error


def facts_of(rootfs: Path, path: str) -> os.stat_result | None:
    """What is at `path` itself, be it a link; links in the directories on the way stay in the root. None when there is nothing.
    Raises `VolumeError`."""
    try:
        with _root(rootfs) as root:
            found = _openat2(root, _inside(path), os.O_PATH | os.O_NOFOLLOW)
            try:
                return os.fstat(found)
            finally:
                os.close(found)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise VolumeError(f"{path} could not be looked up in the office: {error.strerror}.") from error


# --- the parts --------------------------------------------------------------------------------------------------------
def _split(path: str) -> tuple[str, str]:
    directory, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", "..") or "\0" in path:
        raise VolumeError(f"{path!r} is not the path of a file.")
    return directory, name


def _inside(path: str) -> str:
    return path.lstrip("/") or "."


@contextmanager
def _root(rootfs: Path) -> Generator[int]:
    descriptor = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _directory(root: int, path: str) -> Generator[int]:
    """The directory `path` in the root, made where it is missing."""
    flags = os.O_PATH | os.O_DIRECTORY
    parts = PurePosixPath(_inside(path)).parts
    current = _openat2(root, ".", flags)
    try:
        for count, part in enumerate(parts, start=1):
            so_far = "/".join(parts[:count])
            try:
                following = _openat2(root, so_far, flags)  # from the root each time: links count from there
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
                following = _openat2(root, so_far, flags)
            os.close(current)
            current = following
        yield current
    finally:
        os.close(current)


def _same(parent: int, name: str, content: bytes, mode: int, uid: int, gid: int) -> bool:
    try:
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        return False
    try:
        facts = os.fstat(found)
        return (
            stat.S_ISREG(facts.st_mode)
            and (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid) == (mode, uid, gid)
            and facts.st_size == len(content)
            and _read(found, len(content)) == content
        )
    finally:
        os.close(found)


def _replace(parent: int, name: str, content: bytes, mode: int, uid: int, gid: int) -> None:
    temporary = f".tenure-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchown(file.fileno(), uid, gid)
            os.fchmod(file.fileno(), mode)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=parent)
        raise


def _copy(source: Path, parent: int, name: str) -> None:
    facts = source.lstat()
    if stat.S_ISLNK(facts.st_mode):
        os.symlink(os.readlink(source), name, dir_fd=parent)
        os.chown(name, facts.st_uid, facts.st_gid, dir_fd=parent, follow_symlinks=False)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with source.open("rb") as origin, os.fdopen(os.open(name, flags, 0o600, dir_fd=parent), "wb") as file:
        try:
            fcntl.ioctl(file, _FICLONE, origin.fileno())
        except OSError:
            shutil.copyfileobj(origin, file)
            file.flush()
        os.fchown(file.fileno(), facts.st_uid, facts.st_gid)
        os.fchmod(file.fileno(), stat.S_IMODE(facts.st_mode))
        os.utime(file.fileno(), ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _read(found: int, bytes_max: int) -> bytes:
    """Of a file opened with O_PATH: opened for reading only once it is known to be regular, so no device or pipe is."""
    if not stat.S_ISREG(os.fstat(found).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    with open(f"/proc/self/fd/{found}", "rb") as file:
        return file.read(bytes_max)


def _openat2(directory: int, path: str, flags: int) -> int:
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
    for _ in range(RETRIES_MAX):
        found: int = _libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), how, len(how))
        if found >= 0:
            return found
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number), path)
    raise OSError(errno.EAGAIN, "the office's directories keep changing", path)
