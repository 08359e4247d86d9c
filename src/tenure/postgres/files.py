"""Owners and sizes of a cluster's files on the host."""

from __future__ import annotations

import errno
import os
from pathlib import Path

LOG_BYTES_MAX = 1 << 20
LOG_TAIL_BYTES = 4096


def own_directory(directory: Path, uid: int, gid: int) -> None:
    """Makes `directory` (and missing parents) private to `uid`; without root it stays ours."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(directory, uid, gid)


def own_tree(directory: Path, uid: int, gid: int) -> bool:
    """Gives everything below `directory` to `uid`, and `directory` itself last, so that its owner says whether all of
    it was done. Follows no link. Whether there was anything to do."""
    if os.geteuid() != 0 or directory.stat().st_uid == uid:
        return False
    for _, directories, files, place_fd in os.fwalk(directory):
        for name in (*directories, *files):
            os.chown(name, uid, gid, dir_fd=place_fd, follow_symlinks=False)
    os.chown(directory, uid, gid)
    return True


def log_size(path: Path) -> int:
    """0 when there is no log."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def log_since(path: Path, offset: int, bytes_max: int = LOG_TAIL_BYTES) -> str:
    """The last `bytes_max` of what was written to a log since it had the size `offset`."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(offset if offset <= size else 0, size - bytes_max))
            return file.read(bytes_max).decode("utf-8", "replace")
    except OSError:
        return ""


def says_disk_full(text: str) -> bool:
    """Whether a message or a log says so, in the kernel's words for a full disk or a spent quota."""
    return any(os.strerror(number) in text for number in (errno.ENOSPC, errno.EDQUOT))


def trim_log(path: Path) -> None:
    """Keeps the newer half of a log that has outgrown `LOG_BYTES_MAX`; the writer must append."""
    try:
        with path.open("rb+") as file:
            size = os.fstat(file.fileno()).st_size
            if size > LOG_BYTES_MAX:
                file.seek(size - LOG_BYTES_MAX // 2)
                kept = file.read(LOG_BYTES_MAX // 2)
                file.seek(0)
                file.truncate()
                file.write(kept)
    except FileNotFoundError:
        pass
