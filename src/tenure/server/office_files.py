"""Files of an office, read and written by programs *in* the office, as one of its users.

So its permissions, links and mounts mean what they mean inside, and nothing that an office puts on its disk can make
the server read or write anything of the host.
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from tenure.errors import DiskFull, DoorClosed, InvalidArgument, NotFound, SandboxError, TenureError
from tenure.server.services import STDERR, STDOUT, Offices, Session

STDERR_BYTES_MAX = 4096
HELD_BYTES = 256 * 1024
"""An answer is begun when so much of it is there, or all: the errors of small ones are whole errors."""
STALL_TIMEOUT_S = 300.0
"""An office that sends nothing of a file for so long is given up."""
EXIT_MISSING, EXIT_WRONG_KIND = 66, 67
EXIT_CHANGED = 1
"""tar's: a file changed while it was read, which a living machine's files do."""

# "$1" is the path, relative to the home of the user; nothing of it is ever parsed by the shell.
READ_SCRIPT = f"""
[ -e "$1" ] || exit {EXIT_MISSING}
[ -f "$1" ] || exit {EXIT_WRONG_KIND}
exec head -c "$2" -- "$1"
"""
PACK_SCRIPT = f"""
[ -e "$1/$2" ] || [ -L "$1/$2" ] || exit {EXIT_MISSING}
exec tar -C "$1" -cf - -- "$2"
"""
UNPACK_SCRIPT = f"""
[ -e "$1" ] || exit {EXIT_MISSING}
[ -d "$1" ] || exit {EXIT_WRONG_KIND}
exec tar -C "$1" -xf -
"""
WRITE_SCRIPT = f"""
[ -d "$1" ] && exit {EXIT_WRONG_KIND}
[ -d "$(dirname -- "$1")" ] || exit {EXIT_MISSING}
set -e
cd -- "$(dirname -- "$1")"
new=$(mktemp -- ".$(basename -- "$1").XXXXXX")
trap 'rm -f -- "$new"' EXIT
cat > "$new"
[ "$(wc -c < "$new")" -eq "$3" ] || {{ echo "it broke off" >&2; exit 1; }}
chmod "$2" -- "$new"
mv -fT -- "$new" "$(basename -- "$1")"
"""
FILE_MODE = "644"


def _command(script: str, *arguments: str) -> Sequence[str]:
    return ("sh", "-c", script, "sh", *arguments)


def _anchored(path: str) -> str:
    """`path` so that no program takes it for an option; a relative one begins in the home."""
    return path if path.startswith("/") else f"./{path}"


async def read_file(offices: Offices, agent: str, user: str, path: str, bytes_max: int) -> AsyncIterator[bytes]:
    """The first `bytes_max` bytes of a file. Before the first byte raises `NotFound`, `InvalidArgument` (no file,
    or not allowed)."""
    argv = _command(READ_SCRIPT, _anchored(path), str(bytes_max))
    return await _stream(offices, agent, user, argv, path, fine_codes=(0,))


async def pack(offices: Offices, agent: str, user: str, path: str) -> AsyncIterator[bytes]:
    """A tar archive of the file or directory, whose one top entry has its last name. Errors as of `read_file`."""
    clean = posixpath.normpath(_anchored(path))
    parent, name = posixpath.split(clean)
    if name in ("", ".", ".."):
        parent, name = clean, "."
    argv = _command(PACK_SCRIPT, parent or ".", name)
    return await _stream(offices, agent, user, argv, path, fine_codes=(0, EXIT_CHANGED))


async def unpack(offices: Offices, agent: str, user: str, path: str, archive: AsyncIterator[bytes]) -> None:
    """Unpacks a tar archive under the directory `path`. Raises `NotFound`, `InvalidArgument`, `DiskFull`."""
    await _fill(offices, agent, user, _command(UNPACK_SCRIPT, _anchored(path)), path, archive)


async def write_file(
    offices: Offices, agent: str, user: str, path: str, chunks: AsyncIterator[bytes], size_bytes: int
) -> None:
    """Makes or replaces a file of so many bytes, as a whole: who reads it finds the old one or the new one. Raises `NotFound`
    when there is no directory for it, `InvalidArgument`, `DiskFull`."""
    argv = _command(WRITE_SCRIPT, _anchored(path), FILE_MODE, str(size_bytes))
    await _fill(offices, agent, user, argv, path, chunks)


async def _fill(
    offices: Offices, agent: str, user: str, argv: Sequence[str], path: str, archive: AsyncIterator[bytes]
) -> None:
    """Gives `archive` to the standard input of `argv`, which has to see itself that it got the whole."""
    session = await offices.attach(agent, argv=argv, env={"LC_ALL": "C"}, user=user)
    try:
        feeding = asyncio.create_task(_feed(session, archive))
        try:
            complaint = b""
            async for channel, data in session:
                if channel == STDERR and len(complaint) < STDERR_BYTES_MAX:
                    complaint += data
            code = await session.wait()
            if code == 0:
                await feeding
        finally:
            feeding.cancel()
            # What broke the archive off on the client's side comes first: tar only saw a short one.
            await asyncio.gather(feeding, return_exceptions=True)
        if code != 0:
            _raise_feeding_error(feeding)
            raise _failure(code, complaint, path)
    finally:
        await asyncio.shield(session.close())


async def _feed(session: Session, archive: AsyncIterator[bytes]) -> None:
    try:
        async for chunk in archive:
            if chunk:
                await session.send_stdin(chunk)
    finally:
        await session.send_eof()


def _raise_feeding_error(feeding: asyncio.Task[None]) -> None:
    if not feeding.cancelled() and (error := feeding.exception()) is not None:
        raise error


async def _stream(
    offices: Offices, agent: str, user: str, argv: Sequence[str], path: str, *, fine_codes: tuple[int, ...]
) -> AsyncIterator[bytes]:
    """stdout of `argv`. The first of it is awaited, so that a failure becomes an error where it can; one that comes later
    breaks the answer off."""
    session = await offices.attach(agent, argv=argv, env={"LC_ALL": "C"}, user=user)
    chunks = _chunks(session, path, fine_codes)
    held: list[bytes] = []
    held_bytes = 0
    async for chunk in chunks:
        held.append(chunk)
        held_bytes += len(chunk)
        if held_bytes >= HELD_BYTES:
            break
    return _with_rest(held, chunks)


async def _with_rest(held: list[bytes], chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    try:
        for chunk in held:
            yield chunk
        async for chunk in chunks:
            yield chunk
    finally:
        await chunks.aclose()


async def _chunks(session: Session, path: str, fine_codes: tuple[int, ...]) -> AsyncGenerator[bytes]:
    try:
        complaint = b""
        async for channel, data in _moving(session):
            if channel == STDOUT:
                yield data
            elif len(complaint) < STDERR_BYTES_MAX:
                complaint += data
        code = await session.wait()
        if code not in fine_codes:
            raise _failure(code, complaint, path)
    finally:
        await asyncio.shield(session.close())


async def _moving(session: Session) -> AsyncGenerator[tuple[int, bytes]]:
    pieces = aiter(session)
    while True:
        try:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise DoorClosed(f"The office sent nothing for {STALL_TIMEOUT_S:g} s.") from error
        yield piece


def _failure(code: int, complaint: bytes, path: str) -> TenureError:
    said = complaint[:STDERR_BYTES_MAX].decode("utf-8", "replace").strip()
    first = said.splitlines()[0] if said else f"exit code {code}"  # tar's last line only says that there were others
    if code == EXIT_MISSING:
        return NotFound(f"There is no {path!r} in the office.")
    if code == EXIT_WRONG_KIND:
        return InvalidArgument(
            f"{path!r} in the office is of the wrong kind.", hint="A file was expected, or a directory."
        )
    if "No space left" in said or "Disk quota exceeded" in said:
        return DiskFull("The office's disk is full.", details={"output": said})
    if "Permission denied" in said or "Cannot open" in said or "Cannot mkdir" in said:
        return InvalidArgument(
            f"The office's user may not do this with {path!r}: {first}",
            hint='Use another path, or act as root: `--user root`, in Python user="root".',
        )
    if "does not look like a tar archive" in said or "Unexpected EOF" in said or "invalid tar" in said:
        return InvalidArgument(f"The body is not a tar archive: {first}")
    return SandboxError(f"The office could not do this with {path!r}: {first}", details={"output": said})
