"""Copying files and directories between here and an office, with the manners of `cp`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tenure import wire
from tenure.client import calls
from tenure.client.archive import Warn, office_path, pack, unpack
from tenure.client.calls import CHUNK_BYTES
from tenure.client.transport import Transport
from tenure.errors import InvalidArgument, NotFound

Progress = Callable[[int], None]
"""Called with the number of bytes that were just sent or received."""
TEST_S = 30.0


def ignore(_: str) -> None:
    return None


def ignore_progress(_: int) -> None:
    return None


def upload(
    transport: Transport, agent: str, local: Path, remote: str, progress: Progress, warn: Warn, user: str = "agent"
) -> str:
    """Copies `local` into the office; returns the path that it has there. Into `remote` when that is a directory (or
    ends in '/'); otherwise `remote` is the new name. Raises `NotFound` for a missing file or directory to put it in."""
    if not local.exists() and not local.is_symlink():
        raise NotFound(f"There is no file {local}.")
    path = office_path(remote)
    if remote.endswith(("/", "/.")) or remote in ("", ".", "~") or _is_directory(transport, agent, str(path), user):
        path = path / local.resolve().name
    if not path.name:
        raise InvalidArgument("The office's root cannot be replaced.", hint="Name a directory or a file below it.")
    tar = _counted(pack(local, path.name, warn), progress)
    transport.send(calls.upload(agent, str(path.parent), user, tar))
    return str(path)


def download(
    transport: Transport, agent: str, remote: str, local: Path, progress: Progress, warn: Warn, user: str = "agent"
) -> Path:
    """Copies `remote` out of the office; returns where it went. Into `local` when that is a directory, otherwise
    `local` is the new name. Raises `NotFound`."""
    path = office_path(remote)
    target = local / (path.name or agent) if local.is_dir() else local
    if not target.parent.is_dir():
        raise NotFound(f"There is no directory {target.parent}.")
    with transport.stream(calls.download(agent, str(path), user)) as response:
        unpack(_counted(response.iter_bytes(CHUNK_BYTES), progress), target, warn)
    return target


def _is_directory(transport: Transport, agent: str, path: str, user: str) -> bool:
    request = wire.ExecRequest(argv=["test", "-d", path], user=user, timeout_s=TEST_S)
    return transport.send(calls.execute(agent, request)).exit_code == 0


def _counted(pieces: Iterable[bytes], progress: Progress) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        progress(len(piece))
