"""Runs the host's tools (`btrfs`, `cp`, `runsc`) for drivers: off the event loop, with a limit on time and output."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tenure.errors import SetupError, TenureError

OUTPUT_BYTES_MAX = 1024 * 1024
LAST_WORDS_CHARS = 600
KILLED_WAIT_S = 5.0
TOOL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where tools are looked for: a user's own PATH must not decide what runs as root."""


@dataclass(frozen=True)
class ToolResult:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def last_words(self) -> str:
        """The end of what the tool said, fit for an error message."""
        return (self.stderr.strip() or self.stdout.strip())[-LAST_WORDS_CHARS:]


async def run_tool(
    argv: Sequence[str | Path], *, timeout_s: float, raises: type[TenureError], pass_fds: Sequence[int] = ()
) -> ToolResult:
    """Runs `argv`, which inherits `pass_fds`, to its end, whatever its exit code. Raises `SetupError` when the tool is missing,
    and `raises` when it took longer than `timeout_s` (it is then killed). A cancelled caller kills the tool too."""
    words = [str(word) for word in argv]
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=tool_environment(),
            limit=OUTPUT_BYTES_MAX,
            pass_fds=pass_fds,
        )
    except FileNotFoundError as error:
        raise SetupError(f"The program {words[0]} is not installed.") from error
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate()
    except TimeoutError as error:
        raise raises(f"{' '.join(words[:3])} was not done after {timeout_s:.0f} s.") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with contextlib.suppress(TimeoutError):  # one that hangs in the kernel is left to it
                await asyncio.wait_for(process.wait(), KILLED_WAIT_S)
    return ToolResult(process.returncode or 0, stdout.decode(errors="replace"), stderr.decode(errors="replace"))


def tool_environment() -> dict[str, str]:
    """Plain messages and the system's own programs; nothing else of the server's environment reaches a tool."""
    return {"PATH": TOOL_PATH, "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/")}
