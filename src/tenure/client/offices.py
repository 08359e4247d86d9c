"""Offices as files on this side: an export is written beside its name and put there whole, an import finds what it continues."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import struct
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pydantic import SecretStr

from tenure import wire
from tenure.archive_head import SUFFIX, Head, is_id, put_in_order, read_head
from tenure.client import calls
from tenure.client.calls import CHUNK_BYTES
from tenure.client.transport import Transport
from tenure.errors import ArchiveError, DiskFull, InvalidArgument, NotFound, StorageError, TenureError
from tenure.export_keys import KEY_ENVIRONMENT, Key, read_key

Progress = Callable[[int], None]
"""Called with the number of bytes that were just sent or received."""
EXPORT_ID_HEADER = "x-tenure-export"
POLL_S = 0.5
FILES_LOOKED_INTO_MAX = 10_000
_S3 = "s3://"


def is_s3(text: str | Path) -> bool:
    return isinstance(text, str) and text.startswith(_S3)


def key_of(given: Key | str | Path | None) -> Key | None:
    """A key, or that of a file. Raises `NotFound`, `InvalidArgument`."""
    return given if given is None or isinstance(given, Key) else read_key(Path(given))


def told(key: Key | None) -> SecretStr | None:
    return None if key is None else SecretStr(key.text)


# --- exporting ----------------------------------------------------------------------------------------------------------
def export(
    transport: Transport,
    agent: str,
    to: str | Path | None,
    since: str | Path | None,
    key: Key | None,
    progress: Progress,
) -> wire.Export:
    """An export to a file or to S3; returns when it is there. `to` None, or a directory: a name is made. `since` is an earlier
    one: its file, its address, or its id."""
    base = None if since is None else earlier(transport, agent, since)
    if to is not None and is_s3(to):
        request = wire.ExportToRequest(to=str(to), since=base, key=told(key))
        return _wait(transport, transport.send(calls.start_export(agent, request)), progress)
    target = _target(Path(to or "."), agent)
    call = calls.export(agent, wire.ExportRequest(since=base, key=told(key)))
    with fresh_file(target) as file, transport.stream(call) as response:
        export_id = response.headers.get(EXPORT_ID_HEADER, "")
        for piece in response.iter_bytes(CHUNK_BYTES):
            file.write(piece)
            progress(len(piece))
    made = transport.send(calls.get_export(agent, export_id))
    return made.model_copy(update={"destination": str(target)})


def archive(
    transport: Transport, agent: str, to: str | None, key: Key | None, drop_snapshots: bool, progress: Progress
) -> wire.Export:
    """Puts an office away in S3; returns when nothing of it is on the server's machine."""
    request = wire.ArchiveRequest(to=to, key=told(key))
    made = _wait(transport, transport.send(calls.archive(agent, request)), progress)
    if drop_snapshots:
        for one in transport.send(calls.list_snapshots(agent)).snapshots:
            transport.send(calls.delete_snapshot(agent, one.id))
    return made


def earlier(transport: Transport, agent: str, since: str | Path) -> str:
    """The id of an earlier export."""
    if isinstance(since, str) and is_id(since):
        return since
    if is_s3(since):
        for one in reversed(transport.send(calls.list_exports(agent)).exports):
            if one.destination == since and one.state == "done":
                return one.id
        raise NotFound(
            f"No export of {agent} to {since} is known here.", hint="Make a whole export: leave --since out."
        )
    head = head_of(Path(since))
    if head.agent != agent:
        raise ArchiveError(f"{since} is an export of {head.agent}, not of {agent}.")
    return head.id


def _wait(transport: Transport, made: wire.Export, progress: Progress) -> wire.Export:
    seen = 0
    while made.state == "running":
        time.sleep(POLL_S)
        made = transport.send(calls.get_export(made.agent, made.id))
        progress(max(0, (made.size_bytes or 0) - seen))
        seen = max(seen, made.size_bytes or 0)
    if made.state != "done":
        raise StorageError(f"The export to {made.destination} failed: {made.error}")
    return made


def _target(to: Path, agent: str) -> Path:
    if to.is_dir():
        return to / f"{agent}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}{SUFFIX}"
    if not to.parent.is_dir():
        raise NotFound(f"There is no directory {to.parent}.")
    return to


@contextmanager
def fresh_file(target: Path) -> Generator[IO[bytes]]:
    """A file to write to, which becomes `target` when all went well and goes away when not. What killed ones left for the same
    target is removed. Raises `DiskFull`, `InvalidArgument`."""
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        for left in target.parent.glob(f".{_literal(target.name)}.*.part"):
            with contextlib.suppress(OSError), left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of one that is being written this fails
                left.unlink()
        try:
            with fresh.open("xb") as file:
                os.fchmod(file.fileno(), 0o600)  # all that the agent has
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
                file.flush()
                os.fsync(file.fileno())
                fresh.replace(target)
            directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, ConnectionError | BrokenPipeError):
            raise
        failure: type[TenureError] = DiskFull if "No space" in str(error) else InvalidArgument
        raise failure(f"{target} cannot be written: {error.strerror}.", hint="Give another path with --to.") from error


def _literal(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


# --- importing ----------------------------------------------------------------------------------------------------------
def bring(
    transport: Transport, sources: Sequence[str | Path], name: str | None, key: Key | None, progress: Progress
) -> wire.Imported:
    """A new agent of archives: files, or addresses in S3. What they continue is looked for beside them."""
    if not sources:
        raise InvalidArgument("An import needs an archive.")
    if any(is_s3(source) for source in sources):
        if not all(is_s3(source) for source in sources):
            raise InvalidArgument("Some of the archives are in S3, and others are files.", hint="Fetch them first.")
        request = wire.FetchRequest(sources=[str(source) for source in sources], name=name, key=told(key))
        return transport.send(calls.fetch_archives(request))
    files = whole_chain([Path(source) for source in sources])
    for _, head in files:
        refuse_other_key(head, key)
    body = _body([path for path, _ in files], key, progress)
    return transport.send(calls.import_archives(name or files[0][1].agent, body))


def total_bytes(sources: Sequence[str | Path]) -> int | None:
    """Of all that an import sends; None where it sends nothing."""
    if any(is_s3(source) for source in sources):
        return None
    return sum(path.stat().st_size for path, _ in whole_chain([Path(source) for source in sources]))


def head_of(path: Path) -> Head:
    """Raises `NotFound`, `ArchiveError`, `InvalidArgument`."""
    try:
        with path.open("rb") as file:
            return read_head(file.read)
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.") from None
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.") from None


def refuse_other_key(head: Head, key: Key | None) -> None:
    """Before anything is sent. Raises `ArchiveError`."""
    if head.key_id is None or (key is not None and key.id == head.key_id):
        return
    if key is None:
        raise ArchiveError(
            f"The archive {head.id} is encrypted with the key {head.key_id}, and no key was given.",
            hint=f"Name its file with --key-file, or put the key into {KEY_ENVIRONMENT}.",
        )
    raise ArchiveError(f"The key is the wrong one: the archive {head.id} needs {head.key_id}, and this is {key.id}.")


def whole_chain(paths: Sequence[Path]) -> list[tuple[Path, Head]]:
    """In the order in which they are read, with those that are missing as far as they lie beside the first. Raises
    `ArchiveError` for what is no chain, or lacks something."""
    found = {head_of(path).id: path for path in paths}
    heads = {archive: head_of(path) for archive, path in found.items()}
    missing: set[str] = {head.base for head in heads.values() if head.base is not None} - heads.keys()
    if missing:
        beside = dict(_beside(paths[0].absolute().parent))
        while missing:
            wanted = missing.pop()
            if wanted not in beside:
                break
            found[wanted], heads[wanted] = beside[wanted]
            base = heads[wanted].base
            if base is not None and base not in heads:
                missing.add(base)
    ids = list(heads)
    order = put_in_order([(archive, heads[archive].base) for archive in ids])
    return [(found[ids[place]], heads[ids[place]]) for place in order]


def _beside(directory: Path) -> Iterator[tuple[str, tuple[Path, Head]]]:
    for count, path in enumerate(sorted(directory.glob(f"*{SUFFIX}"))):
        if count >= FILES_LOOKED_INTO_MAX:
            return
        with contextlib.suppress(TenureError):
            head = head_of(path)
            yield head.id, (path, head)


def _body(paths: Sequence[Path], key: Key | None, progress: Progress) -> Iterator[bytes]:
    front = json.dumps({"key": None if key is None else key.text, "count": len(paths)}).encode()
    yield struct.pack(">I", len(front)) + front
    for path in paths:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size
            yield struct.pack(">Q", left)
            while left and (piece := file.read(min(left, CHUNK_BYTES))):
                left -= len(piece)
                yield piece
                progress(len(piece))
            if left:
                raise ArchiveError(f"{path} became shorter while it was sent.")
