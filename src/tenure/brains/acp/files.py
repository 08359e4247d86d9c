"""A program's files are the office's: text in and out of them."""

from __future__ import annotations

from tenure.errors import DiskFull, InvalidArgument, NotFound, TooLarge
from tenure.work.failures import says_disk_full
from tenure.work.hands import Hands

READ_BYTES_MAX = 8 * 1024 * 1024
_WRITE = """
set -e
file=$(readlink -m -- "$1")
mkdir -p -- "$(dirname -- "$file")"
fresh=$(mktemp -- "$file.XXXXXX")
trap 'rm -f -- "$fresh"' EXIT
head -c "$2" > "$fresh"
[ "$(stat -c %s -- "$fresh")" = "$2" ]
if [ -e "$file" ]; then chmod --reference="$file" -- "$fresh"; else chmod "$(printf %o $((0666 & ~$(umask))))" -- "$fresh"; fi
mv -T -- "$fresh" "$file"
trap - EXIT
"""
"""Writes all of its input, as long as it was announced, or nothing."""


async def read_text(hands: Hands, agent: str, path: str, line: int | None = None, limit: int | None = None) -> str:
    """`limit` lines from the line `line` on (the first is 1). Raises `NotFound`, `TooLarge`."""
    data = await hands.read_file(agent, path, bytes_max=READ_BYTES_MAX)
    if data is None:
        raise NotFound(f"There is no file {path}.")
    if len(data) >= READ_BYTES_MAX:
        raise TooLarge(f"{path} is larger than {READ_BYTES_MAX} bytes. Use a command on it instead.")
    text = data.decode("utf-8", "replace")
    if line is None and limit is None:
        return text
    begin = max((line or 1) - 1, 0)
    return "".join(text.splitlines(keepends=True)[begin : None if limit is None else begin + limit])


async def write_text(hands: Hands, agent: str, path: str, content: str) -> None:
    """Replaces the file, in one moment, or makes it with its directories. Raises `DiskFull`, `InvalidArgument`."""
    data = content.encode("utf-8", "replace")
    said = b""
    async with await hands.open_program(agent, ("sh", "-c", _WRITE, "sh", path, str(len(data)))) as writer:
        await writer.send(data)
        while (piece := await writer.receive()) is not None:
            said = (said + piece.data)[-READ_BYTES_MAX:]
    if writer.exit_code != 0:
        text = said.decode("utf-8", "replace").strip()[-500:]
        message = f"{path} could not be written: {text}"
        raise DiskFull(message) if says_disk_full(text) else InvalidArgument(message)
